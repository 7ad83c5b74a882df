//! The error index: what a message means and what to do, for `docs/errors.md`.

use std::fmt::Write;

/// When a message is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The model does not load.
    Load,
    /// A request is refused or ends with it.
    Request,
}

/// One message.
pub struct ErrorRow {
    pub when: When,
    /// Part of the message that does not change.
    pub message: &'static str,
    /// Triton's error code.
    pub code: &'static str,
    pub cause: &'static str,
    pub fix: &'static str,
}

const fn load(message: &'static str, cause: &'static str, fix: &'static str) -> ErrorRow {
    ErrorRow { when: When::Load, message, code: "", cause, fix }
}

const fn request(code: &'static str, message: &'static str, cause: &'static str, fix: &'static str) -> ErrorRow {
    ErrorRow { when: When::Request, message, code, cause, fix }
}

const INVALID: &str = "INVALID_ARG";
const UNAVAILABLE: &str = "UNAVAILABLE";
const UNSUPPORTED: &str = "UNSUPPORTED";
const INTERNAL: &str = "INTERNAL";
const CANCELLED: &str = "CANCELLED";

/// Every row. The messages are parts of texts in the sources; a test holds that.
#[rustfmt::skip]
pub const ERRORS: &[ErrorRow] = &[
    load("Both encoder and decoder model paths are empty", "`gpt_model_path` is missing, still a placeholder, or names no folder; the message has the value", "give the folder of the model"),
    load("Invalid gpt_model_type", "`gpt_model_type` is none of its words, or a placeholder", "`inflight_fused_batching`, or remove the parameter"),
    load("model_role is", "`model_role` is a word that is no role", "one of the listed words"),
    load("must be filled", "`trtllm check` found an unquoted `${…}`; the server says `expected integer, got: $` or the like", "fill all the placeholders that the message lists"),
    load("expected {min} to {max}", "a number is outside of its range", "a number of the range in docs/parameters.md"),
    load("expected a power of two", "`tokens_per_block` is no power of two", "8, 16, 32, 64, 128 …"),
    load("which needs lookahead_window_size", "`decoding_mode` is `lookahead` without its three sizes", "give the three, or another mode"),
    load("xgrammar_tokenizer_info_path is {path:?}, which does not exist", "the file with the vocabulary for guided decoding is not there", "its path; or `tokenizer_dir`; or remove it, or `guided_decoding_backend: off`"),
    load("guided_decoding_backend is {:?}, expected one of", "beside `xgrammar_tokenizer_info_path` stands a backend that is none", "one of the listed words"),
    load("models with an encoder are not served", "`encoder_model_path` names a folder", "remove it; encoder-decoder models are not served yet"),
    load("the KV cache is too small", "one sequence of `max_seq_len` does not fit in the KV cache", "lower `max_seq_len`, or raise `max_tokens_in_paged_kv_cache` or `kv_cache_free_gpu_mem_fraction`"),
    load("MiB for weights and", "weights and workspace need more memory than is free", "a larger device, a smaller or quantised checkpoint, or a smaller `max_num_tokens`"),
    load("the model's positions end at", "`max_seq_len` is beyond what the model was made for", "lower `max_seq_len`"),
    load("is not supported; supported are", "the checkpoint's architecture has no implementation", "a checkpoint of a listed architecture"),
    load("is an engine folder; checkpoint_dir must hold weights", "TensorRT engines hold no weights that another engine could read", "`checkpoint_dir`: the Hugging Face folder or checkpoint that the engine was built from"),
    load("set checkpoint_dir to one of them", "several checkpoints lie beside an engine folder", "name one with `checkpoint_dir`"),
    load("GPUs were asked for, a model runs on one", "`gpu_device_ids` gives an instance several GPUs", "one GPU for each instance, lists separated by `;`"),
    load("this library was built without CUDA", "`device` is `cuda`, but the library has no CUDA device", "build with the feature `cuda`, or `device: cpu`"),
    load("the tokenizer has no end-of-sequence token", "the role `preprocessing` gives every request the tokenizer's end token", "set `eos_token` in tokenizer_config.json"),
    load("must be a folder with a tokenizer.json", "`tokenizer_dir` is missing or a placeholder in a role that needs it", "the folder of the tokenizer"),
    load("only text prompts are supported", "a multimodal model was configured or an image was sent", "remove it; images are not served yet"),
    load("the role takes text, but the model has no tokenizer", "roles `llmapi` and `vllm` take text", "`tokenizer`, or a model folder with a tokenizer.json"),
    load("this role takes one prompt a request", "roles `llmapi` and `vllm` do not batch", "`max_batch_size: 0`"),
    load("models are not downloaded", "`model` names a model of a hub", "download it, then give its folder"),
    load("supports {number} only", "the model asks for several GPUs or batches in model.yaml or model.json", "the number in the message"),
    load("which this version does not support", "an engine argument asks for something that is not served", "remove the argument"),
    load("this backend needs {API_MAJOR}.x", "the server's backend API has another major version than this library was written for", "a server of the same major version"),
    request(INVALID, "the prompt is not provided", "neither `input_ids` nor `text_input` has an element", "send one of them"),
    request(INVALID, "input_ids and text_input are both given", "a prompt came twice", "send one of them"),
    request(INVALID, "request_output_len is not present", "`request_output_len` (`max_tokens`) is missing", "send it"),
    request(INVALID, "input_lengths is not present", "a batch has no lengths, which cut its padding", "send `input_lengths`"),
    request(INVALID, "Invalid size for tensor", "a scalar has other than one element for each batch item, or bytes do not fill their shape", "`[batch, 1]`"),
    request(INVALID, "is unknown to this backend", "an input of the configuration is none of docs/tensors.md", "remove it from the configuration"),
    request(INVALID, "mean the same, give one of them", "an input was given under its old and its new name", "one of the names"),
    request(INVALID, "{name} is {value}, expected {range}", "a value is out of its range", "a value of the range in the message"),
    request(INVALID, "is not valid UTF-8", "a text is not UTF-8", "encode texts as UTF-8"),
    request(INVALID, "needs a tokenizer, but the model has none", "text was sent to a model that takes tokens only", "set `tokenizer_dir`, or send `input_ids`"),
    request(INVALID, "Streaming is only supported if model is deployed using decoupled mode", "`streaming` or `stream` with `decoupled: false`", "`model_transaction_policy { decoupled: true }`"),
    request(INVALID, "Batch size > 1 requires", "several prompts in one request to a model with `decoupled: false`", "decoupled, or one prompt a request"),
    request(INVALID, "more than 1 requires the decoupled transaction policy", "`num_return_sequences` with `decoupled: false`", "`model_transaction_policy { decoupled: true }`"),
    request(INVALID, "must be in the list of requested outputs", "the request lists outputs without `output_ids` or `sequence_length`", "list both, or none"),
    request(INVALID, "odd length", "a word list is not `[2, length]`", "ids in the first row, end offsets in the second, padded with -1"),
    request(INVALID, "request ID is not provided", "the stop command came without an id", "the id of the request to stop"),
    request(INVALID, "the request can never run", "prompt and output need more KV blocks than there are", "shorten them, or enlarge the KV cache"),
    request(INVALID, "exceeds maximum input length", "the prompt is longer than `max_seq_len` allows", "shorten the prompt, or raise `max_seq_len`"),
    request(INVALID, "both must have the same policy", "`tensorrt_llm_bls` is not decoupled but its LLM is", "give both the same `model_transaction_policy`"),
    request(INVALID, "num_draft_tokens is {tokens}, which needs", "drafts need a draft model and go with neither streams, batches nor beams", "what the message names"),
    request("that model's", "model {model:?}", "`tensorrt_llm_bls` passes on what the model of this name said", "the rest of the message is that model's"),
    request(INVALID, "expected rows of {width}, the embedding size", "`prompt_embedding_table` is not `[rows, embedding size]` for each prompt", "the shape in the message"),
    request(INVALID, "a prompt with tokens of a prompt table do not exist", "`return_prompt_log_probs` with tokens of `prompt_embedding_table`", "leave one of them out"),
    request(INVALID, "accumulate_tokens needs one row", "`accumulate_tokens` with several beams", "a beam width of 1"),
    request(INVALID, "max_tokens must be a single value > 0", "`max_tokens` of `tensorrt_llm_bls` is missing or not positive", "send it"),
    request(INVALID, "text_input is required", "`text_input` of `tensorrt_llm_bls` is missing", "send it"),
    request(INVALID, "Expected a scalar tensor for tensor", "a scalar of the role `llmapi` or `vllm` has several elements", "one element"),
    request(INVALID, "is unknown, expected one of", "a sampling parameter of the role `vllm` is misspelt", "one of the names in the message"),
    request(INVALID, "When streaming, `exclude_input_in_output` = False is not allowed", "the role `vllm` does not stream the prompt", "leave the input out"),
    request(UNSUPPORTED, "is not supported by this version", "the input asks for something that is not served yet", "leave it out, or send what the message names"),
    request("NOT_FOUND", "LoRA task {id} not found in cache", "`lora_task_id` is not 0: no adapter can be loaded yet", "leave it out"),
    request(INVALID, "Encountered an error when fetching new request: {", "the request is well formed, and this engine cannot run it: the rest of the message says why", "what the reason's own row says"),
    request("that of the reason", "Executor failed process requestId {id} due to the following error: {reason}", "the request was read, and could not be run for the reason at the end of the message", "what the reason's own row says"),
    request(UNSUPPORTED, "LoRA feature is not enabled", "`lora_name` was sent", "leave it out"),
    request(UNSUPPORTED, "send it in host memory", "an input lies in the memory of a GPU that this process cannot read; the message says why", "send it in host memory"),
    request(UNAVAILABLE, "Maximum queue size of", "`default_queue_policy.max_queue_size` requests wait already", "send less, add capacity, or raise the limit"),
    request(UNAVAILABLE, "Request timeout expired", "it waited longer than `default_queue_policy.default_timeout_microseconds`", "send less, add capacity, or raise the limit"),
    request(UNAVAILABLE, "the engine is draining and takes no new requests", "the model is being unloaded or the server ends", "send the request elsewhere"),
    request(UNAVAILABLE, "the model is being unloaded", "the model is being unloaded", "send the request elsewhere"),
    request(UNAVAILABLE, "the engine has failed", "an earlier step failed for good; readiness is off", "look for the first error in the log and restart the server"),
    request(UNAVAILABLE, "the engine was shut down before the request ended", "the model was unloaded while the request ran", "send it again"),
    request(UNAVAILABLE, "Encountered an error in forwardAsync function", "the device failed in a step; every running request gets it", "look in the log for the device's error"),
    request(INTERNAL, "answered without the output", "a model that `tensorrt_llm_bls` calls lacks an output", "the shipped templates"),
    request(INTERNAL, "sent no response", "a model that `tensorrt_llm_bls` calls ended without a response", "look in the log of that model"),
    request(CANCELLED, "the request was cancelled before it ran", "the client went away", "nothing"),
    request(CANCELLED, "Request cancelled by client", "role `llmapi`: the client went away or sent the stop command", "nothing"),
];

