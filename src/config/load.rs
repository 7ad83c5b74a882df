//! From the JSON form of a model configuration to [`Parameters`], with everything that the operator should be told.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::choices::{BatchingType, DecodingMode, GptModelType, ModelRole};
use super::concerns::readers;
use super::table::{Effect, PARAMETERS, ParameterRow, Parameters, Range, Source};
use super::value::is_placeholder;
use crate::error::{Error, Result};

/// How important a [`Note`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
}

/// One line for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub level: Level,
    pub text: String,
}

/// The parameters of a configuration and what there is to say about them.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub parameters: Parameters,
    pub notes: Vec<Note>,
}

impl Parameters {
    /// Reads `parameters.<key>.string_value` of every row.
    ///
    /// # Errors
    /// `InvalidArg` that names all numbers outside their ranges; everything else that is wrong falls back to the default
    /// with a note.
    pub fn load(model_config: &Value) -> Result<Loaded> {
        let given = given_texts(model_config);
        let mut parameters = Parameters::default();
        for row in PARAMETERS {
            if let Some(text) = given.get(row.key) {
                (row.set)(&mut parameters, text);
            }
        }
        check_ranges(&parameters)?;
        if parameters.max_attention_window_size.source != Source::Given
            && parameters.max_kv_cache_length.source == Source::Given
        {
            parameters.max_attention_window_size = parameters.max_kv_cache_length.clone();
        }
        let notes = notes(&parameters, &given);
        Ok(Loaded { parameters, notes })
    }

    /// The role of the model.
    ///
    /// # Errors
    /// `InvalidArg` for a word that is no role.
    pub fn role(&self) -> Result<ModelRole> {
        ModelRole::parse(self.model_role.text.as_deref())
    }

    /// How requests share steps.
    ///
    /// # Errors
    /// `InvalidArg` for a text that is no batching type.
    pub fn batching(&self) -> Result<BatchingType> {
        GptModelType::parse(self.gpt_model_type.text.as_deref())
    }

    /// The folder of the decoder model. `version_dir` is used where no path was given and it holds a `config.json` or a
    /// GGUF file.
    ///
    /// # Errors
    /// `InvalidArg` with `Both encoder and decoder model paths are empty` and the offending paths where no folder
    /// exists; `Unsupported` for an encoder.
    pub fn model_dir(&self, version_dir: &Path) -> Result<String> {
        if let Some(encoder) = self.encoder_model_path.value.as_deref().filter(|path| Path::new(path).exists()) {
            return Err(Error::unsupported(format!(
                "encoder_model_path is {encoder:?}: models with an encoder are not served by this version"
            )));
        }
        let given = self.gpt_model_path.text.as_deref().filter(|text| !text.is_empty());
        match given {
            Some(path) if Path::new(path).exists() => Ok(path.to_owned()),
            None if holds_model(version_dir) => Ok(version_dir.to_string_lossy().into_owned()),
            Some(path) if is_placeholder(path) => {
                Err(empty_paths(&format!("gpt_model_path is still {path}: fill it with the folder of the model")))
            }
            Some(path) => {
                Err(empty_paths(&format!("gpt_model_path is {path:?}, which does not exist: correct the path")))
            }
            None => Err(empty_paths(&format!(
                "gpt_model_path is not given and there is no config.json and no GGUF file in the version folder {:?}: set \
                 it to the folder of the model",
                version_dir.file_name().unwrap_or_default()
            ))),
        }
    }

    /// The rules that span several parameters.
    ///
    /// # Errors
    /// `InvalidArg` that names the keys.
    pub fn check(&self) -> Result<()> {
        let lookahead =
            [&self.lookahead_window_size, &self.lookahead_ngram_size, &self.lookahead_verification_set_size];
        if self.decoding_mode.value == Some(DecodingMode::Lookahead) && lookahead.iter().any(|s| s.value.is_none()) {
            return Err(Error::invalid(
                "decoding_mode is lookahead, which needs lookahead_window_size, lookahead_ngram_size and lookahead_verification_set_size",
            ));
        }
        if let Some(block) = self.tokens_per_block.value.filter(|block| block.count_ones() != 1) {
            return Err(Error::invalid(format!("tokens_per_block is {block}, expected a power of two")));
        }
        Ok(())
    }

    /// Parameters that were given to a role which does not read them.
    pub fn misplaced(&self, role: ModelRole) -> Option<Note> {
        let given = PARAMETERS.iter().filter(|row| (row.source)(self) == Source::Given && !role.reads(row.key));
        let texts = given.map(|row| {
            let readers: Vec<_> = readers(row.key).iter().map(|role| role.word()).collect();
            format!("{} (read by {})", row.key, readers.join(", "))
        });
        let texts: Vec<_> = texts.collect();
        let text = format!("not read by the role {}: {}; move or remove them", role.word(), texts.join("; "));
        (!texts.is_empty()).then(|| warning(text))
    }

    /// One line per value in effect of those that the role reads, for the log at load.
    pub fn effective_values(&self, role: ModelRole) -> String {
        let mut text = String::from("parameters in effect:");
        let told = |row: &&ParameterRow| {
            role.reads(row.key) && (row.effect == Effect::Applied || (row.source)(self) == Source::Given)
        };
        for row in PARAMETERS.iter().filter(told) {
            let source = match (row.source)(self) {
                Source::Given => "given",
                Source::Default => "default",
                Source::Unparsable => "default: the given text is not a value",
                Source::Placeholder => "default: not filled",
            };
            text.push_str(&format!("\n  {} = {} ({source})", row.key, shown(row, self)));
        }
        text
    }
}

