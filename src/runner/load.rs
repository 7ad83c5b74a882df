//! From a model's folder to something that runs plans.

use super::disk::{DiskOptions, fingerprint};
use super::graphs;
use super::input::StepInput;
use super::late::LateRows;
use super::local::{LocalExecutor, Parts, edit_workspace, largest_step};
use super::memory::{KvBudget, KvLimits, KvPlan, KvWindow, WindowPlan};
use super::results::Results;
use super::tables::table_bytes;
use crate::device::{self, DType, DeviceInfo, DeviceKind, DeviceOptions, GpuId, KvLayer, SharedDevice, Tensor};
use crate::error::{Error, Result, ResultExt};
use crate::model::families::{self, Family};
use crate::model::formats::{self, EngineLimits, OpenedCheckpoint, WeightPlaces};
use crate::model::{Decoder, Model, ModelConfig, Section, SpecialTokens, WeightLoader, WeightSource, preset};
use crate::ops::{Arena, Forward, PlanningDevice, PromptWindow};
use crate::step::{Executor, ExecutorLimits, ExecutorMemory};
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

/// Most sequences that run together where nothing else is said.
const DEFAULT_BATCH_SIZE: usize = 64;
/// Most tokens of a step where nothing else is said: on a CPU a few hundred tokens already saturate the arithmetic.
const HOST_STEP_TOKENS: usize = 1024;
const DEVICE_STEP_TOKENS: usize = 8192;
/// Rows of logits beyond one for each sequence where nothing else is said: 64 MiB for a vocabulary of 128 Ki.
const SPARE_STEP_ROWS: usize = 128;
/// Share of the free memory for the KV cache where nothing else is said: a host has other users.
const HOST_KV_FRACTION: f64 = 0.5;
const DEVICE_KV_FRACTION: f64 = 0.9;

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder or file of any format that [`formats::open`] knows.
    Folder(PathBuf),
    /// The shape of a well-known model with made-up weights.
    Dummy(String),
    /// The shape that a folder's `config.json` says, with made-up weights.
    DummyFolder(PathBuf),
}

/// What a model is loaded with.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    pub source: ModelSource,
    /// Where the weights of an engine folder may be.
    pub weight_places: WeightPlaces,
    pub device: DeviceKind,
    /// GPUs; none: the first.
    pub gpu_ids: Vec<GpuId>,
    pub device_options: DeviceOptions,
    /// Type of the matrices; `None`: the checkpoint's.
    pub dtype: Option<DType>,
    /// Sequences that run together; `None`: what the engine was built for, else 64.
    pub max_batch_size: Option<usize>,
    /// Prompt and output together; `None`: what the engine or the checkpoint was made for.
    pub max_seq_len: Option<usize>,
    /// Most tokens in one step; `None`: chosen for the device.
    pub max_step_tokens: Option<usize>,
    /// Rows of logits of a step beyond one for each sequence: more are computed where prompts or drafts are looked at.
    pub spare_step_rows: usize,
    /// Power of two.
    pub block_size_tokens: usize,
    /// `max_tokens_in_paged_kv_cache`.
    pub kv_max_tokens: Option<usize>,
    /// `kv_cache_free_gpu_mem_fraction`.
    pub kv_free_fraction: Option<f64>,
    /// `max_gpu_total_bytes`: most bytes of the KV cache.
    pub kv_max_bytes: Option<u64>,
    /// `kv_cache_total_gpu_mem_fraction`: share of all memory of the device that weights, workspace and KV cache take.
    pub kv_total_fraction: Option<f64>,
    /// `max_attention_window_size`: windows of the layers, repeated; empty: the model's own.
    pub attention_windows: Vec<usize>,
    /// `sink_token_length`: of the tokens of those windows, the ones that are the first of the sequence.
    pub sink_tokens: usize,
    /// Whether layers that see a window of the context may have blocks of their own, fewer than the others.
    pub window_pools: bool,
    /// `kv_cache_host_memory_bytes`: memory of the host behind the KV cache; 0: none.
    pub kv_host_bytes: u64,
    /// `kv_cache_disk_path` and `kv_cache_disk_bytes`: where blocks are kept that outlive the process, and how much of them.
    pub kv_disk: Option<(PathBuf, u64)>,
    /// `cuda_graph_mode`: whether decode steps are padded to few shapes and repeated from a recording; `None`: where the
    /// device works on its own.
    pub graphs: Option<bool>,
    /// `cuda_graph_cache_size`: most recorded steps; `None`: all that are of use.
    pub max_graphs: Option<usize>,
    /// Before the step of this number the device is made to fail for good: to test what comes after.
    pub fault_step: Option<u64>,
    /// Steps that may be launched before the oldest is read; `None`: 2 where the device works on its own, else 1.
    pub pipeline_depth: Option<usize>,
}

