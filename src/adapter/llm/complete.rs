//! The parts of a model configuration that its user left out.

use serde_json::{Map, Value, json};

use crate::tensors::config_type;
use crate::tensors::llm::{Declared, INPUTS, InputRow, OUTPUTS, Shape, Use};

/// Client batches of up to this many prompts, where the configuration says nothing.
const MAX_BATCH_SIZE: i64 = 128;

/// Adds inputs, outputs, the batch size and the decoupled policy where they are missing, and keeps everything that is
/// there. `None` where nothing is missing.
pub fn complete(config: &Value, text: bool) -> Option<Value> {
    let mut completed = config.clone();
    let object = completed.as_object_mut()?;
    let empty = |object: &Map<String, Value>, key| object.get(key).and_then(Value::as_array).is_none_or(Vec::is_empty);
    let no_inputs = empty(object, "input");
    if no_inputs {
        object.insert("input".to_owned(), inputs(text));
        if object.get("max_batch_size").and_then(Value::as_i64).unwrap_or(0) == 0 {
            object.insert("max_batch_size".to_owned(), json!(MAX_BATCH_SIZE));
        }
    }
    if empty(object, "output") {
        object.insert("output".to_owned(), outputs(text));
    }
    // Decoupled serves both `generate` (one response) and `generate_stream`.
    if !object.contains_key("model_transaction_policy") {
        object.insert("model_transaction_policy".to_owned(), json!({ "decoupled": true }));
    }
    (completed != *config).then_some(completed)
}

fn inputs(text: bool) -> Value {
    let declared = |row: &&InputRow| match row.declared {
        Declared::Template => true,
        Declared::WithText => text,
        Declared::ByUser => false,
    };
    let entries = INPUTS.iter().filter(declared).flat_map(|row| {
        let aliases = row.aliases.iter().filter(|_| row.usage == Use::Served);
        std::iter::once(&row.name).chain(aliases).map(|name| input(row, name))
    });
    entries.collect()
}

fn input(row: &InputRow, name: &str) -> Value {
    let mut entry = json!({ "name": name, "data_type": config_type(row.dtype), "optional": true });
    match row.shape {
        Shape::Scalar => {
            entry["dims"] = json!([1]);
            entry["reshape"] = json!({ "shape": [] });
        }
        Shape::One => entry["dims"] = json!([1]),
        Shape::Dims(dims) => entry["dims"] = json!(dims),
        Shape::Ragged(dims) => {
            entry["dims"] = json!(dims);
            entry["allow_ragged_batch"] = json!(true);
        }
    }
    entry
}

fn outputs(text: bool) -> Value {
    let entries = OUTPUTS.iter().filter(|row| text || row.name != "text_output");
    entries.map(|row| json!({ "name": row.name, "data_type": config_type(row.dtype), "dims": row.dims })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(config: &Value, key: &str) -> Vec<String> {
        config[key].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_minimal_configuration_gets_everything() {
        let completed =
            complete(&json!({ "name": "llm", "max_batch_size": 0, "input": [], "output": [] }), true).unwrap();
        let inputs = names(&completed, "input");
        for name in ["input_ids", "request_output_len", "max_tokens", "text_input", "stream", "min_length", "stop"] {
            assert!(inputs.iter().any(|input| input == name), "{name}");
        }
        assert_eq!(names(&completed, "output")[..2], ["output_ids", "sequence_length"]);
        assert_eq!(completed["model_transaction_policy"]["decoupled"], true);
        assert_eq!(completed["max_batch_size"], MAX_BATCH_SIZE);
    }

    #[test]
    fn without_a_tokenizer_no_text_is_declared() {
        let completed = complete(&json!({ "name": "llm" }), false).unwrap();
        assert!(!names(&completed, "input").contains(&"text_input".to_owned()));
        assert!(!names(&completed, "output").contains(&"text_output".to_owned()));
    }

    #[test]
    fn what_the_user_gave_stays() {
        let given = json!({
            "max_batch_size": 0,
            "input": [{ "name": "input_ids" }],
            "output": [{ "name": "output_ids" }],
            "model_transaction_policy": { "decoupled": false },
        });
        assert_eq!(complete(&given, true), None);
    }
}
