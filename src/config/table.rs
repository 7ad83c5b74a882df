//! The table of parameters.

use super::choices::{
    BatchSchedulerPolicy, ContextChunkingPolicy, DecodingMode, DeviceKind, FatalAction, GptModelType, GuidedBackend,
    LoadFormat, ModelRole, SamplingOrder,
};
use super::value::{BraceLists, FromParameter, GpuLists, InstanceLists, Switch, TenantWeights, is_placeholder};

/// Where the value of a parameter comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration.
    Given,
    /// The parameter is missing or empty: the default.
    Default,
    /// The parameter's text is none of its type: the default.
    Unparsable,
    /// The parameter is an unsubstituted `${…}`: the default.
    Placeholder,
}

/// The value of one parameter.
#[derive(Clone, Debug)]
pub struct Setting<T> {
    /// What is in effect.
    pub value: T,
    /// Where it comes from.
    pub source: Source,
    /// The text of the configuration.
    pub text: Option<String>,
}

impl<T> Setting<T> {
    fn of_default(value: T) -> Self {
        Self { value, source: Source::Default, text: None }
    }
}

impl<T: FromParameter> Setting<T> {
    fn set(&mut self, text: &str) -> Source {
        self.text = Some(text.to_owned());
        self.source = match T::from_parameter(text) {
            Some(value) => {
                self.value = value;
                Source::Given
            }
            None if text.is_empty() => Source::Default,
            None if is_placeholder(text) => Source::Placeholder,
            None => Source::Unparsable,
        };
        self.source
    }
}

/// What a parameter does in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does what its documentation says.
    Applied,
    /// It is parsed and checked; the feature that it configures is not there yet.
    NotYet,
    /// It configures something that this engine does not have; accepted so that existing repositories load.
    Never,
}

/// What values a parameter may have beyond its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    Any,
    /// Both ends included. Outside: the model does not load.
    Numbers(f64, f64),
    /// One of these words.
    Words(&'static [&'static str]),
}

/// One parameter.
pub struct ParameterRow {
    /// Key in `parameters { key: … }`.
    pub key: &'static str,
    pub type_name: &'static str,
    /// The default in words.
    pub default: &'static str,
    pub range: Range,
    pub effect: Effect,
    pub doc: &'static str,
    /// Parses the text of the configuration into the field.
    pub set: fn(&mut Parameters, &str) -> Source,
    /// The value in effect, for the log.
    pub show: fn(&Parameters) -> String,
    /// The value in effect as a number, for the range.
    pub number: fn(&Parameters) -> Option<f64>,
    /// Where the value in effect comes from.
    pub source: fn(&Parameters) -> Source,
    /// The text of the configuration.
    pub text: fn(&Parameters) -> Option<&str>,
}

