//! Reads a `config.pbtxt` without a server: protocol buffers' text format, as far as model configurations use it.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Fields of a model configuration that are lists however often they occur.
const REPEATED: &[&str] =
    &["input", "output", "instance_group", "step", "dims", "shape", "preferred_batch_size", "gpus", "model_warmup"];
/// Fields that are maps of `key` to `value`.
const MAPS: &[&str] = &["parameters", "input_map", "output_map", "inputs"];

/// The configuration in the JSON form that the server gives to backends; what is not in the text is left out.
///
/// # Errors
/// `InvalidArg` with the line and what was expected there.
pub fn parse_config(text: &str) -> Result<Value> {
    let mut parser = Parser { rest: text, line: 1, placeholders: Vec::new() };
    let message = parser.message(None)?;
    match &parser.placeholders[..] {
        [] => Ok(Value::Object(message)),
        [(line, name)] => Err(Error::invalid(format!("line {line}: the unquoted placeholder {name} must be filled"))),
        many => {
            let all = many.iter().map(|(line, name)| format!("line {line}: {name}")).collect::<Vec<_>>().join(", ");
            Err(Error::invalid(format!("{} unquoted placeholders must be filled: {all}", many.len())))
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    /// Unquoted `${…}` with their lines: all of them are told about at once.
    placeholders: Vec<(usize, &'a str)>,
}

impl<'a> Parser<'a> {
    /// Fields up to `end`, or up to the end of the text.
    fn message(&mut self, end: Option<char>) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        loop {
            self.skip();
            match (self.peek(), end) {
                (None, None) => return Ok(fields),
                (None, Some(end)) => return Err(self.expected(&format!("{end:?}"))),
                (Some(c), Some(end)) if c == end => {
                    self.take(c);
                    return Ok(fields);
                }
                (Some(',' | ';'), _) => self.take_any(),
                _ => self.field(&mut fields)?,
            }
        }
    }

    fn field(&mut self, fields: &mut Map<String, Value>) -> Result<()> {
        let name = self.word().to_owned();
        if name.is_empty() {
            return Err(self.expected("the name of a field"));
        }
        self.skip();
        let colon = self.peek() == Some(':');
        if colon {
            self.take_any();
            self.skip();
        }
        let values = match self.peek() {
            Some('[') => self.list()?,
            Some('{' | '<') => vec![self.value()?],
            _ if colon => vec![self.value()?],
            _ => return Err(self.expected(&format!("':' or '{{' after {name}"))),
        };
        for value in values {
            add(fields, &name, value);
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<Value>> {
        self.take_any();
        let mut values = Vec::new();
        loop {
            self.skip();
            match self.peek() {
                Some(']') => {
                    self.take_any();
                    return Ok(values);
                }
                Some(',') => self.take_any(),
                None => return Err(self.expected("']'")),
                _ => values.push(self.value()?),
            }
        }
    }

    fn value(&mut self) -> Result<Value> {
        match self.peek() {
            Some('{') => {
                self.take_any();
                self.message(Some('}')).map(Value::Object)
            }
            Some('<') => {
                self.take_any();
                self.message(Some('>')).map(Value::Object)
            }
            Some('"' | '\'') => self.strings().map(Value::String),
            Some('$') => {
                let end = self.rest.find(['}', '\n']).map_or(self.rest.len(), |at| at + 1);
                let (placeholder, rest) = self.rest.split_at(end);
                self.placeholders.push((self.line, placeholder.trim()));
                self.line += placeholder.matches('\n').count();
                self.rest = rest;
                Ok(Value::Null)
            }
            _ => match self.word() {
                "" => Err(self.expected("a value")),
                "true" | "True" | "t" => Ok(Value::Bool(true)),
                "false" | "False" | "f" => Ok(Value::Bool(false)),
                word => Ok(word.parse::<i64>().map(Value::from).or_else(|_| word.parse::<f64>().map(Value::from)))
                    .map(|number: std::result::Result<Value, _>| number.unwrap_or_else(|_| json!(word))),
            },
        }
    }

    /// Neighbouring strings are one.
    fn strings(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        while let Some(quote @ ('"' | '\'')) = self.peek() {
            self.take_any();
            loop {
                match self.peek() {
                    None | Some('\n') => return Err(self.expected(&format!("the closing {quote}"))),
                    Some(c) if c == quote => break self.take_any(),
                    Some('\\') => {
                        self.take_any();
                        self.escape(&mut bytes)?;
                    }
                    Some(c) => {
                        self.take_any();
                        bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
            }
            self.skip();
        }
        String::from_utf8(bytes).map_err(|_| self.expected("UTF-8"))
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        let Some(c) = self.peek() else { return Err(self.expected("an escaped character")) };
        self.take_any();
        match c {
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            'r' => bytes.push(b'\r'),
            other => bytes.extend(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        Ok(())
    }

    fn word(&mut self) -> &'a str {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '.');
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// Blanks and comments.
    fn skip(&mut self) {
        while let Some(c) = self.peek() {
            if c == '#' {
                self.rest = &self.rest[self.rest.find('\n').unwrap_or(self.rest.len())..];
            } else if c.is_whitespace() {
                self.take_any();
            } else {
                return;
            }
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take_any(&mut self) {
        if let Some(c) = self.peek() {
            self.take(c);
        }
    }

    fn take(&mut self, c: char) {
        self.line += usize::from(c == '\n');
        self.rest = &self.rest[c.len_utf8()..];
    }

    fn expected(&self, what: &str) -> Error {
        let got: String = self.rest.chars().take_while(|c| *c != '\n').take(20).collect();
        let got = if self.rest.is_empty() { "the end of the file".to_owned() } else { format!("{got:?}") };
        Error::invalid(format!("line {}: expected {what}, got {got}", self.line))
    }
}

fn add(fields: &mut Map<String, Value>, name: &str, value: Value) {
    if MAPS.contains(&name) {
        let map = fields.entry(name).or_insert_with(|| json!({}));
        if let (Some(map), Some(key)) = (map.as_object_mut(), value["key"].as_str()) {
            map.insert(key.to_owned(), value["value"].clone());
        }
    } else if REPEATED.contains(&name) {
        let list = fields.entry(name).or_insert_with(|| json!([]));
        list.as_array_mut().into_iter().for_each(|list| list.push(value.clone()));
    } else {
        fields.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_the_json_form_that_backends_see() {
        let text = r#"
            # a comment
            name: "llm" backend: 'trt' "llm"  # in two parts
            max_batch_size: 8,
            model_transaction_policy { decoupled: True }
            input [ { name: "a" data_type: TYPE_INT32 dims: [ -1, 2 ] }, { name: "b" dims: 1 } ]
            output { name: "c" }
            output < name: "d\"e" >
            parameters { key: "x" value: { string_value: "1.5" } }
            parameters: { key: "y", value: { string_value: "${y}" } };
        "#;
        let expected = json!({
            "name": "llm",
            "backend": "trtllm",
            "max_batch_size": 8,
            "model_transaction_policy": { "decoupled": true },
            "input": [{ "name": "a", "data_type": "TYPE_INT32", "dims": [-1, 2] }, { "name": "b", "dims": [1] }],
            "output": [{ "name": "c" }, { "name": "d\"e" }],
            "parameters": { "x": { "string_value": "1.5" }, "y": { "string_value": "${y}" } },
        });
        assert_eq!(parse_config(text).unwrap(), expected);
    }

    #[test]
    fn mistakes_are_found_by_line() {
        for (text, fragment) in [
            (
                "name: \"a\"\nmax_batch_size: ${triton_max_batch_size}\n",
                "line 2: the unquoted placeholder ${triton_max_batch_size}",
            ),
            (
                "a: ${x} b: [ ${y}, 1 ]\nc: ${z}",
                "3 unquoted placeholders must be filled: line 1: ${x}, line 1: ${y}, line 2: ${z}",
            ),
            ("name: \"a", "line 1: expected the closing \""),
            ("input [\n {\n", "line 3: expected '}', got the end of the file"),
            ("name \"a\"", "expected ':' or '{' after name"),
            ("a: ]", "expected a value, got \"]\""),
            ("}", "expected the name of a field"),
        ] {
            let error = parse_config(text).unwrap_err();
            assert!(error.message().contains(fragment), "{error} lacks {fragment}");
        }
    }
}
