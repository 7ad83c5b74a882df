//! The LLM: tokens or text in, tokens or text out.

mod active;
mod beams;
mod cache;
mod checkpoint;
mod complete;
mod fatal;
mod guides;
mod inputs;
mod instance;
mod interface;
mod logits;
mod metrics;
mod model_warmup;
mod open;
mod prompt_table;
mod request;
mod responder;
mod response;
mod strangers;
mod template;
mod terms;
mod wanted;
mod warm_up;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use crate::tensors::llm::{INPUTS, InputRow, OUTPUTS, OutputRow, tensors_markdown};
pub use checkpoint::load_checkpoint;
pub use complete::complete;
pub use instance::LlmInstance;
pub use interface::{Asked, End, Form, Interface};
pub use open::{ExecutorSource, ModelExecutor};
pub use request::{Call, Generate, Item, LogProbs, Rules};
pub use response::Step;
pub use template::{config_template, template_tensor, template_text};

use crate::tensors::OldVersion;
use crate::tensors::llm::{SEQUENCE_CONTROLS, Use};
use guides::{GuideStore, guide_tokenizer};
use metrics::ModelMetrics;
use model_warmup::WarmUps;
use open::Opened;
use request::TextRules;
use terms::TermRules;

use crate::adapter::tokenizer;
use crate::config::{BatchingType, ModelRole, Parameters, SamplingOrder};
use crate::decode::PassOrder;
use crate::error::{Error, Result, ResultExt};
use crate::runner::Placement;
use crate::text::Tokenizer;
use crate::triton::{Instance, InstanceHandler, InstanceKind, Model, ModelHandler};

/// A loaded model of the role `llm`. Each of its instances has an engine of its own.
pub struct LlmModel {
    name: String,
    config: serde_json::Value,
    parameters: Parameters,
    batching: BatchingType,
    model_dir: PathBuf,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Says what tokens stand for in guided decoding; or why there is none.
    guided: std::result::Result<Arc<Tokenizer>, String>,
    metrics: Arc<ModelMetrics>,
    source: ExecutorSource,
    interface: Option<Arc<dyn Interface>>,
    /// Instances so far: each takes the next number.
    instances: AtomicUsize,
}

impl LlmModel {
    /// Checks what can be checked without the weights, and registers the metrics, so that they exist while the engine
    /// loads. `source` gives each instance its executor, `interface` other tensors than its own.
    ///
    /// # Errors
    /// Parameters and paths that do not fit, a tokenizer that does not load.
    pub fn load(
        model: &Model,
        parameters: Parameters,
        source: ExecutorSource,
        interface: Option<Arc<dyn Interface>>,
    ) -> Result<Self> {
        let batching = parameters.batching()?;
        let model_dir = PathBuf::from(parameters.model_dir(&version_dir(model))?);
        let tokenizer = load_tokenizer(&parameters, &model_dir)?;
        if interface.is_none() {
            tell_inputs(model);
        }
        let guided = guide_tokenizer(&parameters, tokenizer.as_ref())?;
        if interface.is_some() {
            check_text_role(model, tokenizer.is_some())?;
        }
        let metrics = Arc::new(ModelMetrics::register(&model.name, model.version, batching)?);
        let config = model.config.clone();
        Ok(Self {
            name: model.name.clone(),
            config,
            parameters,
            batching,
            model_dir,
            tokenizer,
            guided,
            metrics,
            source,
            interface,
            instances: AtomicUsize::new(0),
        })
    }

