//! The tensors of the role: what they are called here, in the preprocessing model and in the LLM.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::adapter::llm::{INPUTS as LLM_INPUTS, OUTPUTS as LLM_OUTPUTS};

/// Where an input goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The preprocessing model, under this name.
    Preprocessing(&'static str),
    /// The LLM, under this name.
    Llm(&'static str),
    /// It is read here.
    Here,
    /// Refused unless it has no element or is 0.
    Refused,
}

use To::{Here, Llm, Preprocessing, Refused};

/// One input.
pub struct BlsInput {
    pub name: &'static str,
    pub data_type: &'static str,
    pub dims: &'static [i64],
    pub to: To,
}

const fn row(name: &'static str, data_type: &'static str, dims: &'static [i64], to: To) -> BlsInput {
    BlsInput { name, data_type, dims, to }
}

const ONE: &[i64] = &[1];
const ANY1: &[i64] = &[-1];
const ANY2: &[i64] = &[-1, -1];
const IMAGE: &[i64] = &[-1, -1, -1, -1];

/// Every input, in the template's order.
#[rustfmt::skip]
pub const INPUTS: &[BlsInput] = &[
    row("text_input", "TYPE_STRING", ONE, Preprocessing("QUERY")),
    row("decoder_text_input", "TYPE_STRING", ONE, Preprocessing("DECODER_QUERY")),
    row("image_input", "TYPE_FP16", &[-1, 3, -1, -1], Refused),
    row("image_bytes_input", "TYPE_UINT8", IMAGE, Refused),
    row("image_url_input", "TYPE_STRING", ONE, Refused),
    row("video_bytes_input", "TYPE_UINT8", IMAGE, Refused),
    row("max_tokens", "TYPE_INT32", ONE, Preprocessing("REQUEST_OUTPUT_LEN")),
    row("bad_words", "TYPE_STRING", ANY1, Preprocessing("BAD_WORDS_DICT")),
    row("stop_words", "TYPE_STRING", ANY1, Preprocessing("STOP_WORDS_DICT")),
    row("exclude_input_in_output", "TYPE_BOOL", ONE, Llm("exclude_input_in_output")),
    row("end_id", "TYPE_INT32", ONE, Preprocessing("END_ID")),
    row("pad_id", "TYPE_INT32", ONE, Preprocessing("PAD_ID")),
    row("top_k", "TYPE_INT32", ONE, Llm("runtime_top_k")),
    row("top_p", "TYPE_FP32", ONE, Llm("runtime_top_p")),
    row("temperature", "TYPE_FP32", ONE, Llm("temperature")),
    row("length_penalty", "TYPE_FP32", ONE, Llm("len_penalty")),
    row("repetition_penalty", "TYPE_FP32", ONE, Llm("repetition_penalty")),
    row("min_tokens", "TYPE_INT32", ONE, Llm("min_tokens")),
    row("min_length", "TYPE_INT32", ONE, Llm("min_length")),
    row("presence_penalty", "TYPE_FP32", ONE, Llm("presence_penalty")),
    row("frequency_penalty", "TYPE_FP32", ONE, Llm("frequency_penalty")),
    row("seed", "TYPE_UINT64", ONE, Llm("seed")),
    row("random_seed", "TYPE_UINT64", ONE, Llm("random_seed")),
    row("return_log_probs", "TYPE_BOOL", ONE, Llm("return_log_probs")),
    row("return_context_logits", "TYPE_BOOL", ONE, Llm("return_context_logits")),
    row("return_generation_logits", "TYPE_BOOL", ONE, Llm("return_generation_logits")),
    row("return_perf_metrics", "TYPE_BOOL", ONE, Llm("return_perf_metrics")),
    row("return_num_input_tokens", "TYPE_BOOL", ONE, Llm("return_num_input_tokens")),
    row("return_num_output_tokens", "TYPE_BOOL", ONE, Llm("return_num_output_tokens")),
    row("num_return_sequences", "TYPE_INT32", ONE, Here),
    row("beam_width", "TYPE_INT32", ONE, Llm("beam_width")),
    row("stream", "TYPE_BOOL", ONE, Llm("streaming")),
    row("prompt_embedding_table", "TYPE_FP16", ANY2, Llm("prompt_embedding_table")),
    row("prompt_table_extra_id", "TYPE_UINT64", ONE, Preprocessing("PROMPT_TABLE_EXTRA_ID")),
    row("prompt_vocab_size", "TYPE_INT32", ONE, Llm("prompt_vocab_size")),
    row("embedding_bias_words", "TYPE_STRING", ANY1, Preprocessing("EMBEDDING_BIAS_WORDS")),
    row("embedding_bias_weights", "TYPE_FP32", ANY1, Preprocessing("EMBEDDING_BIAS_WEIGHTS")),
    row("num_draft_tokens", "TYPE_INT32", ONE, Here),
    row("use_draft_logits", "TYPE_BOOL", ONE, Here),
    row("lora_task_id", "TYPE_UINT64", ONE, Llm("lora_task_id")),
    row("lora_weights", "TYPE_FP16", ANY2, Llm("lora_weights")),
    row("lora_config", "TYPE_INT32", &[-1, 3], Llm("lora_config")),
    row("guided_decoding_guide_type", "TYPE_STRING", ONE, Llm("guided_decoding_guide_type")),
    row("guided_decoding_guide", "TYPE_STRING", ONE, Llm("guided_decoding_guide")),
];

/// Outputs of the preprocessing model and the inputs of the LLM that they become.
pub const FROM_PREPROCESSING: &[(&str, &str)] = &[
    ("INPUT_ID", "input_ids"),
    ("DECODER_INPUT_ID", "decoder_input_ids"),
    ("REQUEST_INPUT_LEN", "input_lengths"),
    ("REQUEST_OUTPUT_LEN", "request_output_len"),
    ("BAD_WORDS_IDS", "bad_words_list"),
    ("STOP_WORDS_IDS", "stop_words_list"),
    ("EMBEDDING_BIAS", "embedding_bias"),
    ("OUT_END_ID", "end_id"),
    ("OUT_PAD_ID", "pad_id"),
    ("OUT_PROMPT_TABLE_EXTRA_IDS", "prompt_table_extra_ids"),
];

/// The LLM's outputs that are none of this role's.
const NOT_PASSED: [&str; 8] = [
    "output_ids",
    "sequence_length",
    "context_phase_params",
    "top_log_prob_ids",
    "top_log_probs",
    "prompt_log_probs",
    "finish_reason",
    "seed",
];

/// The row of an input.
pub fn find(name: &str) -> Option<&'static BlsInput> {
    INPUTS.iter().find(|row| row.name == name)
}

