//! From the text of a guide to the notation of the grammar engine.

use std::fmt::Write;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::{GuideKind, GuideSource, MAX_GUIDE_BYTES, ebnf, tags};
use crate::error::{Error, Result};

/// Deepest nesting of brackets outside of JSON, whose reader has a bound of its own.
const MAX_NESTING: usize = 200;

/// Most answers of a `choice` guide.
const MAX_CHOICES: usize = 50_000;

/// # Errors
/// `InvalidArg` that says what is wrong with the text.
pub fn build(source: &GuideSource) -> Result<TopLevelGrammar> {
    let text = source.text.as_str();
    if text.len() > MAX_GUIDE_BYTES {
        return Err(Error::invalid(format!("it has {} bytes, expected at most {MAX_GUIDE_BYTES}", text.len())));
    }
    if source.kind == GuideKind::Json {
        if !text.trim().is_empty() {
            return Err(Error::invalid("a json guide has no text; json_schema takes a schema"));
        }
        return Ok(TopLevelGrammar::from_json_schema(json!({ "type": "object" })));
    }
    if text.trim().is_empty() && source.kind != GuideKind::Regex {
        return Err(Error::invalid("it is empty"));
    }
    match source.kind {
        GuideKind::Json | GuideKind::JsonSchema => Ok(TopLevelGrammar::from_json_schema(schema(text)?)),
        GuideKind::Regex => Ok(TopLevelGrammar::from_lark(format!("start: {}\n", regex_lark(text)?))),
        GuideKind::EbnfGrammar => Ok(TopLevelGrammar::from_lark(ebnf::to_lark(checked_nesting(text)?)?)),
        GuideKind::Choice => Ok(TopLevelGrammar::from_lark(choice(text)?)),
        GuideKind::Lark => Ok(TopLevelGrammar::from_lark(checked_nesting(text)?.to_owned())),
        GuideKind::StructuralTag => Ok(TopLevelGrammar::from_lark(tags::to_lark(text)?)),
    }
}

/// A JSON schema: an object, or `true` for any value.
pub fn schema(text: &str) -> Result<Value> {
    let schema: Value = serde_json::from_str(text).map_err(|error| Error::invalid(format!("not JSON: {error}")))?;
    match schema {
        Value::Object(_) | Value::Bool(true) => Ok(schema),
        Value::Bool(false) => Err(Error::invalid("the schema false fits nothing")),
        other => Err(Error::invalid(format!("a JSON schema is an object, not {}", kind_name(&other)))),
    }
}

fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// `/…/` of a regular expression that fits the whole answer: anchors around it say nothing.
pub fn regex_lark(text: &str) -> Result<String> {
    let text = checked_nesting(text)?;
    let text = text.strip_prefix('^').unwrap_or(text);
    let escapes = text.chars().rev().skip(1).take_while(|&c| c == '\\').count();
    let text = if escapes % 2 == 0 { text.strip_suffix('$').unwrap_or(text) } else { text };
    // An empty expression would end the line.
    Ok(if text.is_empty() { "\"\"".to_owned() } else { format!("/{}/", llguidance::regex_to_lark(text, "")) })
}

/// A text in quotes.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn choice(text: &str) -> Result<String> {
    let choices: Vec<String> = serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("expected a JSON list of texts: {error}")))?;
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        return Err(Error::invalid(format!("it has {} answers, expected 1 to {MAX_CHOICES}", choices.len())));
    }
    // One terminal: an answer that begins another one is not cut off by it.
    let mut lark = String::from("start: ANSWER\nANSWER: ");
    for (index, choice) in choices.iter().enumerate() {
        let _ = write!(lark, "{}{}", if index > 0 { " | " } else { "" }, quoted(choice));
    }
    lark.push('\n');
    Ok(lark)
}

/// Parsers of grammars descend into brackets by recursion.
fn checked_nesting(text: &str) -> Result<&str> {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_NESTING {
        return Err(Error::invalid(format!("its brackets are nested {deepest} deep, expected at most {MAX_NESTING}")));
    }
    Ok(text)
}