impl ModelOptions {
    /// Defaults for everything but the source.
    pub fn new(source: ModelSource) -> Self {
        Self {
            source,
            weight_places: WeightPlaces::default(),
            device: DeviceKind::Auto,
            gpu_ids: Vec::new(),
            device_options: DeviceOptions::default(),
            dtype: None,
            max_batch_size: None,
            max_seq_len: None,
            max_step_tokens: None,
            spare_step_rows: SPARE_STEP_ROWS,
            block_size_tokens: 64,
            kv_max_tokens: None,
            kv_free_fraction: None,
            kv_max_bytes: None,
            kv_total_fraction: None,
            attention_windows: Vec::new(),
            sink_tokens: 0,
            window_pools: true,
            kv_host_bytes: 0,
            kv_disk: None,
            graphs: None,
            max_graphs: None,
            fault_step: None,
            pipeline_depth: None,
        }
    }

    fn check(&self) -> Result<()> {
        let at_least_one = |name: &str, value: Option<usize>| match value {
            Some(0) => Err(Error::invalid(format!("{name} is 0; it must be at least 1"))),
            _ => Ok(()),
        };
        at_least_one("max_batch_size", self.max_batch_size)?;
        at_least_one("max_seq_len", self.max_seq_len)?;
        at_least_one("max_num_tokens", self.max_step_tokens)?;
        at_least_one("max_tokens_in_paged_kv_cache", self.kv_max_tokens)?;
        at_least_one("pipeline_depth", self.pipeline_depth)?;
        at_least_one("cuda_graph_cache_size", self.max_graphs)?;
        let size = self.block_size_tokens;
        if !size.is_power_of_two() || size > 1024 {
            return Err(Error::invalid(format!(
                "tokens_per_block is {size}; it must be a power of two from 1 to 1024"
            )));
        }
        let fractions = [
            ("kv_cache_free_gpu_mem_fraction", self.kv_free_fraction),
            ("kv_cache_total_gpu_mem_fraction", self.kv_total_fraction),
        ];
        let is_share = |fraction: f64| fraction > 0.0 && fraction <= 1.0;
        match fractions.into_iter().find(|(_, fraction)| fraction.is_some_and(|fraction| !is_share(fraction))) {
            Some((name, fraction)) => {
                let fraction = fraction.unwrap_or_default();
                Err(Error::invalid(format!("{name} is {fraction}; it must be greater than 0 and at most 1")))
            }
            None => Ok(()),
        }
    }
}

/// A model that is ready.
pub struct LoadedModel<E = Box<dyn Executor>> {
    pub executor: E,
    pub config: ModelConfig,
    pub special_tokens: SpecialTokens,
    /// Longest prompt of the engine that the folder was built for.
    pub max_input_len: Option<usize>,
    pub report: LoadReport,
}

