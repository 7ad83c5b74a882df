//! Engine arguments in a file of the version folder: `model.json` of Triton's vLLM backend, `model.yaml` of
//! TensorRT-LLM's LLM-API model. They become parameters of the model's configuration.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::choices::ModelRole;
use super::load::{Note, closest, info, warning};
use super::value::is_placeholder;
use crate::error::{Error, Result};

/// What becomes of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The parameter of this name.
    Parameter(&'static str),
    /// The parameter of this name, the other way round.
    Not(&'static str),
    /// The parameter of this name: off where the argument is null or false, else on.
    Present(&'static str),
    /// The parameter of this name, lower-cased.
    Word(&'static str),
    /// The parameter of this name, from GiB to bytes.
    GibBytes(&'static str),
    /// Refused unless it is this number.
    Only(i64),
    /// Refused unless it is null, false, empty or `auto`.
    Unset,
    /// It concerns something that this engine finds out or does by itself.
    Ignored,
}

use Meaning::{GibBytes, Ignored, Not, Only, Parameter, Present, Unset, Word};

/// One argument; a dot leads into a section.
type Argument = (&'static str, Meaning);

#[rustfmt::skip]
const VLLM: &[Argument] = &[
    ("model", Parameter("gpt_model_path")),
    ("tokenizer", Parameter("tokenizer_dir")),
    ("max_model_len", Parameter("max_seq_len")),
    ("max_num_seqs", Parameter("max_batch_size")),
    ("max_num_batched_tokens", Parameter("max_num_tokens")),
    ("gpu_memory_utilization", Parameter("kv_cache_total_gpu_mem_fraction")),
    ("block_size", Parameter("tokens_per_block")),
    ("enable_prefix_caching", Parameter("enable_kv_cache_reuse")),
    ("enable_chunked_prefill", Parameter("enable_chunked_context")),
    ("enforce_eager", Not("cuda_graph_mode")),
    ("kv_offloading_size", GibBytes("kv_cache_host_memory_bytes")),
    ("tensor_parallel_size", Only(1)),
    ("pipeline_parallel_size", Only(1)),
    ("data_parallel_size", Only(1)),
    ("decode_context_parallel_size", Only(1)),
    ("speculative_config", Unset),
    ("enable_lora", Unset),
    ("kv_cache_dtype", Unset),
    ("hf_overrides", Unset),
    ("rope_scaling", Unset),
    ("rope_theta", Unset),
    ("dtype", Ignored),
    ("quantization", Ignored),
    ("load_format", Ignored),
    ("download_dir", Ignored),
    ("revision", Ignored),
    ("code_revision", Ignored),
    ("tokenizer_revision", Ignored),
    ("tokenizer_mode", Ignored),
    ("skip_tokenizer_init", Unset),
    ("trust_remote_code", Ignored),
    ("seed", Ignored),
    ("swap_space", Ignored),
    ("cpu_offload_gb", Ignored),
    ("max_logprobs", Ignored),
    ("max_seq_len_to_capture", Ignored),
    ("disable_log_stats", Ignored),
    ("disable_log_requests", Ignored),
    ("enable_log_requests", Ignored),
    ("disable_custom_all_reduce", Ignored),
    ("distributed_executor_backend", Ignored),
    ("served_model_name", Ignored),
    ("guided_decoding_backend", Ignored),
    ("structured_outputs_config", Ignored),
    ("limit_mm_per_prompt", Ignored),
    ("max_loras", Ignored),
    ("max_lora_rank", Ignored),
    ("max_cpu_loras", Ignored),
    ("use_v2_block_manager", Ignored),
    ("num_scheduler_steps", Ignored),
    ("scheduling_policy", Ignored),
    ("async_scheduling", Ignored),
    ("compilation_config", Ignored),
    ("device", Parameter("device")),
];

#[rustfmt::skip]
const LLM_API: &[Argument] = &[
    ("model", Parameter("gpt_model_path")),
    ("tokenizer", Parameter("tokenizer_dir")),
    ("max_batch_size", Parameter("max_batch_size")),
    ("max_num_tokens", Parameter("max_num_tokens")),
    ("max_seq_len", Parameter("max_seq_len")),
    ("max_beam_width", Parameter("max_beam_width")),
    ("enable_chunked_prefill", Parameter("enable_chunked_context")),
    ("guided_decoding_backend", Parameter("guided_decoding_backend")),
    ("kv_cache_config.free_gpu_memory_fraction", Parameter("kv_cache_free_gpu_mem_fraction")),
    ("kv_cache_config.max_tokens", Parameter("max_tokens_in_paged_kv_cache")),
    ("kv_cache_config.max_gpu_total_bytes", Parameter("max_gpu_total_bytes")),
    ("kv_cache_config.enable_block_reuse", Parameter("enable_kv_cache_reuse")),
    ("kv_cache_config.host_cache_size", Parameter("kv_cache_host_memory_bytes")),
    ("kv_cache_config.disk_cache_size", Parameter("kv_cache_disk_bytes")),
    ("kv_cache_config.disk_cache_path", Parameter("kv_cache_disk_path")),
    ("kv_cache_config.onboard_blocks", Parameter("kv_cache_onboard_blocks")),
    ("kv_cache_config.max_attention_window", Parameter("max_attention_window_size")),
    ("kv_cache_config.sink_token_length", Parameter("sink_token_length")),
    ("kv_cache_config.tokens_per_block", Parameter("tokens_per_block")),
    ("kv_cache_config.dtype", Unset),
    ("kv_cache_config.cross_kv_cache_fraction", Ignored),
    ("kv_cache_config.enable_partial_reuse", Ignored),
    ("kv_cache_config.copy_on_partial_reuse", Ignored),
    ("kv_cache_config.event_buffer_max_size", Ignored),
    ("kv_cache_config.secondary_offload_min_priority", Ignored),
    ("kv_cache_config.use_uvm", Ignored),
    ("scheduler_config.capacity_scheduler_policy", Word("batch_scheduler_policy")),
    ("scheduler_config.context_chunking_policy", Word("context_chunking_policy")),
    ("scheduler_config.dynamic_batch_config", Ignored),
    ("cuda_graph_config", Present("cuda_graph_mode")),
    ("use_cuda_graph", Parameter("cuda_graph_mode")),
    ("pytorch_backend_config.use_cuda_graph", Parameter("cuda_graph_mode")),
    ("pytorch_backend_config.enable_overlap_scheduler", Ignored),
    ("tensor_parallel_size", Only(1)),
    ("pipeline_parallel_size", Only(1)),
    ("context_parallel_size", Only(1)),
    ("moe_expert_parallel_size", Only(1)),
    ("moe_tensor_parallel_size", Only(1)),
    ("triton_config.max_batch_size", Only(0)),
    ("triton_config.cancellation_check_period_ms", Parameter("cancellation_check_period_ms")),
    ("triton_config.decoupled", Ignored),
    ("triton_config.multimodal", Unset),
    ("speculative_config", Unset),
    ("lora_config", Unset),
    ("enable_lora", Unset),
    ("logits_post_processors", Unset),
    ("backend", Ignored),
    ("dtype", Ignored),
    ("max_input_len", Ignored),
    ("trust_remote_code", Ignored),
    ("gpus_per_node", Ignored),
    ("quant_config", Ignored),
    ("build_config", Ignored),
    ("load_format", Ignored),
    ("disable_overlap_scheduler", Ignored),
    ("attn_backend", Ignored),
    ("moe_config", Ignored),
    ("moe_backend", Ignored),
    ("skip_tokenizer_init", Unset),
    ("return_perf_metrics", Ignored),
    ("enable_iter_perf_stats", Ignored),
    ("print_iter_log", Ignored),
    ("torch_compile_config", Ignored),
    ("batch_wait_timeout_ms", Ignored),
    ("stream_interval", Ignored),
    ("device", Parameter("device")),
];

/// Sections that may be given without being listed themselves.
const SECTIONS: [&str; 4] = ["kv_cache_config", "scheduler_config", "pytorch_backend_config", "triton_config"];

/// A model configuration with the arguments of its version folder.
#[derive(Clone, Debug)]
pub struct WithArguments {
    pub config: Value,
    pub notes: Vec<Note>,
}

/// Adds the engine arguments of the version folder to a model configuration; the configuration's own parameters stay.
/// `model.json` is read where the role is `vllm` or not given, `model.yaml` where it is `llmapi` or not given; either
/// then gives the role.
///
/// # Errors
/// `InvalidArg` with the file, the argument and what is wrong with it.
pub fn with_engine_arguments(config: &Value, version_dir: &Path) -> Result<WithArguments> {
    let role = ModelRole::parse(config["parameters"]["model_role"]["string_value"].as_str())?;
    let given = config["parameters"].get("model_role").is_some_and(|given| {
        given["string_value"].as_str().is_some_and(|text| !text.is_empty() && !is_placeholder(text))
    });
    let yaml = super::environment("LLM_CONFIG_PATH").unwrap_or_else(|| "model.yaml".to_owned());
    let files = [(ModelRole::Vllm, "model.json", VLLM, "vllm"), (ModelRole::LlmApi, yaml.as_str(), LLM_API, "llmapi")];
    for (of_role, name, table, word) in files {
        let path = version_dir.join(name);
        if (role == of_role || !given) && path.is_file() {
            let arguments = read(&path).map_err(|error| error.context(name))?;
            let mut taken = Taken { config: config.clone(), without_effect: Vec::new(), notes: Vec::new() };
            taken.parameter("model_role", json!(word));
            taken.all(&arguments, table, version_dir).map_err(|error| error.context(name))?;
            return Ok(taken.finish(name));
        }
        let has_model = ["gpt_model_path", "engine_dir"].iter().any(|key| {
            let text = config["parameters"][*key]["string_value"].as_str().unwrap_or_default();
            !text.is_empty() && !is_placeholder(text)
        });
        if given && role == of_role && !has_model {
            return Err(Error::invalid(format!(
                "{name} is not in the version folder: the role {word} reads its model from there or from gpt_model_path"
            )));
        }
    }
    Ok(WithArguments { config: config.clone(), notes: Vec::new() })
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::invalid(format!("cannot be read: {error}")))?;
    let value: Value = if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(|error| Error::invalid(format!("is not valid JSON: {error}")))?
    } else {
        serde_yaml_ng::from_str(&text).map_err(|error| Error::invalid(format!("is not valid YAML: {error}")))?
    };
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(Error::invalid("is not a mapping of arguments")),
    }
}

struct Taken {
    config: Value,
    without_effect: Vec<String>,
    notes: Vec<Note>,
}

impl Taken {
    fn all(&mut self, arguments: &Map<String, Value>, table: &[Argument], version_dir: &Path) -> Result<()> {
        for (key, value) in flattened(arguments, table) {
            match table.iter().find(|(known, _)| *known == key) {
                Some(&(_, meaning)) => self.one(&key, meaning, &value, version_dir)?,
                None => self.notes.push(warning(match closest(&key, table.iter().map(|(known, _)| *known)) {
                    Some(known) => format!("engine argument {key:?} is unknown and ignored; did you mean {known:?}?"),
                    None => format!("engine argument {key:?} is unknown and ignored"),
                })),
            }
        }
        if self.config["parameters"].get("tokenizer_dir").is_none()
            && let Some(model) = self.config["parameters"]["gpt_model_path"]["string_value"].as_str().map(str::to_owned)
        {
            self.parameter("tokenizer_dir", json!(model));
        }
        if let Some(decoupled) = arguments.get("triton_config").and_then(|section| section["decoupled"].as_bool())
            && self.config.get("model_transaction_policy").is_none()
        {
            self.config["model_transaction_policy"] = json!({ "decoupled": decoupled });
        }
        Ok(())
    }

    fn one(&mut self, key: &str, meaning: Meaning, value: &Value, version_dir: &Path) -> Result<()> {
        let off = matches!(value, Value::Null | Value::Bool(false));
        match meaning {
            Present(parameter) => self.parameter(parameter, json!(!off)),
            Only(number) if value.is_null() || value.as_i64() == Some(number) => {}
            Only(number) => {
                return Err(Error::unsupported(format!("{key} is {value}, this version supports {number} only")));
            }
            Unset if off || is_empty(value) => {}
            Unset => return Err(Error::unsupported(format!("{key} is {value}, which this version does not support"))),
            Ignored => self.without_effect.push(key.to_owned()),
            _ if value.is_null() => {}
            Parameter("gpt_model_path" | "tokenizer_dir") => self.path(key, meaning, value, version_dir)?,
            Parameter(parameter) => self.parameter(parameter, value.clone()),
            Not(parameter) => self.parameter(parameter, json!(!boolean(key, value)?)),
            Word(parameter) => self.parameter(parameter, json!(text_of(value).to_lowercase())),
            GibBytes(parameter) => {
                let gib =
                    value.as_f64().filter(|gib| *gib >= 0.0).ok_or_else(|| wrong(key, value, "a number of GiB"))?;
                self.parameter(parameter, json!((gib * f64::from(1 << 30)) as u64));
            }
        }
        Ok(())
    }

    /// A path may be relative to the version folder. The name of a model on a hub is none.
    fn path(&mut self, key: &str, meaning: Meaning, value: &Value, version_dir: &Path) -> Result<()> {
        let Parameter(parameter) = meaning else { return Ok(()) };
        let text = value.as_str().ok_or_else(|| wrong(key, value, "the path of a folder"))?;
        let beside = version_dir.join(text);
        let path = if beside.exists() { beside } else { text.into() };
        if !path.exists() {
            return Err(Error::invalid(format!(
                "{key} is {text:?}, which is no folder of this machine: models are not downloaded, give the path of one"
            )));
        }
        self.parameter(parameter, json!(path.to_string_lossy()));
        Ok(())
    }

    /// The configuration's own value stays.
    fn parameter(&mut self, key: &str, value: Value) {
        let parameters = &mut self.config["parameters"];
        if !parameters.is_object() {
            *parameters = json!({});
        }
        let own = parameters[key]["string_value"].as_str().unwrap_or_default();
        if own.is_empty() || is_placeholder(own) {
            parameters[key] = json!({ "string_value": text_of(&value) });
        }
    }

    fn finish(mut self, file: &str) -> WithArguments {
        if let Some(parameters) = self.config["parameters"].as_object_mut() {
            parameters.retain(|_, value| value.is_object());
        }
        if !self.without_effect.is_empty() {
            let keys = self.without_effect.join(", ");
            self.notes.push(info(format!("{file}: accepted, this engine finds out or does by itself: {keys}")));
        }
        WithArguments { config: self.config, notes: self.notes }
    }
}

/// Arguments by their dotted names. A section that is an argument itself stays whole.
fn flattened(arguments: &Map<String, Value>, table: &[Argument]) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (key, value) in arguments {
        match value {
            Value::Object(section) if SECTIONS.contains(&key.as_str()) => {
                flat.extend(section.iter().map(|(inner, value)| (format!("{key}.{inner}"), value.clone())));
            }
            Value::Null if SECTIONS.contains(&key.as_str()) && !table.iter().any(|(known, _)| known == key) => {}
            value => flat.push((key.clone(), value.clone())),
        }
    }
    flat
}

fn boolean(key: &str, value: &Value) -> Result<bool> {
    match (value.as_bool(), value.as_str().map(str::to_lowercase).as_deref()) {
        (Some(value), _) => Ok(value),
        (_, Some("true")) => Ok(true),
        (_, Some("false")) => Ok(false),
        _ => Err(wrong(key, value, "true or false")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => matches!(text.to_lowercase().as_str(), "" | "auto" | "false" | "none"),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// As a parameter's text: lists are comma separated.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    Error::invalid(format!("{key} is {value}, expected {expected}"))
}

/// The tables of `docs/other_backends.md`.
pub fn engine_arguments_markdown() -> String {
    let mut text = String::new();
    for (title, table) in [("`1/model.json` (vLLM)", VLLM), ("`1/model.yaml` (LLM API)", LLM_API)] {
        // Writing to a String cannot fail.
        let _ = write!(text, "### {title}\n\n| Argument | Meaning here |\n|---|---|\n");
        for (key, meaning) in table {
            let _ = writeln!(text, "| `{key}` | {} |", describe(*meaning));
        }
        text.push('\n');
    }
    text
}

fn describe(meaning: Meaning) -> String {
    match meaning {
        Parameter(parameter) => format!("parameter `{parameter}`"),
        Not(parameter) => format!("parameter `{parameter}`, the other way round"),
        Present(parameter) => format!("parameter `{parameter}`: false where null or false, else true"),
        Word(parameter) => format!("parameter `{parameter}`, in small letters"),
        GibBytes(parameter) => format!("parameter `{parameter}`, GiB to bytes"),
        Only(number) => format!("must be {number}, else the model does not load"),
        Unset => "must be unset, null, false or empty, else the model does not load".to_owned(),
        Ignored => "accepted; this engine finds it out or does it by itself".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Level, Parameters};

    fn load(file: &str, text: &str, config: Value) -> Result<WithArguments> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("weights")).unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        with_engine_arguments(&config, folder.path())
    }

    fn parameters(loaded: &WithArguments) -> Parameters {
        Parameters::load(&loaded.config).unwrap().parameters
    }

    #[test]
    fn s9_1_vllm_arguments_become_parameters() {
        let text = r#"{"model": "weights", "max_model_len": 512, "max_num_seqs": 8, "gpu_memory_utilization": 0.5,
            "enforce_eager": true, "enable_prefix_caching": false, "disable_log_requests": "true", "dtype": "auto"}"#;
        let loaded = load("model.json", text, json!({ "name": "m" })).unwrap();
        let parameters = parameters(&loaded);
        assert_eq!(parameters.role().unwrap(), ModelRole::Vllm);
        assert!(parameters.gpt_model_path.value.as_deref().unwrap().ends_with("weights"));
        assert_eq!(parameters.tokenizer_dir.value, parameters.gpt_model_path.value);
        assert_eq!((parameters.max_seq_len.value, parameters.max_batch_size.value), (Some(512), Some(8)));
        assert_eq!(parameters.kv_cache_total_gpu_mem_fraction.value, Some(0.5));
        assert!(!parameters.cuda_graph_mode.value && !parameters.enable_kv_cache_reuse.value);
        assert!(loaded.notes[0].text.contains("disable_log_requests, dtype"), "{:?}", loaded.notes);
    }

    #[test]
    fn s9_1_llm_api_arguments_become_parameters() {
        let text = "model: weights\nbackend: pytorch\ntensor_parallel_size: 1\nmax_batch_size: 4\n\
            kv_cache_config:\n  max_tokens: 2560\n  max_attention_window: [64, 128]\n\
            scheduler_config:\n  capacity_scheduler_policy: MAX_UTILIZATION\ncuda_graph_config: null\n\
            triton_config:\n  max_batch_size: 0\n  decoupled: true\n  cancellation_check_period_ms: 50\n";
        let loaded = load("model.yaml", text, json!({ "name": "m" })).unwrap();
        let parameters = parameters(&loaded);
        assert_eq!(parameters.role().unwrap(), ModelRole::LlmApi);
        assert_eq!(parameters.max_tokens_in_paged_kv_cache.value, Some(2560));
        assert_eq!(parameters.max_attention_window_size.value, Some(vec![64, 128]));
        assert_eq!(parameters.batch_scheduler_policy.text.as_deref(), Some("max_utilization"));
        assert!(!parameters.cuda_graph_mode.value);
        assert_eq!(loaded.config["model_transaction_policy"]["decoupled"], true);
    }

    #[test]
    fn the_configuration_of_the_model_comes_first() {
        let config = json!({ "parameters": {
            "max_seq_len": { "string_value": "99" },
            "max_batch_size": { "string_value": "${engine_max_batch_size}" },
        }});
        let loaded =
            load("model.json", r#"{"model": "weights", "max_model_len": 5, "max_num_seqs": 3}"#, config).unwrap();
        let parameters = parameters(&loaded);
        assert_eq!((parameters.max_seq_len.value, parameters.max_batch_size.value), (Some(99), Some(3)));
    }

    #[test]
    fn a_named_role_reads_its_own_file_only() {
        let config = json!({ "parameters": { "model_role": { "string_value": "llm" } } });
        assert_eq!(load("model.json", "{}", config.clone()).unwrap().config, config);
        assert_eq!(load("other.json", "{}", json!({})).unwrap().config, json!({}));
    }

    #[test]
    fn s9_1_what_cannot_be_is_refused_by_name() {
        for (file, text, fragment) in [
            ("model.json", "{", "model.json: is not valid JSON"),
            ("model.yaml", "a: [", "model.yaml: is not valid YAML"),
            ("model.yaml", "- 1", "model.yaml: is not a mapping"),
            ("model.json", r#"{"model": "org/name"}"#, "model is \"org/name\", which is no folder of this machine"),
            ("model.json", r#"{"tensor_parallel_size": 2}"#, "tensor_parallel_size is 2, this version supports 1 only"),
            ("model.json", r#"{"enable_lora": true}"#, "enable_lora is true, which this version does not support"),
            ("model.yaml", "triton_config: {max_batch_size: 8}", "triton_config.max_batch_size is 8"),
        ] {
            let error = load(file, text, json!({})).unwrap_err();
            assert!(error.message().contains(fragment), "{error} lacks {fragment}");
        }
    }

    #[test]
    fn an_unknown_argument_names_the_one_that_was_meant() {
        let notes = load("model.json", r#"{"max_model_length": 5}"#, json!({})).unwrap().notes;
        assert!(notes[0].text.contains("did you mean \"max_model_len\"?"), "{notes:?}");
        assert_eq!(notes[0].level, Level::Warning);
    }
}