macro_rules! parameters {
    ($($field:ident $key:literal : $type:ty = $default:expr, $default_text:literal, $range:expr, $effect:ident, $doc:literal;)+) => {
        /// The parameters of one model, each with its source.
        #[derive(Clone, Debug)]
        pub struct Parameters {
            $(#[doc = $doc] pub $field: Setting<$type>,)+
        }

        impl Default for Parameters {
            fn default() -> Self {
                Self { $($field: Setting::of_default($default),)+ }
            }
        }

        /// Every parameter key, in the order of the documentation.
        pub const PARAMETERS: &[ParameterRow] = &[$(
            ParameterRow {
                key: $key,
                type_name: <$type as FromParameter>::TYPE,
                default: $default_text,
                range: $range,
                effect: Effect::$effect,
                doc: $doc,
                set: |parameters, text| parameters.$field.set(text),
                show: |parameters| parameters.$field.value.show(),
                number: |parameters| parameters.$field.value.number(),
                source: |parameters| parameters.$field.source,
                text: |parameters| parameters.$field.text.as_deref(),
            },
        )+];
    };
}

const ANY: Range = Range::Any;
const POSITIVE: Range = Range::Numbers(1.0, i32::MAX as f64);
const COUNT: Range = Range::Numbers(0.0, i32::MAX as f64);
const FRACTION: Range = Range::Numbers(0.0, 1.0);

parameters! {
    model_role "model_role": Option<String> = None, "`llm`, or by the files of the version folder", Range::Words(ModelRole::WORDS), Applied,
        "What this model does. `llm`: tokens or text in, tokens or text out; `preprocessing`: text to tokens; `postprocessing`: tokens to text; `bls`: text in, text out by calling the three others; `llmapi` and `vllm`: the LLM with the tensors of those backends' models, see docs/other_backends.md. A version folder with a `model.yaml` or a `model.json` means them by itself. Any other word: the model does not load.";
    gpt_model_type "gpt_model_type": Option<String> = None, "`inflight_fused_batching`", Range::Words(GptModelType::WORDS), Applied,
        "How requests share steps: in-flight (both words mean the same) or static batching (`V1`, without streaming). Any other text, an unsubstituted placeholder included: the model does not load.";
    gpt_model_path "gpt_model_path": Option<String> = None, "the version folder of the model, if it holds a `config.json` or a GGUF file", ANY, Applied,
        "The model: a Hugging Face folder (`config.json`, `*.safetensors`), a TensorRT-LLM checkpoint (`config.json`, `rank*.safetensors`) or engine folder, a GGUF file or a folder with one. docs/checkpoints.md has the details.";
    checkpoint_dir "checkpoint_dir": Option<String> = None, "searched: docs/checkpoints.md", ANY, Applied,
        "Where the weights are if `gpt_model_path` is an engine folder: the Hugging Face folder or TensorRT-LLM checkpoint that the engine was built from.";
    load_format "load_format": LoadFormat = LoadFormat::Auto, "`auto`", Range::Words(LoadFormat::WORDS), Applied,
        "`dummy`: only the model's `config.json` is read and its weights are made up, to measure speed without a checkpoint. `trtllm bench repository` writes such a model.";
    encoder_model_path "encoder_model_path": Option<String> = None, "unset", ANY, NotYet,
        "Folder of the encoder of an encoder-decoder model. A folder that exists is refused: such models are not served yet.";
    tokenizer_dir "tokenizer_dir": Option<String> = None, "the model's folder, if it holds a `tokenizer.json`", ANY, Applied,
        "Folder of the tokenizer. Mandatory for the roles `preprocessing` and `postprocessing`; with one the LLM also takes `text_input` and answers `text_output`.";
    device "device": DeviceKind = DeviceKind::Auto, "`auto`", Range::Words(DeviceKind::WORDS), Applied,
        "Where the model runs. `auto`: the GPU where there is one, else the CPU.";
    cpu_threads "cpu_threads": i32 = 0, "0 = all cores", COUNT, Applied,
        "Threads of the CPU device.";
    max_batch_size "max_batch_size": Option<i32> = None, "the engine folder's, else 64", POSITIVE, Applied,
        "Most sequences that run together in the engine. Not the setting of the same name outside `parameters`, which bounds the client's batch dimension.";
    max_num_tokens "max_num_tokens": Option<i32> = None, "by device", POSITIVE, Applied,
        "Most tokens in one step of the engine.";
    max_seq_len "max_seq_len": Option<i32> = None, "the engine folder's, else the model's", POSITIVE, Applied,
        "Longest sequence, prompt and output together.";
    tokens_per_block "tokens_per_block": Option<i32> = None, "64", Range::Numbers(1.0, 1024.0), Applied,
        "Tokens in one block of the KV cache, a power of two.";
    max_beam_width "max_beam_width": i32 = 1, "1", POSITIVE, Applied,
        "Largest `beam_width` of a request. Searches of different widths and sampled requests run together.";
    batch_scheduler_policy "batch_scheduler_policy": BatchSchedulerPolicy = BatchSchedulerPolicy::Balanced, "`balanced` (the C++ backend: `guaranteed_no_evict`)", Range::Words(BatchSchedulerPolicy::WORDS), Applied,
        "`balanced`: a request starts when it can be expected to end beside the others, judged by the output lengths of late; where that was wrong, the youngest is paused and computed again. `guaranteed_no_evict`: a request starts when memory for its longest possible output is there. `max_utilization`: it starts as soon as its tokens fit and may be paused and computed again. Another word: a warning and the default.";
    enable_chunked_context "enable_chunked_context": bool = true, "true (the C++ backend: false)", ANY, Applied,
        "Whether a prompt may be computed over several steps. Off, a prompt longer than `max_num_tokens` is refused.";
    context_chunking_policy "context_chunking_policy": ContextChunkingPolicy = ContextChunkingPolicy::FirstComeFirstServed, "`first_come_first_served`", Range::Words(ContextChunkingPolicy::WORDS), Applied,
        "How prompts that are computed over several steps share a step. `first_come_first_served`: each takes what it can before the next gets anything. `equal_progress`: one block of the KV cache for each in turn until the step is full, so that short prompts do not wait for a long one.";
    max_input_len "max_input_len": Option<i32> = None, "the engine folder's, else what `max_seq_len` leaves", POSITIVE, Applied,
        "Longest prompt.";
    max_queue_tokens "max_queue_tokens": Option<i32> = None, "unset = no limit", POSITIVE, Applied,
        "Most prompt tokens of requests that wait in the engine. Beyond it a request is refused as when `max_queue_size` of the dynamic batcher is reached.";
    priority_ageing_ms "priority_ageing_ms": i32 = 10_000, "10000", COUNT, Applied,
        "Waiting for this long raises a request by one priority, so that nobody waits for ever. 0: priorities are strict.";
    tenant_weights "tenant_weights": TenantWeights = TenantWeights::default(), "unset = 1 each", ANY, Applied,
        "Shares of the tenants that requests name in their parameter `tenant`, when the engine is busy: `gold:4,silver:2`. A tenant that is not listed has 1.";
    max_step_slowdown "max_step_slowdown": Option<f32> = None, "unset = no bound", Range::Numbers(1.01, 1e6), Applied,
        "How much longer a step may take because of prompts that are computed beside streams that generate: 2 keeps the time between two tokens below twice its least. Needs `enable_chunked_context`.";
    stall_timeout_ms "stall_timeout_ms": Option<i32> = None, "30000 on a GPU, else 600000", COUNT, Applied,
        "Longest time without a completed step while there is work: then every request is answered with an error and the model is not ready any more. 0: any time.";
    fatal_action "fatal_action": FatalAction = FatalAction::NotReady, "`not_ready`", Range::Words(FatalAction::WORDS), Applied,
        "What follows when the engine has failed for good and everybody was answered. `not_ready`: the model is not ready any more. `exit`: the server's process ends with code 1, so that whoever runs it starts it anew.";
    kv_event_buffer_max_size "kv_event_buffer_max_size": i32 = 0, "0", COUNT, Applied,
        "Latest changes of the prefix cache that are kept for a reader. With `kv_event_sink` the default is 65536.";
    kv_event_sink "kv_event_sink": Option<String> = None, "unset = nowhere", ANY, Applied,
        "Where changes of the prefix cache are published, one or several with commas between them. `file:PATH`: JSON lines appended to a file. `unix:PATH`: JSON lines to everybody who connects to this socket. `zmq:tcp://ADDRESS:PORT`: as vLLM publishes them, for routers; `*` is every address. A further instance of the model has the file or socket name with its number, or the next port.";
    kv_event_topic "kv_event_topic": Option<String> = None, "empty", ANY, Applied,
        "Topic of the messages that `zmq:` publishes, as `kv@POD@MODEL`.";
    exclude_input_in_output "exclude_input_in_output": bool = false, "false", ANY, Applied,
        "Default of the request tensor of this name. Affects non-streaming replies only.";
    normalize_log_probs "normalize_log_probs": bool = true, "true", ANY, Applied,
        "Whether `output_log_probs` of sampled tokens are relative to the candidates that top-k and top-p left. `cum_log_probs` never is, and greedy requests always get the plain values.";
    enable_trt_overlap "enable_trt_overlap": bool = false, "false", ANY, Never,
        "Steps always overlap as far as the device allows.";
    gpu_weights_percent "gpu_weights_percent": f32 = 1.0, "1.0", FRACTION, NotYet,
        "Share of the weights that stays on the GPU.";
    max_tokens_in_paged_kv_cache "max_tokens_in_paged_kv_cache": Option<i32> = None, "unset", POSITIVE, Applied,
        "Most tokens in the KV cache. With the fraction, the smaller wins.";
    kv_cache_free_gpu_mem_fraction "kv_cache_free_gpu_mem_fraction": Option<f32> = None, "0.9, or unset beside `max_tokens_in_paged_kv_cache`", FRACTION, Applied,
        "Share of the memory that is free after loading the weights and that the KV cache takes.";
    kv_cache_total_gpu_mem_fraction "kv_cache_total_gpu_mem_fraction": Option<f32> = None, "unset", FRACTION, Applied,
        "Share of all memory of the device that weights, workspace, KV cache and whatever else is there may take together; the KV cache gets what is left of it. With other limits, the smallest wins.";
    max_gpu_total_bytes "max_gpu_total_bytes": Option<u64> = None, "unset", ANY, Applied,
        "Most bytes of the KV cache on the device. With other limits, the smallest wins.";
    cross_kv_cache_fraction "cross_kv_cache_fraction": Option<f32> = None, "unset", FRACTION, NotYet,
        "Share of the KV cache for cross attention, encoder-decoder models only.";
    kv_cache_host_memory_bytes "kv_cache_host_memory_bytes": Option<u64> = None, "0", ANY, Applied,
        "Host memory (page-locked beside a GPU) behind the KV cache. Reusable blocks that the device has no room for move there if their retention priority is 35 or more, and come back when a request needs them.";
    kv_cache_onboard_blocks "kv_cache_onboard_blocks": bool = true, "true", ANY, Applied,
        "Whether offloaded blocks are brought back before they are used again. They cannot be read in place: `false` beside `kv_cache_host_memory_bytes` is refused.";
    kv_cache_disk_path "kv_cache_disk_path": Option<String> = None, "unset", ANY, Applied,
        "Folder where blocks of the prefix cache are kept, so that they outlive the server's process: docs/kv_cache.md. Files of another model or layout are left alone.";
    kv_cache_disk_bytes "kv_cache_disk_bytes": Option<u64> = None, "0", ANY, Applied,
        "Most bytes of the model's blocks in `kv_cache_disk_path`, for each instance.";
    kv_cache_warm_up_file "kv_cache_warm_up_file": Option<String> = None, "unset", ANY, Applied,
        "File with a JSON array of prompts, texts or arrays of token ids, as system prompts. They are computed before the model is ready, so that requests that begin with them find them in the prefix cache.";
    max_attention_window_size "max_attention_window_size": Option<Vec<i32>> = None, "unset = the longest sequence", ANY, Applied,
        "Attention window in tokens, one value for each layer, repeated cyclically. A narrower window of the model's own configuration stays. Layers of one window have KV blocks of their own, and give back what they do not see any more: docs/kv_cache.md.";
    sink_token_length "sink_token_length": Option<i32> = None, "unset", COUNT, Applied,
        "How many of the tokens of `max_attention_window_size` are the first of the sequence instead of the last (StreamingLLM). Positions are those among these tokens, not those of the sequence.";
    enable_kv_cache_reuse "enable_kv_cache_reuse": bool = true, "true", ANY, Applied,
        "Whether requests with the same prefix share KV blocks.";
    multi_block_mode "multi_block_mode": bool = true, "true", ANY, Never,
        "Decode attention splits long sequences by itself.";
    enable_context_fmha_fp32_acc "enable_context_fmha_fp32_acc": bool = false, "false", ANY, Never,
        "Attention always accumulates in 32 bits.";
    cuda_graph_mode "cuda_graph_mode": bool = true, "true (the C++ backend: false)", ANY, Applied,
        "Whether decode steps on a GPU run as CUDA graphs, which are recorded when the model is loaded.";
    cuda_graph_cache_size "cuda_graph_cache_size": i32 = 0, "0 = all that are of use", COUNT, Applied,
        "Most CUDA graphs. The first are those for the longest context and few sequences, which serve any context; then those for more sequences, then finer ones. A step that no graph holds runs kernel by kernel.";
    fault_injection_step "fault_injection_step": i32 = 0, "0 = never", COUNT, Applied,
        "For tests of what follows a failure: before the engine's step of this number a kernel reads an address that there is not, and the GPU is lost to this process.";
    recv_poll_period_ms "recv_poll_period_ms": i32 = 0, "0", COUNT, Never,
        "The engine's threads sleep until there is work; nothing is polled.";
    iter_stats_max_iterations "iter_stats_max_iterations": i32 = 1000, "1000", COUNT, Applied,
        "0 switches the updates of the gauges off; any other value leaves them on.";
    request_stats_max_iterations "request_stats_max_iterations": i32 = 0, "0", COUNT, NotYet,
        "Needed for the counters of disaggregated serving.";
    stats_check_period_ms "stats_check_period_ms": i32 = 100, "100", COUNT, Applied,
        "Period in which the gauges are updated; 0 counts as 1.";
    cancellation_check_period_ms "cancellation_check_period_ms": i32 = 100, "100", COUNT, Never,
        "Cancelled requests are noticed in every step of the engine.";
    gpu_device_ids "gpu_device_ids": Option<GpuLists> = None, "unset = the GPU of a `KIND_GPU` instance, else GPU 0", ANY, Applied,
        "GPUs of each model instance, by number or UUID: instance i uses list i modulo the number of lists. Numbers count the GPUs that `CUDA_VISIBLE_DEVICES` leaves; a MIG slice is named there, and may be named here too (`MIG-…`). A list of several GPUs is refused: such models are not served yet.";
    participant_ids "participant_ids": Option<InstanceLists> = None, "unset", ANY, NotYet,
        "Ranks of each model instance.";
    num_nodes "num_nodes": i32 = 1, "1", POSITIVE, NotYet,
        "Number of nodes that a model spans.";
    executor_worker_path "executor_worker_path": Option<String> = None, "beside the library", ANY, NotYet,
        "Executable of one rank of a multi-GPU model.";
    worker_path "worker_path": Option<String> = None, "unset", ANY, Never,
        "Old name of `executor_worker_path`; ignored.";
    lora_cache_optimal_adapter_size "lora_cache_optimal_adapter_size": i32 = 8, "8", COUNT, NotYet,
        "Adapter size that the LoRA cache is laid out for.";
    lora_cache_max_adapter_size "lora_cache_max_adapter_size": i32 = 64, "64", COUNT, NotYet,
        "Largest adapter of the LoRA cache.";
    lora_cache_gpu_memory_fraction "lora_cache_gpu_memory_fraction": f32 = 0.05, "0.05", FRACTION, NotYet,
        "Share of the memory left after the KV cache that the LoRA cache takes.";
    lora_cache_host_memory_bytes "lora_cache_host_memory_bytes": u64 = 1 << 30, "1073741824", ANY, NotYet,
        "Host memory of the LoRA cache.";
    lora_prefetch_dir "lora_prefetch_dir": Option<String> = None, "unset", ANY, NotYet,
        "Folder with one adapter per numeric sub-folder that is loaded at start.";
    decoding_mode "decoding_mode": Option<DecodingMode> = None, "auto", Range::Words(DecodingMode::WORDS), Applied,
        "How tokens are chosen: `top_k` takes no notice of a request's top-p, `top_p` none of its top-k, `top_k_top_p`, `beam_search` and auto take both. Requests with a `beam_width` above 1 need auto or `beam_search`. The drafts of Medusa, Eagle, ReDrafter and lookahead are not served yet: requests are decoded without. Another word: a warning and auto.";
    ngram_max_draft_len "ngram_max_draft_len": i32 = 0, "0 = off", COUNT, Applied,
        "Most tokens that a sequence guesses from its own prompt and output (prompt lookup) and verifies in one step. No token changes; where text repeats itself, as in code edits and answers from documents, several come in the time of one.";
    ngram_max_matching_size "ngram_max_matching_size": i32 = 3, "3", POSITIVE, Applied,
        "Most last tokens whose earlier occurrence is looked for to guess what follows; fewer are tried where there is none.";
    medusa_choices "medusa_choices": Option<BraceLists> = None, "built-in tree", ANY, NotYet,
        "Tree of the Medusa heads.";
    eagle_choices "eagle_choices": Option<BraceLists> = None, "built-in tree", ANY, NotYet,
        "Tree of the Eagle drafts.";
    lookahead_window_size "lookahead_window_size": Option<u32> = None, "unset", ANY, NotYet,
        "Lookahead decoding. Mandatory with `decoding_mode: lookahead`.";
    lookahead_ngram_size "lookahead_ngram_size": Option<u32> = None, "unset", ANY, NotYet,
        "Lookahead decoding. Mandatory with `decoding_mode: lookahead`.";
    lookahead_verification_set_size "lookahead_verification_set_size": Option<u32> = None, "unset", ANY, NotYet,
        "Lookahead decoding. Mandatory with `decoding_mode: lookahead`.";
    speculative_decoding_fast_logits "speculative_decoding_fast_logits": bool = false, "false", ANY, NotYet,
        "Draft logits that bypass the client.";
    xgrammar_tokenizer_info_path "xgrammar_tokenizer_info_path": Option<String> = None, "unset", ANY, Applied,
        "File with the vocabulary for guided decoding (`tokenizer_str`, `stop_token_ids`), read where the model has no tokenizer; it must exist then.";
    guided_decoding_backend "guided_decoding_backend": Option<GuidedBackend> = None, "`auto`", Range::Words(GuidedBackend::WORDS), Applied,
        "`off` refuses guided requests; every other word is served by the same engine wherever the model has a tokenizer.";
    sampling_order "sampling_order": SamplingOrder = SamplingOrder::TensorRtLlm, "`tensorrt_llm`", Range::Words(SamplingOrder::WORDS), Applied,
        "`tensorrt_llm`: temperature before penalties, which all count the prompt. `openai`: penalties before temperature; presence and frequency count generated tokens only.";
    max_num_sequences "max_num_sequences": Option<i32> = None, "unset", ANY, Never,
        "Legacy; see `max_batch_size`.";
    max_kv_cache_length "max_kv_cache_length": Option<Vec<i32>> = None, "unset", ANY, Applied,
        "Legacy name of `max_attention_window_size`; read where that is not given.";
    multi_block_mode_legacy "multiBlockMode": Option<bool> = None, "unset", ANY, Never,
        "Legacy name of `multi_block_mode`.";
    enable_context_fmha_fp32_acc_legacy "enableContextFMHAFP32Acc": Option<bool> = None, "unset", ANY, Never,
        "Legacy name of `enable_context_fmha_fp32_acc`.";
    force_cpu_only_input_tensors "FORCE_CPU_ONLY_INPUT_TENSORS": Option<String> = None, "unset", ANY, Never,
        "For the Python backend.";
    add_special_tokens "add_special_tokens": Switch = Switch(true), "true", ANY, Applied,
        "Whether the tokenizer adds its special tokens to a prompt. `true false 1 0 t f y n yes no`.";
    skip_special_tokens "skip_special_tokens": Switch = Switch(true), "true", ANY, Applied,
        "Whether special tokens are left out of the text of an answer. Words as above.";
    accumulate_tokens "accumulate_tokens": Switch = Switch(false), "false", ANY, Applied,
        "Role `bls`, decoupled: every response has the whole text so far instead of its new part. Words as above.";
    tensorrt_llm_model_name "tensorrt_llm_model_name": Option<String> = None, "`tensorrt_llm`", ANY, Applied,
        "Role `bls`: the model that generates.";
    preprocessing_model_name "preprocessing_model_name": Option<String> = None, "`preprocessing`", ANY, Applied,
        "Role `bls`: the model that turns text into tokens.";
    postprocessing_model_name "postprocessing_model_name": Option<String> = None, "`postprocessing`", ANY, Applied,
        "Role `bls`: the model that turns tokens into text.";
    tensorrt_llm_draft_model_name "tensorrt_llm_draft_model_name": Option<String> = None, "unset", ANY, Applied,
        "Role `bls`: the model that drafts tokens for requests with `num_draft_tokens` above 0.";
    multimodal_encoders_name "multimodal_encoders_name": Option<String> = None, "unset", ANY, NotYet,
        "Role `bls`: the model that encodes images. Requests with images are refused.";
    tokenizer_type "tokenizer_type": Option<String> = None, "unset", ANY, Never,
        "Legacy; the kind of tokenizer is found in its files.";
    multimodal_model_path "multimodal_model_path": Option<String> = None, "unset = text only", ANY, NotYet,
        "Folder of the vision encoder.";
    visual_model_path "visual_model_path": Option<String> = None, "unset = text only", ANY, NotYet,
        "Old name of `multimodal_model_path`.";
    max_num_images "max_num_images": Option<i32> = None, "unset", ANY, NotYet,
        "Most images in one prompt.";
}