    fn rules(&self, opened: &Opened) -> Rules {
        let parameters = &self.parameters;
        let vocab_size = opened.vocab_size;
        let end_ids = |tokenizer: &Tokenizer| {
            let mut end_ids = tokenizer.eos_ids().to_vec();
            end_ids.extend(opened.end_ids.iter().filter(|id| !tokenizer.eos_ids().contains(id)));
            end_ids.retain(|&id| usize::try_from(id).is_ok_and(|id| id < vocab_size));
            end_ids
        };
        let text = self.tokenizer.clone().map(|tokenizer| {
            let end_ids = end_ids(&tokenizer);
            TextRules {
                tokenizer,
                add_special_tokens: parameters.add_special_tokens.value.0,
                skip_special_tokens: parameters.skip_special_tokens.value.0,
                end_ids,
            }
        });
        let outputs = self.config["output"].as_array().into_iter().flatten();
        Rules {
            decoupled: self.config["model_transaction_policy"]["decoupled"].as_bool().unwrap_or(false),
            batched: self.config["max_batch_size"].as_i64().unwrap_or(0) > 0,
            batching: self.batching,
            exclude_input: parameters.exclude_input_in_output.value,
            normalize_log_probs: parameters.normalize_log_probs.value,
            order: match parameters.sampling_order.value {
                SamplingOrder::TensorRtLlm => PassOrder::TemperatureFirst,
                SamplingOrder::OpenAi => PassOrder::PenaltiesFirst,
            },
            mode: parameters.decoding_mode.value,
            guided: self.guided.as_ref().map(|tokenizer| end_ids(tokenizer)).map_err(Clone::clone),
            vocab_size,
            prompt_table_width: opened.prompt_table_width,
            text,
            max_sequences: opened.max_sequences,
            terms: TermRules {
                tenant_weights: parameters.tenant_weights.value.clone(),
                default_priority_level: whole(&self.config["dynamic_batching"]["default_priority_level"]),
                queue_timeout_us: self.queue_timeout_us(),
            },
            logits: logits::declared_type(&self.config),
            log_probs_always: OldVersion::of(ModelRole::Llm, &self.config) == Some(OldVersion::LogProbsAlways),
            declared_outputs: outputs.filter_map(|output| output["name"].as_str().map(str::to_owned)).collect(),
            interface: self.interface.clone(),
            warm_ups: WarmUps::of(&self.config),
        }
    }

    /// `dynamic_batching.default_queue_policy.max_queue_size`; 0 is no limit.
    fn max_queue_requests(&self) -> Option<usize> {
        let size = self.config["dynamic_batching"]["default_queue_policy"]["max_queue_size"].as_u64()?;
        (size > 0).then_some(size as usize)
    }
}

impl LlmModel {
    /// How long a request may wait, as the server's own queue understands it.
    fn queue_timeout_us(&self) -> u64 {
        let policy = &self.config["dynamic_batching"]["default_queue_policy"];
        let timeout_us = whole(&policy["default_timeout_microseconds"]).and_then(|timeout| u64::try_from(timeout).ok());
        let delays = policy["timeout_action"] == "DELAY" || policy["timeout_action"] == 1;
        if delays && timeout_us.is_some_and(|timeout| timeout > 0) {
            tracing::warn!("default_queue_policy.timeout_action is DELAY: requests that wait for long are not refused");
        }
        timeout_us.filter(|_| !delays).unwrap_or(0)
    }
}

impl ModelHandler for LlmModel {
    fn instance(self: Arc<Self>, instance: Instance) -> Result<Arc<dyn InstanceHandler>> {
        let group_gpu = (instance.kind() == InstanceKind::Gpu).then(|| instance.device_id().max(0) as usize);
        let place = Placement { instance: self.instances.fetch_add(1, Ordering::Relaxed), group_gpu };
        let executor = (self.source)(&self.parameters, &self.model_dir, place)?;
        let opened =
            Opened::start(executor, &self.parameters, self.batching, self.max_queue_requests(), place.instance)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.check_vocabulary(opened.vocab_size)?;
            if tokenizer.vocab_size() > opened.vocab_size {
                tracing::warn!("the tokenizer has {} tokens, the model {}", tokenizer.vocab_size(), opened.vocab_size);
            }
        }
        if let Some(file) = self.parameters.kv_cache_warm_up_file.value.as_deref().filter(|file| !file.is_empty()) {
            let add_special = self.parameters.add_special_tokens.value.0;
            warm_up::warm_up(&opened.engine, Path::new(file), self.tokenizer.as_deref(), add_special)?;
        }
        let rules = Arc::new(self.rules(&opened));
        let guides = self.guided.clone().ok().map(|tokenizer| GuideStore::new(tokenizer, opened.vocab_size));
        let period_ms = self.parameters.stats_check_period_ms.value.max(1) as u64;
        let period = (self.parameters.iter_stats_max_iterations.value > 0).then(|| Duration::from_millis(period_ms));
        tracing::info!("{}: instance {} is ready", self.name, instance.name());
        let fatal = self.parameters.fatal_action.value;
        Ok(Arc::new(LlmInstance::start(rules, guides, opened, self.metrics.instance(), period, fatal)?))
    }
}

