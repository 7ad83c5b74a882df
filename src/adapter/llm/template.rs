//! `model_repo/tensorrt_llm/config.pbtxt`, written from the tables.

use std::fmt::Write;

use crate::tensors::config_type;
use crate::tensors::llm::{Declared, INPUTS, InputRow, OUTPUTS, Shape, Use};

/// Parameters of the template: key and text. Names in `${…}` are upstream's.
#[rustfmt::skip]
const TEMPLATE_PARAMETERS: &[(&str, &str)] = &[
    ("gpt_model_type", "inflight_fused_batching"),
    ("gpt_model_path", "${engine_dir}"),
    ("checkpoint_dir", "${checkpoint_dir}"),
    ("encoder_model_path", "${encoder_engine_dir}"),
    ("tokenizer_dir", "${tokenizer_dir}"),
    ("device", "${device}"),
    ("cpu_threads", "${cpu_threads}"),
    ("max_batch_size", "${engine_max_batch_size}"),
    ("max_num_tokens", "${max_num_tokens}"),
    ("max_seq_len", "${max_seq_len}"),
    ("max_tokens_in_paged_kv_cache", "${max_tokens_in_paged_kv_cache}"),
    ("max_attention_window_size", "${max_attention_window_size}"),
    ("sink_token_length", "${sink_token_length}"),
    ("batch_scheduler_policy", "${batch_scheduler_policy}"),
    ("kv_cache_free_gpu_mem_fraction", "${kv_cache_free_gpu_mem_fraction}"),
    ("cross_kv_cache_fraction", "${cross_kv_cache_fraction}"),
    ("kv_cache_host_memory_bytes", "${kv_cache_host_memory_bytes}"),
    ("kv_event_sink", "${kv_event_sink}"),
    ("kv_event_topic", "${kv_event_topic}"),
    ("exclude_input_in_output", "${exclude_input_in_output}"),
    ("cancellation_check_period_ms", "${cancellation_check_period_ms}"),
    ("stats_check_period_ms", "${stats_check_period_ms}"),
    ("recv_poll_period_ms", "${recv_poll_period_ms}"),
    ("iter_stats_max_iterations", "${iter_stats_max_iterations}"),
    ("request_stats_max_iterations", "${request_stats_max_iterations}"),
    ("enable_kv_cache_reuse", "${enable_kv_cache_reuse}"),
    ("normalize_log_probs", "${normalize_log_probs}"),
    ("enable_chunked_context", "${enable_chunked_context}"),
    ("gpu_device_ids", "${gpu_device_ids}"),
    ("participant_ids", "${participant_ids}"),
    ("num_nodes", "${num_nodes}"),
    ("gpu_weights_percent", "${gpu_weights_percent}"),
    ("lora_cache_optimal_adapter_size", "${lora_cache_optimal_adapter_size}"),
    ("lora_cache_max_adapter_size", "${lora_cache_max_adapter_size}"),
    ("lora_cache_gpu_memory_fraction", "${lora_cache_gpu_memory_fraction}"),
    ("lora_cache_host_memory_bytes", "${lora_cache_host_memory_bytes}"),
    ("lora_prefetch_dir", "${lora_prefetch_dir}"),
    ("max_beam_width", "${max_beam_width}"),
    ("decoding_mode", "${decoding_mode}"),
    ("lookahead_window_size", "${lookahead_window_size}"),
    ("lookahead_ngram_size", "${lookahead_ngram_size}"),
    ("lookahead_verification_set_size", "${lookahead_verification_set_size}"),
    ("medusa_choices", "${medusa_choices}"),
    ("eagle_choices", "${eagle_choices}"),
    ("cuda_graph_mode", "${cuda_graph_mode}"),
    ("cuda_graph_cache_size", "${cuda_graph_cache_size}"),
    ("speculative_decoding_fast_logits", "${speculative_decoding_fast_logits}"),
    ("guided_decoding_backend", "${guided_decoding_backend}"),
    ("xgrammar_tokenizer_info_path", "${xgrammar_tokenizer_info_path}"),
    ("sampling_order", "${sampling_order}"),
];

const HEAD: &str = r#"# The LLM: tokens or text in, tokens or text out. Placeholders that are not filled have their defaults, except
# engine_dir: the folder of the model. The meaning of each parameter is in docs/parameters.md, of each tensor in
# docs/tensors.md. A configuration of your own needs only name, backend and gpt_model_path; the rest is completed.
name: "tensorrt_llm"
backend: "trtllm"
max_batch_size: 128

# true: streaming, batches and several sequences per prompt. false: /infer and unary gRPC instead.
model_transaction_policy {
  decoupled: true
}

dynamic_batching {
  preferred_batch_size: [ 128 ]
  max_queue_delay_microseconds: 0
  # Most requests that wait in the engine; 0: no limit.
  default_queue_policy: { max_queue_size: 0 }
}

# The backend chooses its devices itself, so this works with and without a GPU.
instance_group [
  {
    count: 1
    kind: KIND_MODEL
  }
]
"#;

/// The text of the template.
pub fn config_template() -> String {
    let declared = INPUTS.iter().filter(|row| row.declared != Declared::ByUser);
    let inputs: Vec<_> = declared.flat_map(names).map(|(row, name)| input(row, name)).collect();
    let outputs: Vec<_> =
        OUTPUTS.iter().map(|row| template_tensor(row.name, &config_type(row.dtype), row.dims, "")).collect();
    template_text(HEAD, &inputs, &outputs, TEMPLATE_PARAMETERS)
}

/// A template of its parts: `inputs` and `outputs` as [`template_tensor`] writes them.
pub fn template_text(head: &str, inputs: &[String], outputs: &[String], parameters: &[(&str, &str)]) -> String {
    let mut text = format!("{head}\ninput [\n{}\n]\n\noutput [\n{}\n]\n", inputs.join(",\n"), outputs.join(",\n"));
    for (key, value) in parameters {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nparameters: {{\n  key: \"{key}\"\n  value: {{ string_value: \"{value}\" }}\n}}");
    }
    text.push('\n');
    text
}

/// The row under its name and, where it is served, under its aliases.
fn names(row: &'static InputRow) -> impl Iterator<Item = (&'static InputRow, &'static str)> {
    let aliases = row.aliases.iter().filter(|_| row.usage == Use::Served);
    std::iter::once(row.name).chain(aliases.copied()).map(move |name| (row, name))
}

fn input(row: &InputRow, name: &str) -> String {
    let dtype = config_type(row.dtype);
    match row.shape {
        Shape::Scalar => template_tensor(name, &dtype, &[1], "\n    reshape: { shape: [ ] }\n    optional: true"),
        Shape::One => template_tensor(name, &dtype, &[1], "\n    optional: true"),
        Shape::Dims(dims) => template_tensor(name, &dtype, dims, "\n    optional: true"),
        Shape::Ragged(dims) => {
            template_tensor(name, &dtype, dims, "\n    allow_ragged_batch: true\n    optional: true")
        }
    }
}

/// One tensor of a template; `more` is what follows its dims.
pub fn template_tensor(name: &str, dtype: &str, dims: &[i64], more: &str) -> String {
    let dims: Vec<_> = dims.iter().map(i64::to_string).collect();
    format!("  {{\n    name: \"{name}\"\n    data_type: {dtype}\n    dims: [ {} ]{more}\n  }}", dims.join(", "))
}
