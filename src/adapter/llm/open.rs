//! From an executor and parameters to a running engine.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::adapter::events::{self, EventPublisher};
use crate::config::{BatchSchedulerPolicy, BatchingType, ContextChunkingPolicy, Parameters};
use crate::decode::draft::NGramOptions;
use crate::engine::{ChunkingPolicy, Engine, EngineConfig, SchedulerPolicy};
use crate::error::Result;
use crate::ids::TokenId;
use crate::runner::Placement;
use crate::step::{Executor, ExecutorLimits};

/// No step of a GPU takes that long; on a CPU a large one may take minutes.
const GPU_STALL_MS: i32 = 30_000;
const CPU_STALL_MS: i32 = 600_000;

/// Several times what a launch takes the host.
const LAUNCH_LEAD: Duration = Duration::from_millis(1);

/// What runs the model of one instance.
pub struct ModelExecutor {
    pub executor: Box<dyn Executor>,
    /// Tokens that end a text, by the model's files.
    pub end_ids: Vec<TokenId>,
    /// Longest prompt of the engine that the model's folder was built for.
    pub max_input_len: Option<usize>,
}

/// Makes the executor of an instance from the parameters and the model's folder.
pub type ExecutorSource = Arc<dyn Fn(&Parameters, &Path, Placement) -> Result<ModelExecutor> + Send + Sync>;

/// An engine that takes requests.
pub struct Opened {
    pub engine: Engine,
    /// Publishes what happens to the prefix cache.
    pub events: Option<EventPublisher>,
    pub vocab_size: usize,
    /// Values in a row of a prompt table; none where the model takes no such tables.
    pub prompt_table_width: Option<usize>,
    /// Most sequences that run together.
    pub max_sequences: usize,
    /// Tokens that end a text, by the model's files.
    pub end_ids: Vec<TokenId>,
}

impl Opened {
    /// Starts the engine.
    ///
    /// # Errors
    /// Parameters that ask for more than the executor can hold.
    pub fn start(
        model: ModelExecutor,
        parameters: &Parameters,
        batching: BatchingType,
        max_queue_requests: Option<usize>,
        instance: usize,
    ) -> Result<Self> {
        let limits = model.executor.limits();
        let prompt_table_width = model.executor.prompt_table_width();
        let on_gpu = model.executor.memory().gpu_bytes > 0;
        let kv_event_buffer = events::buffer_size(parameters)?;
        let config = engine_config(parameters, batching, max_queue_requests, &limits, on_gpu, model.max_input_len);
        let max_sequences = config.max_batch_size;
        let engine = Engine::start(EngineConfig { kv_event_buffer, ..config }, model.executor)?;
        let events = EventPublisher::start(parameters, &engine, limits.block_size_tokens, instance)?;
        Ok(Self {
            engine,
            events,
            vocab_size: limits.vocab_size,
            prompt_table_width,
            max_sequences,
            end_ids: model.end_ids,
        })
    }
}

fn engine_config(
    parameters: &Parameters,
    batching: BatchingType,
    max_queue_requests: Option<usize>,
    limits: &ExecutorLimits,
    on_gpu: bool,
    built_input_len: Option<usize>,
) -> EngineConfig {
    let default = EngineConfig::for_limits(limits);
    let count = |value: Option<i32>| value.map(|value| value as usize);
    // What an engine was built for binds where a prompt runs in one step, as it did there.
    let chunked = parameters.enable_chunked_context.value;
    let engine_input_len = built_input_len.filter(|&len| !chunked && len < default.max_input_len);
    let ngrams = NGramOptions {
        max_draft_len: parameters.ngram_max_draft_len.value as usize,
        max_matching_ngram_size: parameters.ngram_max_matching_size.value as usize,
    };
    EngineConfig {
        ngram_drafts: Some(ngrams).filter(|ngrams| ngrams.max_draft_len > 0),
        policy: match (batching, parameters.batch_scheduler_policy.value) {
            (BatchingType::Static, _) => SchedulerPolicy::StaticBatch,
            (_, BatchSchedulerPolicy::Balanced) => SchedulerPolicy::Balanced,
            (_, BatchSchedulerPolicy::GuaranteedNoEvict) => SchedulerPolicy::GuaranteedNoEvict,
            (_, BatchSchedulerPolicy::MaxUtilization) => SchedulerPolicy::MaxUtilization,
        },
        chunked_context: chunked,
        chunking: match parameters.context_chunking_policy.value {
            ContextChunkingPolicy::FirstComeFirstServed => ChunkingPolicy::FirstComeFirstServed,
            ContextChunkingPolicy::EqualProgress => ChunkingPolicy::EqualProgress,
        },
        max_queue_requests,
        max_queue_tokens: count(parameters.max_queue_tokens.value),
        priority_ageing: milliseconds(parameters.priority_ageing_ms.value),
        max_step_slowdown: parameters.max_step_slowdown.value,
        launch_lead: Some(LAUNCH_LEAD),
        stall_timeout: milliseconds(parameters.stall_timeout_ms.value.unwrap_or(if on_gpu {
            GPU_STALL_MS
        } else {
            CPU_STALL_MS
        })),
        max_beam_width: parameters.max_beam_width.value as usize,
        kv_reuse: parameters.enable_kv_cache_reuse.value,
        max_input_len: count(parameters.max_input_len.value).or(engine_input_len).unwrap_or(default.max_input_len),
        ..default
    }
}

/// 0: `None`.
fn milliseconds(count: i32) -> Option<Duration> {
    (count > 0).then(|| Duration::from_millis(count as u64))
}