/// `docs/errors.md`.
pub fn errors_markdown() -> String {
    let mut text = String::from(
        "# Errors\n\nParts of this backend's messages as they stand in the log or in a reply, with what they mean and what to do. What the server itself\n\
         says, and what shows without a message, is in [troubleshooting.md](troubleshooting.md).\n",
    );
    // Writing to a String cannot fail.
    let _ = write!(text, "\n## The model does not load\n\n| Message | Cause | Fix |\n|---|---|---|\n");
    for row in ERRORS.iter().filter(|row| row.when == When::Load) {
        let _ = writeln!(text, "| `{}` | {} | {} |", shown(row.message), row.cause, row.fix);
    }
    let _ = write!(
        text,
        "\n## A request fails\n\nHTTP: INVALID_ARG 400, NOT_FOUND 404, UNSUPPORTED 501, UNAVAILABLE 503, INTERNAL 500, CANCELLED 400. gRPC has codes of the same names.\n\n\
         | Message | Code | Cause | Fix |\n|---|---|---|---|\n"
    );
    for row in ERRORS.iter().filter(|row| row.when == When::Request) {
        let _ = writeln!(text, "| `{}` | {} | {} | {} |", shown(row.message), row.code, row.cause, row.fix);
    }
    text
}

/// A message for readers: what changes from case to case is dots.
fn shown(message: &str) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        text.push('…');
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    text.replace('`', "'").replace('|', "\\|")
}
