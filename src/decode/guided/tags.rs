//! Structural tags: free text in which tags with guided contents may stand, rewritten as Lark.
//!
//! Both notations are read: `structures` with `triggers`, and `format`.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::ebnf;
use super::grammar::{quoted, regex_lark};
use crate::error::{Error, Result};

/// Most parts of a description.
const MAX_PARTS: usize = 10_000;

/// The grammar in Lark's notation; it starts with `start`.
///
/// # Errors
/// `InvalidArg` that names the field that is wrong.
pub fn to_lark(text: &str) -> Result<String> {
    let tag: Value = serde_json::from_str(text).map_err(|error| Error::invalid(format!("not JSON: {error}")))?;
    let mut writer = Writer::default();
    let start = match (tag.get("format"), tag.get("structures")) {
        (Some(format), _) => writer.format(format)?,
        (None, Some(structures)) => {
            writer.triggered(&legacy_tags(structures)?, texts(&tag, "triggers")?, &Map::new())?
        }
        (None, None) => return Err(Error::invalid("it has neither format nor structures")),
    };
    Ok(format!("start: {start}\n{}", writer.rules))
}

/// `{begin, schema, end}` as `{begin, content, end}`.
fn legacy_tags(structures: &Value) -> Result<Vec<Value>> {
    let structures = structures.as_array().ok_or_else(|| Error::invalid("structures is no list"))?;
    let tag = |structure: &Value| {
        let mut tag = structure.as_object().cloned().ok_or_else(|| Error::invalid("a structure is no object"))?;
        let schema = tag.remove("schema").ok_or_else(|| Error::invalid("a structure has no schema"))?;
        tag.insert("content".into(), serde_json::json!({ "type": "json_schema", "json_schema": schema }));
        Ok(Value::Object(tag))
    };
    structures.iter().map(tag).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value.get(key).and_then(Value::as_str).ok_or_else(|| Error::invalid(format!("{key} is missing or no text")))
}

fn texts<'a>(value: &'a Value, key: &str) -> Result<Vec<&'a str>> {
    let list = value.get(key).and_then(Value::as_array);
    let texts: Option<Vec<_>> = list.map(|list| list.iter().filter_map(Value::as_str).collect());
    texts
        .filter(|texts| !texts.is_empty() && !texts.iter().any(|text| text.is_empty()))
        .ok_or_else(|| Error::invalid(format!("{key} is missing, empty, or no list of texts")))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    let list = value.get(key).and_then(Value::as_array).filter(|list| !list.is_empty());
    list.map(Vec::as_slice).ok_or_else(|| Error::invalid(format!("{key} is missing, empty or no list")))
}

/// A text as part of a regular expression.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\x{{{:x}}}", c as u32) })
        .collect()
}

#[derive(Default)]
struct Writer {
    rules: String,
    parts: usize,
}