/// What was loaded and which memory it takes.
#[derive(Clone, Debug)]
pub struct LoadReport {
    pub source: String,
    /// What kind of checkpoint was found.
    pub format: String,
    pub family: &'static str,
    pub device: DeviceInfo,
    pub parameters: u64,
    pub dtype: DType,
    pub weight_bytes: usize,
    pub workspace_bytes: usize,
    /// Recorded steps: planned, and after the model is loaded how many there are and what they took.
    pub graphs: usize,
    pub graph_bytes: usize,
    pub kv: KvPlan,
    pub kv_dtype: DType,
    /// Bytes of keys and values of one token, all layers.
    pub kv_bytes_per_token: usize,
    /// Blocks of the host tier.
    pub host_blocks: usize,
    pub limits: ExecutorLimits,
    /// Names of tensors that the model does not use.
    pub unused: Vec<String>,
    pub seconds: f64,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let limits = &self.limits;
        writeln!(f, "model      {} ({}, {:.1} M parameters)", self.source, self.family, self.parameters as f64 / 1e6)?;
        writeln!(f, "format     {}", self.format)?;
        writeln!(f, "device     {}", self.device.description)?;
        writeln!(f, "weights    {} ({})", mib(self.weight_bytes), self.dtype)?;
        writeln!(f, "workspace  {} (steps of up to {} tokens)", mib(self.workspace_bytes), limits.max_step_tokens)?;
        if self.graphs > 0 {
            writeln!(f, "graphs     {} ({} recorded steps)", mib(self.graph_bytes), self.graphs)?;
        }
        writeln!(
            f,
            "KV cache   {} ({}): {} blocks of {} = {} tokens",
            mib(self.kv.bytes - self.kv.window_bytes()),
            self.kv_dtype,
            self.kv.num_blocks,
            limits.block_size_tokens,
            self.kv.tokens
        )?;
        for window in &self.kv.windows {
            let (pool, layers) = (window.pool, window.layers);
            let sinks =
                if pool.sink_tokens > 0 { format!("the first {} and ", pool.sink_tokens) } else { String::new() };
            writeln!(
                f,
                "           {}: {} blocks for {layers} layers that see {sinks}the last {} tokens",
                mib(window.bytes),
                pool.num_blocks,
                pool.window_tokens
            )?;
        }
        if !self.kv.windows.is_empty() {
            let whole = self.kv.tokens * self.kv_bytes_per_token;
            writeln!(f, "           {} in all; without windows {}", mib(self.kv.bytes), mib(whole))?;
        }
        if self.host_blocks > 0 {
            let tokens = self.host_blocks * limits.block_size_tokens;
            let bytes = mib(tokens * self.kv_bytes_per_token);
            writeln!(f, "host tier  {bytes}: {} blocks = {tokens} tokens", self.host_blocks)?;
        }
        writeln!(
            f,
            "limits     {} sequences of up to {} tokens; vocabulary of {}",
            limits.max_step_sequences, limits.max_seq_len_tokens, limits.vocab_size
        )?;
        if let Some(first) = self.unused.first() {
            writeln!(f, "ignored    {} tensors that the model does not use, {first} the first", self.unused.len())?;
        }
        write!(f, "loaded in  {:.2} s", self.seconds)
    }
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
    let start = Instant::now();
    let device = device::open(options.device, &options.gpu_ids, &options.device_options)?;
    options.check()?;
    let checkpoint = Checkpoint::open(options)?;
    let config = checkpoint.family.config(&checkpoint.section)?;
    let options = &checkpoint.limited(options, &config);
    let plan = LoadPlan::new(&device, options, &checkpoint, config)?;
    let (kv, host_blocks) = (plan.kv_plan(&device, options)?, plan.host_blocks(options)?);
    Ok(LoadReport { host_blocks, ..plan.report(&device, &checkpoint, kv, start) })
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
    let (kv, host_blocks) = (plan.kv_plan(device, options)?, plan.host_blocks(options)?);
    let disk = plan.disk(options, &checkpoint)?;
    let mut loader = WeightLoader::new(device.clone(), &checkpoint.weights, plan.dtype);
    let model = Decoder::load(plan.config.clone(), &mut loader, plan.limits.max_seq_len_tokens)?;
    let unused = loader.finish().context(&checkpoint.name)?;
    let mut report = LoadReport { unused, host_blocks, ..plan.report(device, &checkpoint, kv, start) };
    let limits = report.limits.clone();
    let mut executor = LocalExecutor::new(Parts {
        device: device.clone(),
        kv: allocate_kv(device, &plan.config, &limits, &report.kv.windows, plan.kv_dtype)?,
        windows: report.kv.windows.iter().map(|window| window.pool).collect(),
        layer_pools: layer_pools(&plan.config, &report.kv.windows),
        host_blocks,
        disk,
        workspace_bytes: plan.workspace_bytes,
        activation: device.activation_dtype(plan.dtype),
        embedding_size: plan.config.embedding_size(),
        memory: memory_in_use(&report),
        model: Box::new(model),
        graphs: records(device, options),
        max_graphs: options.max_graphs,
        fault_step: options.fault_step,
        limits,
    })?;
    if device.is_asynchronous() {
        let before = device.info().free_bytes;
        report.graphs = executor.warm_up()?;
        report.graph_bytes = before.saturating_sub(device.info().free_bytes) as usize;
    }
    report.seconds = start.elapsed().as_secs_f64();
    tracing::info!("loaded\n{report}");
    let (special_tokens, max_input_len) = (checkpoint.special_tokens, checkpoint.engine.max_input_len);
    Ok(LoadedModel { executor, config: plan.config, special_tokens, max_input_len, report })
}

