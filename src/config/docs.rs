//! The documentation of the parameters.

use super::table::{Effect, PARAMETERS, ParameterRow, Range};

/// `docs/parameters.md`.
pub fn parameters_markdown() -> String {
    let mut text = String::from(
        "# Parameters of `config.pbtxt`\n\n\
         Each is written as `parameters { key: \"name\" value: { string_value: \"value\" } }`. A parameter that is missing, empty, not a\n\
         value of its type or still a `${placeholder}` has its default; the log at load says which values are in effect. A number outside\n\
         its range keeps the model from loading. \"not yet\" and \"no\" parameters are accepted so that existing repositories load.\n\n\
         | Key | Type | Default | Range | Effect | Meaning |\n|---|---|---|---|---|---|\n",
    );
    PARAMETERS.iter().for_each(|row| text.push_str(&line(row)));
    text
}

fn line(row: &ParameterRow) -> String {
    let effect = match row.effect {
        Effect::Applied => "yes",
        Effect::NotYet => "not yet",
        Effect::Never => "no",
    };
    let range = match row.range {
        Range::Any => String::new(),
        Range::Numbers(min, max) if max == f64::from(i32::MAX) => format!("≥ {min}"),
        Range::Numbers(min, max) => format!("{min} … {max}"),
        Range::Words(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" "),
    };
    format!("| `{}` | {} | {} | {range} | {effect} | {} |\n", row.key, row.type_name, row.default, row.doc)
}
