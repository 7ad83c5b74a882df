//! The tensors of the roles `llmapi` (TensorRT-LLM's LLM-API model) and `vllm` (Triton's vLLM backend).

use super::Row;

const ONE: &[i64] = &[1];
const ANY: &[i64] = &[-1];

/// Inputs of the role `llmapi`.
#[rustfmt::skip]
pub const LLMAPI_INPUTS: &[Row] = &[
    ("text_input", "TYPE_STRING", ANY, false),
    ("image_url", "TYPE_STRING", ANY, true),
    ("streaming", "TYPE_BOOL", ONE, true),
    ("sampling_param_best_of", "TYPE_INT32", ONE, true),
    ("sampling_param_temperature", "TYPE_FP32", ONE, true),
    ("sampling_param_top_k", "TYPE_INT32", ONE, true),
    ("sampling_param_top_p", "TYPE_FP32", ONE, true),
    ("sampling_param_frequency_penalty", "TYPE_FP32", ONE, true),
    ("sampling_param_presence_penalty", "TYPE_FP32", ONE, true),
    ("sampling_param_max_tokens", "TYPE_INT32", ONE, true),
    ("sampling_param_stop", "TYPE_STRING", ANY, true),
    ("sampling_param_seed", "TYPE_UINT64", ONE, true),
    ("sampling_param_exclude_input_from_output", "TYPE_BOOL", ONE, true),
    ("sampling_param_return_perf_metrics", "TYPE_BOOL", ONE, true),
    ("sampling_param_logits_post_processor_name", "TYPE_STRING", ONE, true),
    ("return_finish_reason", "TYPE_BOOL", ONE, true),
    ("return_stop_reason", "TYPE_BOOL", ONE, true),
    ("return_cumulative_logprob", "TYPE_BOOL", ONE, true),
    ("stop", "TYPE_BOOL", ONE, true),
    ("lora_id", "TYPE_UINT64", ONE, true),
    ("lora_name", "TYPE_STRING", ONE, true),
    ("lora_path", "TYPE_STRING", ONE, true),
    ("lora_ckpt_source", "TYPE_STRING", ONE, true),
];

/// Outputs of the role `llmapi`.
#[rustfmt::skip]
pub const LLMAPI_OUTPUTS: &[Row] = &[
    ("text_output", "TYPE_STRING", ANY, false),
    ("finish_reason", "TYPE_STRING", ANY, false),
    ("stop_reason", "TYPE_STRING", ANY, false),
    ("cumulative_logprob", "TYPE_FP32", ANY, false),
    ("kv_cache_reused_block", "TYPE_INT32", ANY, false),
    ("kv_cache_hit_rate", "TYPE_FP32", ANY, false),
    ("kv_cache_alloc_new_blocks", "TYPE_INT32", ANY, false),
    ("kv_cache_alloc_total_blocks", "TYPE_INT32", ANY, false),
    ("kv_cache_missed_block", "TYPE_INT32", ANY, false),
    ("arrival_time_ns", "TYPE_INT64", ONE, false),
    ("first_scheduled_time_ns", "TYPE_INT64", ONE, false),
    ("first_token_time_ns", "TYPE_INT64", ONE, false),
    ("last_token_time_ns", "TYPE_INT64", ONE, false),
    ("acceptance_rate", "TYPE_FP32", ONE, false),
    ("total_accepted_draft_tokens", "TYPE_INT32", ONE, false),
    ("total_draft_tokens", "TYPE_INT32", ONE, false),
];

/// Inputs of the role `vllm`.
#[rustfmt::skip]
pub const VLLM_INPUTS: &[Row] = &[
    ("text_input", "TYPE_STRING", ONE, false),
    ("image", "TYPE_STRING", ANY, true),
    ("stream", "TYPE_BOOL", ONE, true),
    ("sampling_parameters", "TYPE_STRING", ONE, true),
    ("exclude_input_in_output", "TYPE_BOOL", ONE, true),
    ("return_finish_reason", "TYPE_BOOL", ONE, true),
    ("return_cumulative_logprob", "TYPE_BOOL", ONE, true),
    ("return_logprobs", "TYPE_BOOL", ONE, true),
    ("return_num_input_tokens", "TYPE_BOOL", ONE, true),
    ("return_num_output_tokens", "TYPE_BOOL", ONE, true),
    ("embedding_request", "TYPE_STRING", ONE, true),
];

/// Outputs of the role `vllm`.
#[rustfmt::skip]
pub const VLLM_OUTPUTS: &[Row] = &[
    ("text_output", "TYPE_STRING", ANY, false),
    ("finish_reason", "TYPE_STRING", ANY, false),
    ("cumulative_logprob", "TYPE_FP32", ANY, false),
    ("logprobs", "TYPE_STRING", ANY, false),
    ("num_input_tokens", "TYPE_UINT32", ONE, false),
    ("num_output_tokens", "TYPE_UINT32", ANY, false),
];