/// The files of a model.
struct Checkpoint {
    name: String,
    format: String,
    family: &'static Family,
    section: Section,
    special_tokens: SpecialTokens,
    weights: WeightSource,
    engine: EngineLimits,
    /// Where the weights are; `None`: they are made up.
    files: Option<PathBuf>,
}

impl Checkpoint {
    fn open(options: &ModelOptions) -> Result<Self> {
        let path = match &options.source {
            ModelSource::Folder(path) => path,
            ModelSource::Dummy(name) => return Self::dummy(format!("dummy {name}"), preset(name)?),
            ModelSource::DummyFolder(path) => {
                return Self::dummy(format!("dummy {}", path.display()), Section::read_model(path)?);
            }
        };
        let OpenedCheckpoint { format, path, config, special_tokens, store, limits } =
            formats::open(path, &options.weight_places)?;
        Ok(Self {
            name: path.display().to_string(),
            format,
            family: families::detect(&config)?,
            section: config,
            special_tokens,
            weights: WeightSource::Checkpoint(store),
            engine: limits,
            files: Some(path),
        })
    }

    fn dummy(name: String, section: Section) -> Result<Self> {
        Ok(Self {
            name,
            format: "made-up weights".to_owned(),
            family: families::detect(&section)?,
            section,
            special_tokens: SpecialTokens::default(),
            weights: WeightSource::Random,
            engine: EngineLimits::default(),
            files: None,
        })
    }

    /// Options where they are given, else what the engine was built for.
    fn limited(&self, options: &ModelOptions, config: &ModelConfig) -> ModelOptions {
        let engine_seq_len = self.engine.max_seq_len.map(|longest| longest.min(config.rope.longest_tokens()));
        ModelOptions {
            max_batch_size: options.max_batch_size.or(self.engine.max_batch_size),
            max_seq_len: options.max_seq_len.or(engine_seq_len),
            ..options.clone()
        }
    }
}

/// What loading will take, known before anything large is read or allocated.
struct LoadPlan {
    config: ModelConfig,
    dtype: DType,
    kv_dtype: DType,
    parameters: u64,
    weight_bytes: usize,
    workspace_bytes: usize,
    graph_bytes: usize,
    /// Without the number of blocks.
    limits: ExecutorLimits,
}

impl LoadPlan {
    fn new(
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
        Ok(Self { config, dtype, kv_dtype, parameters, weight_bytes, workspace_bytes, graph_bytes, limits })
    }

    fn report(&self, device: &SharedDevice, checkpoint: &Checkpoint, kv: KvPlan, start: Instant) -> LoadReport {
        LoadReport {
            source: checkpoint.name.clone(),
            format: checkpoint.format.clone(),
            family: self.config.family,
            device: device.info(),
            parameters: self.parameters,
            dtype: self.dtype,
            weight_bytes: self.weight_bytes,
            workspace_bytes: self.workspace_bytes,
            graphs: 0,
            graph_bytes: self.graph_bytes,
            kv_dtype: self.kv_dtype,
            kv_bytes_per_token: self.config.kv_bytes_per_token(self.kv_dtype),
            limits: ExecutorLimits { num_blocks: kv.num_blocks, ..self.limits.clone() },
            kv,
            host_blocks: 0,
            unused: Vec::new(),
            seconds: start.elapsed().as_secs_f64(),
        }
    }

