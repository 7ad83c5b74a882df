//! What loading will take, known before anything large is read or allocated.

use super::super::disk::{DiskOptions, fingerprint};
use super::super::graphs;
use super::super::input::StepInput;
use super::super::late::LateRows;
use super::super::local::{edit_workspace, largest_step};
use super::super::memory::{KvBudget, KvLimits, KvPlan, KvWindow};
use super::super::results::Results;
use super::super::tables::table_bytes;
use super::checkpoint::Checkpoint;
use super::{LoadReport, ModelOptions, allocate_kv};
use crate::device::{DType, SharedDevice};
use crate::error::{Error, Result, ResultExt};
use crate::model::formats::EngineLimits;
use crate::model::{Decoder, Model, ModelConfig, WeightLoader};
use crate::ops::{Arena, Forward, PlanningDevice, PromptWindow};
use crate::step::ExecutorLimits;
use std::time::Instant;

/// Most sequences that run together where nothing else is said.
const DEFAULT_BATCH_SIZE: usize = 64;
/// Most tokens of a step where nothing else is said: on a CPU a few hundred tokens already saturate the arithmetic.
const HOST_STEP_TOKENS: usize = 1024;
const DEVICE_STEP_TOKENS: usize = 8192;
/// Share of the free memory for the KV cache where nothing else is said: a host has other users.
const HOST_KV_FRACTION: f64 = 0.5;
const DEVICE_KV_FRACTION: f64 = 0.9;

/// What loading will take, known before anything large is read or allocated.
pub(super) struct LoadPlan {
    pub config: ModelConfig,
    pub dtype: DType,
    pub kv_dtype: DType,
    pub parameters: u64,
    pub weight_bytes: usize,
    pub workspace_bytes: usize,
    pub buffer_bytes: usize,
    pub graph_bytes: usize,
    /// Without the number of blocks.
    pub limits: ExecutorLimits,
}

impl LoadPlan {
    pub fn new(
        device: &SharedDevice,
        options: &ModelOptions,
        checkpoint: &Checkpoint,
        config: ModelConfig,
    ) -> Result<Self> {
        let dtype = options.dtype.or(config.dtype).or(checkpoint.weights.main_dtype()).unwrap_or(DType::F32);
        let max_seq_len = max_seq_len(options, &config).context(checkpoint.section.origin())?;
        let mut config = config;
        config.narrow_windows(&options.attention_windows, options.sink_tokens, max_seq_len)?;
        let planning = PlanningDevice::shared(device);
        let mut loader = WeightLoader::planning(planning.clone(), &checkpoint.weights, dtype);
        let model = Decoder::load(config, &mut loader, max_seq_len)?;
        let (parameters, weight_bytes) = (loader.parameters(), loader.bytes());
        loader.finish().context(&checkpoint.name)?;
        let config = model.config().clone();
        let limits = step_limits(device, options, &checkpoint.engine, &config, max_seq_len);
        let kv_dtype = device.kv_dtype(dtype);
        let workspace_bytes = workspace_bytes(&planning, &model, &limits, dtype)?;
        let graphs = if device.is_asynchronous() && records(device, options) { options.max_graphs } else { Some(0) };
        let graph_bytes = graphs::planned_bytes(&limits, graphs);
        let mut plan = Self {
            config,
            dtype,
            kv_dtype,
            parameters,
            weight_bytes,
            workspace_bytes,
            buffer_bytes: 0,
            graph_bytes,
            limits,
        };
        plan.buffer_bytes = plan.buffers(device);
        Ok(plan)
    }

    pub fn report(&self, device: &SharedDevice, checkpoint: &Checkpoint, kv: KvPlan, start: Instant) -> LoadReport {
        LoadReport {
            source: checkpoint.name.clone(),
            format: checkpoint.format.clone(),
            family: self.config.family,
            device: device.info(),
            parameters: self.parameters,
            dtype: self.dtype,
            weight_bytes: self.weight_bytes,
            workspace_bytes: self.workspace_bytes,
            buffer_bytes: self.buffer_bytes,
            graphs: 0,
            graph_bytes: self.graph_bytes,
            kv_dtype: self.kv_dtype,
            kv_bytes_per_token: self.config.kv_bytes_per_token(self.kv_dtype),
            limits: ExecutorLimits { num_blocks: kv.num_blocks, ..self.limits.clone() },
            kv,
            host_blocks: Vec::new(),
            rotation: self.rotation(),
            unused: Vec::new(),
            seconds: start.elapsed().as_secs_f64(),
            weight_seconds: 0.0,
            warm_up_seconds: 0.0,
        }
    }

