//! From a model's folder to something that runs plans.

mod checkpoint;
mod options;
mod plan;
mod report;

pub use options::{ModelOptions, ModelSource};
pub use report::LoadReport;

use self::checkpoint::Checkpoint;
use self::plan::{LoadPlan, records};
use super::local::{LocalExecutor, Parts};
use super::memory::WindowPlan;
use crate::device::{self, DType, DeviceKind, KvLayer, SharedDevice, Tensor};
use crate::error::{Result, ResultExt};
use crate::model::{Decoder, ModelConfig, SpecialTokens, WeightLoader};
use crate::ops::PlanningDevice;
use crate::step::{Executor, ExecutorLimits, ExecutorMemory};
use std::time::Instant;

/// A model that is ready.
pub struct LoadedModel<E = Box<dyn Executor>> {
    pub executor: E,
    pub config: ModelConfig,
    pub special_tokens: SpecialTokens,
    /// Longest prompt of the engine that the folder was built for.
    pub max_input_len: Option<usize>,
    pub report: LoadReport,
}

/// Loads a model on the device that the options name.
///
/// # Errors
/// One sentence that names the file or option and what is wrong with it.
pub fn load(options: &ModelOptions) -> Result<LoadedModel> {
    let device = device::open(options.device, &options.gpu_ids, &options.device_options)?;
    let LoadedModel { executor, config, special_tokens, max_input_len, report } = load_on(&device, options)?;
    Ok(LoadedModel { executor: Box::new(executor), config, special_tokens, max_input_len, report })
}

/// What [`load`] would take, without reading the weights.
///
/// # Errors
/// As for [`load`].
pub fn plan(options: &ModelOptions) -> Result<LoadReport> {
    plan_on(&device::open(options.device, &options.gpu_ids, &options.device_options)?, options)
}

/// What [`load`] would take on a GPU with this much free memory, which need not be here.
///
/// # Errors
/// As for [`load`].
pub fn plan_gpu(options: &ModelOptions, free_bytes: u64) -> Result<LoadReport> {
    let host = device::open(DeviceKind::Cpu, &[], &options.device_options)?;
    plan_on(&PlanningDevice::gpu(&host, free_bytes), options)
}

fn plan_on(device: &SharedDevice, options: &ModelOptions) -> Result<LoadReport> {
    let start = Instant::now();
    options.check()?;
    let checkpoint = Checkpoint::open(options)?;
    let config = checkpoint.family.config(&checkpoint.section)?;
    let options = &checkpoint.limited(options, &config);
    let plan = LoadPlan::new(device, options, &checkpoint, config)?;
    let kv = plan.kv_plan(device, options)?;
    let host_blocks = plan.host_blocks(options, &kv)?;
    Ok(LoadReport { host_blocks, ..plan.report(device, &checkpoint, kv, start) })
}

/// [`load`] on a given device.
pub fn load_on(device: &SharedDevice, options: &ModelOptions) -> Result<LoadedModel<LocalExecutor>> {
    let start = Instant::now();
    options.check()?;
    let checkpoint = Checkpoint::open(options)?;
    let config = checkpoint.family.config(&checkpoint.section)?;
    let options = &checkpoint.limited(options, &config);
    let plan = LoadPlan::new(device, options, &checkpoint, config)?;
    tracing::info!("{}: {} weights, {} MiB", checkpoint.name, plan.dtype, plan.weight_bytes >> 20);
    let kv = plan.kv_plan(device, options)?;
    let host_blocks = plan.host_blocks(options, &kv)?;
    let disk = plan.disk(options, &checkpoint, &kv)?;
    let before_weights = Instant::now();
    let mut loader = WeightLoader::new(device.clone(), &checkpoint.weights, plan.dtype);
    let model = Decoder::load(plan.config.clone(), &mut loader, plan.limits.max_seq_len_tokens)?;
    let unused = loader.finish().context(&checkpoint.name)?;
    let weight_seconds = before_weights.elapsed().as_secs_f64();
    let mut report = LoadReport { unused, host_blocks, weight_seconds, ..plan.report(device, &checkpoint, kv, start) };
    let limits = report.limits.clone();
    let mut executor = LocalExecutor::new(Parts {
        device: device.clone(),
        kv: allocate_kv(device, &plan.config, &limits, &report.kv.windows, plan.kv_dtype)?,
        windows: report.kv.windows.iter().map(|window| window.pool).collect(),
        layer_pools: layer_pools(&plan.config, &report.kv.windows),
        host_blocks: report.host_blocks.clone(),
        disk,
        workspace_bytes: plan.workspace_bytes,
        activation: device.activation_dtype(plan.dtype),
        embedding_size: plan.config.embedding_size(),
        rotation_border: plan.config.rotation_border(limits.max_seq_len_tokens),
        memory: memory_in_use(&report),
        model: Box::new(model),
        graphs: records(device, options),
        max_graphs: options.max_graphs,
        fault_step: options.fault_step,
        limits,
    })?;
    if device.is_asynchronous() {
        let (before, start) = (device.info().free_bytes, Instant::now());
        report.graphs = executor.warm_up()?;
        report.graph_bytes = before.saturating_sub(device.info().free_bytes) as usize;
        report.warm_up_seconds = start.elapsed().as_secs_f64();
    }
    report.seconds = start.elapsed().as_secs_f64();
    let LoadReport { seconds, weight_seconds, warm_up_seconds, .. } = report;
    tracing::info!(
        "loaded in {seconds:.2} s (weights {weight_seconds:.2} s, first steps {warm_up_seconds:.2} s)\n{report}"
    );
    let (special_tokens, max_input_len) = (checkpoint.special_tokens, checkpoint.engine.max_input_len);
    Ok(LoadedModel { executor, config: plan.config, special_tokens, max_input_len, report })
}

fn allocate_kv(
    device: &SharedDevice,
    config: &ModelConfig,
    limits: &ExecutorLimits,
    windows: &[WindowPlan],
    dtype: DType,
) -> Result<Vec<KvLayer>> {
    let block_rows = config.kv_rows_per_token() * limits.block_size_tokens;
    let blocks = |pool: usize| match pool.checked_sub(1) {
        Some(window) => windows[window].pool.num_blocks,
        None => limits.num_blocks,
    };
    layer_pools(config, windows)
        .into_iter()
        .map(|pool| {
            Ok(KvLayer {
                data: Tensor::zeros(device, blocks(pool) * block_rows, config.head_dim, dtype, "the KV cache")?,
                kv_heads: config.num_kv_heads,
                block_size_tokens: limits.block_size_tokens,
                head_dim: config.head_dim,
                keys_only: config.latent.is_some(),
            })
        })
        .collect()
}

/// For each layer 0, or the number of its window counted from 1.
fn layer_pools(config: &ModelConfig, windows: &[WindowPlan]) -> Vec<usize> {
    let number = |reach: (usize, usize)| {
        windows.iter().position(|window| (window.pool.window_tokens, window.pool.sink_tokens) == reach)
    };
    (0..config.num_layers).map(|layer| config.reach(layer).and_then(number).map_or(0, |number| number + 1)).collect()
}

fn memory_in_use(report: &LoadReport) -> ExecutorMemory {
    let bytes = report.device_bytes() as u64;
    match report.device.host_accessible {
        true => ExecutorMemory { cpu_bytes: bytes, ..Default::default() },
        false => ExecutorMemory { gpu_bytes: bytes, ..Default::default() },
    }
}