    fn kv_plan(&self, device: &SharedDevice, options: &ModelOptions) -> Result<KvPlan> {
        let info = device.info();
        let prompt_bytes = PromptWindow::bytes(self.config.embedding_size(), device.activation_dtype(self.dtype));
        let rows = LateRows::bytes(&self.limits) + Results::bytes(&self.limits) + table_bytes(&self.limits);
        let taken = self.weight_bytes + self.workspace_bytes + self.graph_bytes + rows + prompt_bytes;
        let taken = taken as u64;
        let free_bytes = info.free_bytes.checked_sub(taken).ok_or_else(|| {
            Error::unavailable(format!(
                "the model needs {} MiB for weights and {} MiB for its workspace and recorded steps; {} has {} MiB free",
                self.weight_bytes >> 20,
                (self.workspace_bytes + self.graph_bytes) >> 20,
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
            windows: if options.window_pools && options.kv_host_bytes == 0 && options.kv_disk.is_none() {
                self.windows()
            } else {
                Vec::new()
            },
            in_flight_tokens: depth * tokens,
            block_size_tokens: self.limits.block_size_tokens,
            bytes_per_token: self.config.kv_bytes_per_token(self.kv_dtype),
            max_seq_len_tokens: self.limits.max_seq_len_tokens,
            max_batch_size: batch_size(options),
        })
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
    /// Blocks of the host tier.
    fn host_blocks(&self, options: &ModelOptions) -> Result<usize> {
        let block_bytes = self.limits.block_size_tokens * self.config.kv_bytes_per_token(self.kv_dtype);
        let blocks = usize::try_from(options.kv_host_bytes).unwrap_or(usize::MAX) / block_bytes.max(1);
        if blocks == 0 && options.kv_host_bytes > 0 {
            return Err(Error::invalid(format!(
                "kv_cache_host_memory_bytes is {}; one block of the KV cache has {block_bytes} bytes",
                options.kv_host_bytes
            )));
        }
        Ok(blocks.min(u32::MAX as usize / 2))
    }
}

impl LoadPlan {
    /// The tier on disk, for this model and this layout of blocks.
    fn disk(&self, options: &ModelOptions, checkpoint: &Checkpoint) -> Result<Option<DiskOptions>> {
        let Some((folder, bytes)) = &options.kv_disk else { return Ok(None) };
        let block_bytes = self.limits.block_size_tokens * self.config.kv_bytes_per_token(self.kv_dtype);
        let max_blocks = usize::try_from(*bytes).unwrap_or(usize::MAX) / block_bytes.max(1);
        if max_blocks == 0 {
            return Err(Error::invalid(format!(
                "kv_cache_disk_bytes is {bytes}; one block of the KV cache has {block_bytes} bytes"
            )));
        }
        let parts = [
            env!("CARGO_PKG_VERSION").to_owned(),
            format!("{} {} {}", self.dtype, self.kv_dtype, self.limits.block_size_tokens),
            format!("{:?} {:?} {:?}", self.config.windows, self.config.chunks, self.config.sink_tokens),
            checkpoint.section.to_json(),
        ];
        let fingerprint = fingerprint(&parts, checkpoint.files.as_deref())?;
        Ok(Some(DiskOptions { folder: folder.clone(), max_blocks: max_blocks.min(u32::MAX as usize), fingerprint }))
    }
}

/// Whether decode steps are padded, and recorded where the device can.
fn records(device: &SharedDevice, options: &ModelOptions) -> bool {
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
    let bytes = (report.weight_bytes + report.workspace_bytes + report.graph_bytes + report.kv.bytes) as u64;
    match report.device.host_accessible {
        true => ExecutorMemory { cpu_bytes: bytes, ..Default::default() },
        false => ExecutorMemory { gpu_bytes: bytes, ..Default::default() },
    }
}
