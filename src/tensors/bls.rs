//! The tensors of the role `bls`: what they are called here, in the preprocessing model and in the LLM.

use super::llm::OUTPUTS as LLM_OUTPUTS;

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
    row("return_kv_cache_reuse_stats", "TYPE_BOOL", ONE, Llm("return_kv_cache_reuse_stats")),
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

/// The inputs of the template; the LLM's has no `return_kv_cache_reuse_stats` either, whose users declare it in both.
pub fn template_inputs() -> impl Iterator<Item = &'static BlsInput> {
    INPUTS.iter().filter(|row| row.name != "return_kv_cache_reuse_stats")
}

/// The row of an input.
pub fn find(name: &str) -> Option<&'static BlsInput> {
    INPUTS.iter().find(|row| row.name == name)
}

/// Names, types and dims of the outputs.
pub fn outputs() -> impl Iterator<Item = (&'static str, String, &'static [i64])> {
    let text = std::iter::once(("text_output", "TYPE_STRING".to_owned(), ANY1));
    let passed = LLM_OUTPUTS.iter().filter(|row| !NOT_PASSED.contains(&row.name) && row.name != "text_output");
    text.chain(passed.map(|row| (row.name, format!("TYPE_{}", row.dtype.name()), row.dims)))
}

/// Whether a request cannot do without the input.
pub fn mandatory(row: &BlsInput) -> bool {
    matches!(row.name, "text_input" | "max_tokens")
}
