//! The parts of a configuration that its user left out, and the template.

use serde_json::{Value, json};

use crate::adapter::llm::{template_tensor, template_text};
use crate::tensors::bls::{BlsInput, mandatory, outputs, template_inputs};
use crate::tensors::llm::INPUTS as LLM_INPUTS;

/// Client batches of up to this many prompts, where the configuration says nothing.
const MAX_BATCH_SIZE: i64 = 128;

/// Adds inputs, outputs, the batch size and the decoupled policy where they are missing. `None` where nothing is missing.
pub fn complete(config: &Value) -> Option<Value> {
    let mut completed = config.clone();
    let object = completed.as_object_mut()?;
    let missing = |object: &serde_json::Map<String, Value>, key: &str| {
        object.get(key).and_then(Value::as_array).is_none_or(Vec::is_empty)
    };
    if missing(object, "input") {
        let input = |row: &BlsInput| {
            let optional = !mandatory(row);
            json!({ "name": row.name, "data_type": row.data_type, "dims": row.dims, "optional": optional })
        };
        object.insert("input".to_owned(), template_inputs().map(input).collect());
        if object.get("max_batch_size").and_then(Value::as_i64).unwrap_or(0) == 0 {
            object.insert("max_batch_size".to_owned(), json!(MAX_BATCH_SIZE));
        }
    }
    if missing(object, "output") {
        let output = |(name, data_type, dims)| json!({ "name": name, "data_type": data_type, "dims": dims });
        object.insert("output".to_owned(), outputs().map(output).collect());
    }
    if !object.contains_key("model_transaction_policy") {
        object.insert("model_transaction_policy".to_owned(), json!({ "decoupled": true }));
    }
    (completed != *config).then_some(completed)
}

const HEAD: &str = r#"# Text in, text out by calling preprocessing, tensorrt_llm and postprocessing. Made from the table in src/tensors/bls.rs.
name: "tensorrt_llm_bls"
backend: "trtllm"
max_batch_size: 128

# Must be what tensorrt_llm says.
model_transaction_policy {
  decoupled: true
}

# Requests run concurrently in one instance.
instance_group [
  {
    count: 1
    kind: KIND_MODEL
  }
]
"#;

/// `model_repo/tensorrt_llm_bls/config.pbtxt`.
pub fn config_template() -> String {
    let input = |row: &BlsInput| {
        let more = match (mandatory(row), LLM_INPUTS.iter().any(|llm| llm.name == row.name) && row.dims.len() > 1) {
            (true, _) => "",
            (false, true) => "\n    allow_ragged_batch: true\n    optional: true",
            (false, false) => "\n    optional: true",
        };
        template_tensor(row.name, row.data_type, row.dims, more)
    };
    let inputs: Vec<_> = template_inputs().map(input).collect();
    let outputs: Vec<_> =
        outputs().map(|(name, data_type, dims)| template_tensor(name, &data_type, dims, "")).collect();
    let parameters = [
        ("model_role", "bls"),
        ("accumulate_tokens", "${accumulate_tokens}"),
        ("tensorrt_llm_model_name", "${tensorrt_llm_model_name}"),
        ("tensorrt_llm_draft_model_name", "${tensorrt_llm_draft_model_name}"),
        ("multimodal_encoders_name", "${multimodal_encoders_name}"),
    ];
    template_text(HEAD, &inputs, &outputs, &parameters)
}