/// Whether the model will take text.
pub fn has_tokenizer(parameters: &Parameters, model: &Model) -> bool {
    let given = parameters.tokenizer_dir.value.as_deref().map(Path::new);
    // What is wrong with the path is said when the model is loaded.
    let model_dir = parameters.model_dir(&version_dir(model)).ok();
    let in_model = model_dir.as_deref().map(Path::new);
    given.or(in_model).is_some_and(tokenizer::has_tokenizer)
}

/// A number of the configuration; those of 64 bits are texts in its JSON form.
fn whole(value: &serde_json::Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// Says which declared inputs do nothing, and which are none of ours.
fn tell_inputs(model: &Model) {
    let declared = model.config["input"].as_array().into_iter().flatten();
    let names = declared.filter_map(|input| input["name"].as_str()).filter(|name| !SEQUENCE_CONTROLS.contains(name));
    let (known, unknown): (Vec<_>, Vec<_>) = names.partition(|name| InputRow::find(name).is_some());
    for name in unknown {
        tracing::warn!("{}: input {name:?} of the configuration is unknown: requests with it are refused", model.name);
    }
    let without_effect = |name: &&str| InputRow::find(name).is_some_and(|row| row.usage == Use::Ignored);
    let ignored: Vec<_> = known.into_iter().filter(without_effect).collect();
    if !ignored.is_empty() {
        tracing::info!("{}: declared inputs without effect on this model: {}", model.name, ignored.join(", "));
    }
}

/// What a role that takes text needs.
fn check_text_role(model: &Model, has_tokenizer: bool) -> Result<()> {
    if !has_tokenizer {
        return Err(Error::invalid(
            "the role takes text, but the model has no tokenizer: set tokenizer_dir to a folder with one",
        ));
    }
    match model.config["max_batch_size"].as_i64().unwrap_or(0) {
        0 => Ok(()),
        size => {
            Err(Error::invalid(format!("max_batch_size is {size}: this role takes one prompt a request, set it to 0")))
        }
    }
}

/// The folder of the model's version.
pub fn version_dir(model: &Model) -> PathBuf {
    model.repository.join(model.version.to_string())
}

/// A tokenizer that was asked for must load. One that merely lies beside the model may be of an unknown kind.
fn load_tokenizer(parameters: &Parameters, model_dir: &Path) -> Result<Option<Arc<Tokenizer>>> {
    if let Some(dir) = parameters.tokenizer_dir.value.as_deref() {
        if Path::new(dir).exists() {
            let tokenizer = tokenizer::load_tokenizer(Path::new(dir)).context("tokenizer_dir")?;
            return Ok(Some(Arc::new(tokenizer)));
        }
        tracing::warn!("tokenizer_dir is {dir:?}, which does not exist: the model takes tokens only");
        return Ok(None);
    }
    if !tokenizer::has_tokenizer(model_dir) {
        return Ok(None);
    }
    match tokenizer::load_tokenizer(model_dir) {
        Ok(tokenizer) => Ok(Some(Arc::new(tokenizer))),
        Err(error) => {
            tracing::warn!("the model takes tokens only: {error}");
            Ok(None)
        }
    }
}