impl Writer {
    fn add(&mut self, name: &str, options: &str, body: &str) -> Result<String> {
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(Error::invalid(format!("it has more than {MAX_PARTS} parts")));
        }
        let name = format!("{name}{}", self.parts);
        let _ = writeln!(self.rules, "{name}{options}: {body}");
        Ok(name)
    }

    /// The rule or terminal of one part.
    fn format(&mut self, format: &Value) -> Result<String> {
        match text(format, "type")? {
            "const_string" => Ok(quoted(text(format, "value")?)),
            "json_schema" => {
                let schema = format.get("json_schema").ok_or_else(|| Error::invalid("json_schema is missing"))?;
                self.add("json_", "", &format!("%json {}", super::grammar::schema(&schema.to_string())?))
            }
            "regex" => self.add("regex_", "", &regex_lark(text(format, "pattern")?)?),
            "grammar" => {
                let rules = ebnf::rules_as(text(format, "grammar")?, &format!("_g{}", self.parts))?;
                self.rules.push_str(&rules.text);
                self.add("grammar_", "", &rules.root)
            }
            "any_text" => {
                let body = without(&optional_texts(format, "excludes"));
                self.add("TEXT_", "", &body)
            }
            "sequence" => {
                let parts =
                    list(format, "elements")?.iter().map(|part| self.format(part)).collect::<Result<Vec<_>>>()?;
                self.add("sequence_", "", &parts.join(" "))
            }
            "or" => {
                let parts =
                    list(format, "elements")?.iter().map(|part| self.format(part)).collect::<Result<Vec<_>>>()?;
                self.add("or_", "", &parts.join(" | "))
            }
            "tag" => {
                let begin = text(format, "begin")?;
                self.tag(format, begin)
            }
            "triggered_tags" => {
                let options = format.as_object().cloned().unwrap_or_default();
                self.triggered(list(format, "tags")?, texts(format, "triggers")?, &options)
            }
            "tags_with_separator" => self.separated(format),
            other => Err(Error::invalid(format!("a format of type {other:?} is not supported"))),
        }
    }

    /// A tag whose beginning is written as `begin`.
    fn tag(&mut self, tag: &Value, begin: &str) -> Result<String> {
        let end = text(tag, "end")?;
        let content = tag.get("content").ok_or_else(|| Error::invalid("a tag has no content"))?;
        // Free text ends where the tag ends, at the first place.
        let rest = if content.get("type").and_then(Value::as_str) == Some("any_text") {
            self.add("until_", "[lazy]", &format!("/(?s:.*){}/", escaped(end)))?
        } else {
            format!("{} {}", self.format(content)?, quoted(end))
        };
        self.add("tag_", "", &format!("{} {rest}", quoted(begin)))
    }

    /// Free text; where a trigger is complete, one of the tags that begin with it goes on.
    fn triggered(&mut self, tags: &[Value], triggers: Vec<&str>, options: &Map<String, Value>) -> Result<String> {
        let flag = |name: &str| options.get(name).and_then(Value::as_bool).unwrap_or(false);
        let mut segments = Vec::new();
        let mut used = vec![false; tags.len()];
        for trigger in &triggers {
            let mut rests = Vec::new();
            for (tag, used) in tags.iter().zip(&mut used) {
                if let Some(rest) = text(tag, "begin")?.strip_prefix(trigger) {
                    *used = true;
                    rests.push(self.tag(tag, rest)?);
                }
            }
            if rests.is_empty() {
                return Err(Error::invalid(format!("no tag begins with the trigger {trigger:?}")));
            }
            let free = self.add("free_", "[lazy]", &format!("/(?s:.*){}/", escaped(trigger)))?;
            segments.push(self.add("segment_", "", &format!("{free} ({})", rests.join(" | ")))?);
        }
        if let Some(unused) = used.iter().position(|used| !used) {
            return Err(Error::invalid(format!("tag {unused} begins with none of the triggers")));
        }
        let mut excluded: Vec<&str> = triggers;
        excluded
            .extend(options.get("excludes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str));
        let tail = self.add("TAIL_", "", &without(&excluded))?;
        let segments = segments.join(" | ");
        let body = match (flag("at_least_one"), flag("stop_after_first")) {
            (false, false) => format!("({segments})* {tail}"),
            (true, false) => format!("({segments})+ {tail}"),
            (false, true) => format!("({segments}) | {tail}"),
            (true, true) => format!("({segments})"),
        };
        self.add("triggered_", "", &body)
    }

    fn separated(&mut self, format: &Value) -> Result<String> {
        let flag = |name: &str| format.get(name).and_then(Value::as_bool).unwrap_or(false);
        let mut tags = Vec::new();
        for tag in list(format, "tags")? {
            tags.push(self.tag(tag, text(tag, "begin")?)?);
        }
        let separator = quoted(text(format, "separator")?);
        let tag = self.add("any_", "", &tags.join(" | "))?;
        let more = if flag("stop_after_first") { String::new() } else { format!(" ({separator} {tag})*") };
        let body = format!("{tag}{more}");
        self.add("separated_", "", &if flag("at_least_one") { body } else { format!("({body})?") })
    }
}

fn optional_texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Text in which none of `excluded` occurs.
fn without(excluded: &[&str]) -> String {
    let excluded: Vec<_> = excluded.iter().filter(|text| !text.is_empty()).map(|text| escaped(text)).collect();
    match excluded.is_empty() {
        true => "/(?s:.*)/".to_owned(),
        false => format!("/(?s:.*)/ & ~/(?s:.*)({})(?s:.*)/", excluded.join("|")),
    }
}