impl Loaded {
    /// All that the operator is told at load, in one block: every value in effect with its source, what stands in the
    /// configuration but has no effect and why, what may be a mistake. What may be a mistake follows once more as
    /// warnings, for those who look at nothing else.
    pub fn report(&self, role: ModelRole) -> Vec<Note> {
        let misplaced = self.parameters.misplaced(role);
        let (warnings, facts): (Vec<_>, Vec<_>) =
            self.notes.iter().chain(&misplaced).cloned().partition(|note| note.level == Level::Warning);
        let mut text = self.parameters.effective_values(role);
        facts.iter().chain(&warnings).for_each(|note| text.push_str(&format!("\n{}", note.text)));
        [info(text)].into_iter().chain(warnings).collect()
    }
}

/// The value in effect; where that depends on others, on what.
fn shown(row: &ParameterRow, parameters: &Parameters) -> String {
    match (row.show)(parameters) {
        value if value == "unset" => plain(row.default),
        value => value,
    }
}

/// The words of a default, without the marks of the documentation.
fn plain(default: &str) -> String {
    default.replace('`', "").replacen("unset = ", "", 1)
}

/// Whether a folder holds a model in one of the forms that need no path.
fn holds_model(folder: &Path) -> bool {
    let is_gguf =
        |path: std::path::PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    folder.join("config.json").exists() || entries.map(|entry| entry.path()).any(is_gguf)
}

fn empty_paths(reason: &str) -> Error {
    Error::invalid(format!("Both encoder and decoder model paths are empty: {reason}"))
}

/// The texts of the configuration's parameters. A parameter without `string_value` is the empty text.
fn given_texts(model_config: &Value) -> BTreeMap<String, String> {
    let Some(parameters) = model_config.get("parameters").and_then(Value::as_object) else { return BTreeMap::new() };
    let text = |value: &Value| value.get("string_value").and_then(Value::as_str).unwrap_or_default().to_owned();
    parameters.iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

fn check_ranges(parameters: &Parameters) -> Result<()> {
    let outside = PARAMETERS.iter().filter(|row| (row.source)(parameters) == Source::Given).filter_map(|row| {
        let Range::Numbers(min, max) = row.range else { return None };
        let number = (row.number)(parameters).filter(|number| !(min..=max).contains(number))?;
        Some(format!("{} is {number}, expected {min} to {max}", row.key))
    });
    let outside: Vec<_> = outside.collect();
    if outside.is_empty() { Ok(()) } else { Err(Error::invalid(outside.join("; "))) }
}

fn notes(parameters: &Parameters, given: &BTreeMap<String, String>) -> Vec<Note> {
    let mut notes = Vec::new();
    for row in PARAMETERS.iter().filter(|row| (row.source)(parameters) == Source::Unparsable) {
        let text = given.get(row.key).map_or("", String::as_str);
        let expected = match row.range {
            Range::Words(words) => format!("one of {}", words.join(", ")),
            _ => format!("a value of type {}", row.type_name),
        };
        let default = plain(row.default);
        notes.push(warning(format!(
            "{} is {text:?}, expected {expected}: taken as not specified, will use the default ({default})",
            row.key
        )));
    }
    let placeholders: Vec<_> = given.iter().filter(|(_, text)| is_placeholder(text)).collect();
    if !placeholders.is_empty() {
        // Most have the name of their key.
        let named = placeholders.iter().map(|(key, text)| match text.trim() {
            text if text == format!("${{{key}}}") => (*key).clone(),
            text => format!("{key} ({text})"),
        });
        let named: Vec<_> = named.collect();
        notes.push(warning(format!("placeholders not filled, will use the defaults: {}", named.join(", "))));
    }
    for key in given.keys().filter(|key| !PARAMETERS.iter().any(|row| row.key == **key)) {
        notes.push(warning(match closest_key(key) {
            Some(known) => format!("parameter {key:?} is unknown and ignored; did you mean {known:?}?"),
            None => format!("parameter {key:?} is unknown and ignored"),
        }));
    }
    let without_effect =
        PARAMETERS.iter().filter(|row| row.effect != Effect::Applied && (row.source)(parameters) == Source::Given);
    let reason = |row: &ParameterRow| {
        let why = if row.effect == Effect::Never { "" } else { "not in this version yet. " };
        format!("\n  {} = {}: {why}{}", row.key, (row.show)(parameters), row.doc)
    };
    let reasons: String = without_effect.map(reason).collect();
    if !reasons.is_empty() {
        notes.push(info(format!("accepted without effect:{reasons}")));
    }
    if let Some(DecodingMode::Medusa | DecodingMode::Redrafter | DecodingMode::Eagle | DecodingMode::Lookahead) =
        parameters.decoding_mode.value
    {
        let mode = parameters.decoding_mode.text.as_deref().unwrap_or_default();
        notes.push(warning(format!(
            "decoding_mode is {mode}, whose drafts this version does not make: tokens are the same, one in a step"
        )));
    }
    if parameters.enable_chunked_context.source == Source::Given && parameters.enable_chunked_context.value {
        notes.push(info(
            "enable_chunked_context is set to true, will use context chunking; the paged context attention that it \
             needs is always there, no engine has to be built for it"
                .to_owned(),
        ));
    }
    notes
}

pub(super) fn info(text: String) -> Note {
    Note { level: Level::Info, text }
}

pub(super) fn warning(text: String) -> Note {
    Note { level: Level::Warning, text }
}

fn closest_key(key: &str) -> Option<&'static str> {
    closest(key, PARAMETERS.iter().map(|row| row.key))
}

/// The known key that `key` is most likely a misspelling of.
pub fn closest(key: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let distances = known.map(|known| (edit_distance(key, known), known));
    distances.min().filter(|&(distance, _)| distance <= 1 + key.len() / 5).map(|(_, known)| known)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
