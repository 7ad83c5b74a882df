//! From an executor and parameters to a running engine.

use std::path::Path;
use std::sync::Arc;

use crate::config::{BatchSchedulerPolicy, BatchingType, Parameters};
use crate::engine::{Engine, EngineConfig, SchedulerPolicy};
use crate::error::Result;
use crate::ids::TokenId;
use crate::step::{Executor, ExecutorLimits};

/// What runs the model of one instance.
pub struct ModelExecutor {
    pub executor: Box<dyn Executor>,
    /// Tokens that end a text, by the model's files.
    pub end_ids: Vec<TokenId>,
}

/// Makes the executor of the instance with this number from the parameters and the model's folder.
pub type ExecutorSource = Arc<dyn Fn(&Parameters, &Path, usize) -> Result<ModelExecutor> + Send + Sync>;

/// An engine that takes requests.
pub struct Opened {
    pub engine: Engine,
    pub vocab_size: usize,
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
    ) -> Result<Self> {
        let limits = model.executor.limits();
        let config = engine_config(parameters, batching, max_queue_requests, &limits);
        let engine = Engine::start(config, model.executor)?;
        Ok(Self { engine, vocab_size: limits.vocab_size, end_ids: model.end_ids })
    }
}

fn engine_config(
    parameters: &Parameters,
    batching: BatchingType,
    max_queue_requests: Option<usize>,
    limits: &ExecutorLimits,
) -> EngineConfig {
    EngineConfig {
        policy: match (batching, parameters.batch_scheduler_policy.value) {
            (BatchingType::Static, _) => SchedulerPolicy::StaticBatch,
            (_, BatchSchedulerPolicy::GuaranteedNoEvict) => SchedulerPolicy::GuaranteedNoEvict,
            (_, BatchSchedulerPolicy::MaxUtilization) => SchedulerPolicy::MaxUtilization,
        },
        chunked_context: parameters.enable_chunked_context.value,
        max_queue_requests,
        kv_reuse: parameters.enable_kv_cache_reuse.value,
        ..EngineConfig::for_limits(limits)
    }
}