/// Names, types and dims of the outputs.
fn outputs() -> impl Iterator<Item = (&'static str, String, &'static [i64])> {
    let text = std::iter::once(("text_output", "TYPE_STRING".to_owned(), ANY1));
    let passed = LLM_OUTPUTS.iter().filter(|row| !NOT_PASSED.contains(&row.name) && row.name != "text_output");
    text.chain(passed.map(|row| (row.name, format!("TYPE_{}", row.dtype.name()), row.dims)))
}

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
        object.insert("input".to_owned(), INPUTS.iter().map(input).collect());
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

fn mandatory(row: &BlsInput) -> bool {
    matches!(row.name, "text_input" | "max_tokens")
}

const HEAD: &str = r#"# Text in, text out by calling preprocessing, tensorrt_llm and postprocessing. Made from the table in src/adapter/roles/bls/.
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
    let mut text = HEAD.to_owned();
    let entry = |name: &str, data_type: &str, dims: &[i64], more: &str| {
        let dims: Vec<_> = dims.iter().map(i64::to_string).collect();
        format!("  {{\n    name: \"{name}\"\n    data_type: {data_type}\n    dims: [ {} ]{more}\n  }}", dims.join(", "))
    };
    let input = |row: &BlsInput| {
        let more = match (mandatory(row), LLM_INPUTS.iter().any(|llm| llm.name == row.name) && row.dims.len() > 1) {
            (true, _) => "",
            (false, true) => "\n    allow_ragged_batch: true\n    optional: true",
            (false, false) => "\n    optional: true",
        };
        entry(row.name, row.data_type, row.dims, more)
    };
    let inputs: Vec<_> = INPUTS.iter().map(input).collect();
    let outputs: Vec<_> = outputs().map(|(name, data_type, dims)| entry(name, &data_type, dims, "")).collect();
    // Writing to a String cannot fail.
    let _ = write!(text, "\ninput [\n{}\n]\n\noutput [\n{}\n]\n", inputs.join(",\n"), outputs.join(",\n"));
    for (key, value) in [
        ("model_role", "bls"),
        ("accumulate_tokens", "${accumulate_tokens}"),
        ("tensorrt_llm_model_name", "${tensorrt_llm_model_name}"),
        ("tensorrt_llm_draft_model_name", "${tensorrt_llm_draft_model_name}"),
        ("multimodal_encoders_name", "${multimodal_encoders_name}"),
    ] {
        let _ = write!(text, "\nparameters: {{\n  key: \"{key}\"\n  value: {{ string_value: \"{value}\" }}\n}}");
    }
    text.push('\n');
    text
}