    fn rotation(&self) -> Option<String> {
        let longest = self.limits.max_seq_len_tokens;
        self.config.rope.chosen_for(longest, self.config.rotation_border(longest).is_some())
    }

    pub fn kv_plan(&self, device: &SharedDevice, options: &ModelOptions) -> Result<KvPlan> {
        let info = device.info();
        let taken = (self.weight_bytes + self.workspace_bytes + self.buffer_bytes + self.graph_bytes) as u64;
        let free_bytes = info.free_bytes.checked_sub(taken).ok_or_else(|| {
            Error::unavailable(format!(
                "the model needs {} MiB for weights and {} MiB for its workspace, buffers and recorded steps; {} has {} MiB free",
                self.weight_bytes >> 20,
                (self.workspace_bytes + self.buffer_bytes + self.graph_bytes) >> 20,
                info.description,
                info.free_bytes >> 20
            ))
        })?;
        let budget = KvBudget {
            max_tokens: options.kv_max_tokens,
            max_bytes: options.kv_max_bytes,
            free_fraction: options.kv_free_fraction,
            total_fraction: options.kv_total_fraction,
            default_fraction: if info.host_accessible { HOST_KV_FRACTION } else { DEVICE_KV_FRACTION },
            free_bytes,
            total_bytes: info.total_bytes,
        };
        let (depth, tokens) = (self.limits.pipeline_depth, self.limits.max_step_tokens);
        KvPlan::new(&KvLimits {
            budget,
            windows: if options.window_pools { self.windows() } else { Vec::new() },
            in_flight_tokens: depth * tokens,
            block_size_tokens: self.limits.block_size_tokens,
            bytes_per_token: self.config.kv_bytes_per_token(self.kv_dtype),
            max_seq_len_tokens: self.limits.max_seq_len_tokens,
            max_batch_size: batch_size(options),
        })
    }

    /// Bytes of the input of a step, the tables and results of sampling, and the rows of prompts that come as numbers.
    fn buffers(&self, device: &SharedDevice) -> usize {
        let limits = &self.limits;
        let sampling = LateRows::bytes(limits) + Results::bytes(limits) + table_bytes(limits);
        let prompts = PromptWindow::bytes(self.config.embedding_size(), device.activation_dtype(self.dtype));
        StepInput::bytes(largest_step(limits), self.windows().len()) + sampling + prompts
    }

    /// Layers that see a window of the context, by what they see.
    fn windows(&self) -> Vec<KvWindow> {
        let layer_bytes = self.config.kv_bytes_per_token(self.kv_dtype) / self.config.num_layers;
        let mut windows = Vec::<KvWindow>::new();
        let reaches = (0..self.config.num_layers).filter_map(|layer| self.config.reach(layer));
        for (window_tokens, sink_tokens) in reaches.filter(|(window, _)| *window < self.limits.max_seq_len_tokens) {
            let is_same = |window: &&mut KvWindow| window.is_of(window_tokens, sink_tokens);
            match windows.iter_mut().find(is_same) {
                Some(window) => window.layers += 1,
                None => windows.push(KvWindow { window_tokens, sink_tokens, layers: 1, layer_bytes }),
            }
        }
        windows
    }
}

impl LoadPlan {
    /// Blocks of the host tier in each pool; empty: there is none.
    pub fn host_blocks(&self, options: &ModelOptions, kv: &KvPlan) -> Result<Vec<usize>> {
        let bytes = options.kv_host_bytes;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let block_bytes = kv.bytes / kv.num_blocks.max(1);
        kv.host_blocks(bytes).ok_or_else(|| {
            Error::invalid(format!(
                "kv_cache_host_memory_bytes is {bytes}; one block of the KV cache has {block_bytes} bytes"
            ))
        })
    }
}

impl LoadPlan {
    /// The tier on disk, for this model and this layout of blocks.
    pub fn disk(&self, options: &ModelOptions, checkpoint: &Checkpoint, kv: &KvPlan) -> Result<Option<DiskOptions>> {
        let Some((folder, bytes)) = &options.kv_disk else { return Ok(None) };
        let block_bytes = self.limits.block_size_tokens * self.config.kv_bytes_per_token(self.kv_dtype);
        let max_blocks = usize::try_from(*bytes).unwrap_or(usize::MAX) / block_bytes.max(1);
        if max_blocks == 0 {
            return Err(Error::invalid(format!(
                "kv_cache_disk_bytes is {bytes}; one block of the KV cache has {block_bytes} bytes"
            )));
        }
        let pools: Vec<_> = kv.windows.iter().map(|window| (window.pool.window_tokens, window.layers)).collect();
        if pools.len() > 64 {
            return Err(Error::invalid(format!(
                "kv_cache_disk_path is set beside {} pools of windows; it can be used beside up to 64",
                pools.len()
            )));
        }
        let parts = [
            env!("CARGO_PKG_VERSION").to_owned(),
            format!("{} {} {}", self.dtype, self.kv_dtype, self.limits.block_size_tokens),
            format!("{:?} {:?} {:?} relative", self.config.windows, self.config.chunks, self.config.sink_tokens),
            format!("{pools:?}"),
            checkpoint.section.to_json(),
        ];
        let fingerprint = fingerprint(&parts, checkpoint.files.as_deref())?;
        Ok(Some(DiskOptions { folder: folder.clone(), max_blocks: max_blocks.min(u32::MAX as usize), fingerprint }))
    }
}

/// Whether decode steps are padded, and recorded where the device can.
pub(super) fn records(device: &SharedDevice, options: &ModelOptions) -> bool {
    options.graphs.unwrap_or(device.is_asynchronous())
}

fn batch_size(options: &ModelOptions) -> usize {
    options.max_batch_size.unwrap_or(DEFAULT_BATCH_SIZE)
}

fn max_seq_len(options: &ModelOptions, config: &ModelConfig) -> Result<usize> {
    let longest = config.rope.longest_tokens();
    match options.max_seq_len {
        Some(wanted) if wanted > longest => Err(Error::invalid(format!(
            "max_seq_len is {wanted}; the model's positions end at {longest} (max_position_embeddings and rope scaling)"
        ))),
        Some(wanted) => Ok(wanted),
        None => Ok(config.max_positions),
    }
}

fn step_limits(
    device: &SharedDevice,
    options: &ModelOptions,
    engine: &EngineLimits,
    config: &ModelConfig,
    max_seq_len: usize,
) -> ExecutorLimits {
    let default = if device.info().host_accessible { HOST_STEP_TOKENS } else { DEVICE_STEP_TOKENS };
    let default = default.min(engine.max_num_tokens.unwrap_or(default));
    let max_batch_size = batch_size(options);
    // More than all sequences at full length is never used; one block is what the engine needs at least.
    let most = max_seq_len.saturating_mul(max_batch_size).max(options.block_size_tokens);
    let max_step_tokens = options.max_step_tokens.unwrap_or(default.max(max_batch_size)).min(most);
    let max_step_sequences = max_batch_size.min(max_step_tokens);
    ExecutorLimits {
        num_blocks: 0,
        block_size_tokens: options.block_size_tokens,
        max_step_tokens,
        max_step_sequences,
        max_step_rows: (max_step_sequences + options.spare_step_rows).min(max_step_tokens),
        max_seq_len_tokens: max_seq_len,
        vocab_size: config.vocab_size,
        pipeline_depth: options.pipeline_depth.unwrap_or(if device.is_asynchronous() { 2 } else { 1 }),
    }
}

/// Runs the largest step on a device that computes nothing, and looks how much memory it took.
fn workspace_bytes(planning: &SharedDevice, model: &Decoder, limits: &ExecutorLimits, dtype: DType) -> Result<usize> {
    let arena = Arena::new(planning, 1 << 50)?;
    let shape = largest_step(limits);
    let input = StepInput::new(planning, shape, limits.block_size_tokens, 0)?;
    let step = input.tensors(shape)?;
    let one_block = ExecutorLimits { num_blocks: 1, ..limits.clone() };
    let kv = allocate_kv(planning, model.config(), &one_block, &[], planning.kv_dtype(dtype))?;
    let logits = model.forward(&Forward::new(planning, &arena, &step, &kv, planning.activation_dtype(dtype)))?;
    edit_workspace(&arena, logits.rows(), logits.cols())?;
    Ok(arena.high_water_bytes())
}
