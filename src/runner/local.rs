//! A model on a device of this process.

mod rows;

use super::disk::{DiskOptions, DiskTier};
use super::graphs::Graphs;
use super::host_rows::{HostSampler, download_rows};
use super::input::{StepInput, StepShape, prompt_rows};
use super::late::LateRows;
use super::results::Results;
use super::sequences::Sequences;
use super::tables::Tables;
use super::tiers::Tiers;
use super::times::{DecodeTime, StepTimes};
use crate::decode::rank::log_prob;
use crate::device::{DType, KvLayer, Sample, SharedDevice, Tensor, Transfers};
use crate::error::{Error, Result, ResultExt};
use crate::model::Model;
use crate::ops::{Arena, Forward, PromptWindow};
use crate::step::{
    Chunk, DiskLimits, DiskOrder, Executor, ExecutorLimits, ExecutorMemory, Inspection, Landed, StepOutput, StepPlan,
    TierLimits, Transfer, WindowBlocks, WindowPool,
};
use parking_lot::Mutex;
use rows::{Flight, edit_logits};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Enqueues each step when it is launched; `collect` waits for its tokens.
///
/// Sampled tokens stay on the device until they are collected: entry `s * R + r` of `sampled` holds the token of row r of
/// the last step whose number is s modulo the pipeline's depth, and a later step takes it from there. R: the most rows.
pub struct LocalExecutor {
    // Before the memory that they work on.
    graphs: Option<Graphs>,
    tiers: Option<Tiers>,
    disk: Option<DiskTier>,
    device: SharedDevice,
    model: Box<dyn Model>,
    kv: Vec<KvLayer>,
    windows: Vec<WindowPool>,
    layer_pools: Vec<usize>,
    arena: Arena,
    input: StepInput,
    transfers: Box<dyn Transfers>,
    tables: Tables,
    prompt_window: PromptWindow,
    /// Values in a row of a prompt table.
    table_width: usize,
    rotation_border: Option<usize>,
    /// `[1, depth * max_step_rows]`.
    sampled: Tensor,
    results: Results,
    late_rows: LateRows,
    activation: DType,
    limits: ExecutorLimits,
    memory: ExecutorMemory,
    sequences: Sequences,
    host_sampler: HostSampler,
    in_flight: VecDeque<Flight>,
    /// With the time when each had ended.
    finished: VecDeque<(StepOutput, Instant)>,
    launched: usize,
    fetched: Vec<u8>,
    /// Rows of the last step and its logits.
    last_logits: Option<(usize, Tensor)>,
    fault_step: Option<u64>,
    times: Option<StepTimes>,
}

/// What a [`LocalExecutor`] is made of.
pub(super) struct Parts {
    pub(super) device: SharedDevice,
    pub(super) model: Box<dyn Model>,
    pub(super) kv: Vec<KvLayer>,
    /// Of the host tier: of full length, and of each pool of windows; empty: there is none.
    pub(super) host_blocks: Vec<usize>,
    pub(super) disk: Option<DiskOptions>,
    /// Pools of layers that see a window of the context.
    pub(super) windows: Vec<WindowPool>,
    /// For each layer 0, or the number of its pool of windows counted from 1.
    pub(super) layer_pools: Vec<usize>,
    pub(super) workspace_bytes: usize,
    pub(super) activation: DType,
    /// C of the embeddings.
    pub(super) embedding_size: usize,
    pub(super) rotation_border: Option<usize>,
    pub(super) limits: ExecutorLimits,
    pub(super) memory: ExecutorMemory,
    /// Whether decode steps are padded and recorded.
    pub(super) graphs: bool,
    /// Most recordings; `None`: all that are of use.
    pub(super) max_graphs: Option<usize>,
    /// Before the step of this number the device is made to fail.
    pub(super) fault_step: Option<u64>,
}

/// The logits of a step, and the memory of what edits make of them, `[R, V]` all. Valid until the next step.
#[derive(Clone)]
pub(super) struct StepLogits {
    rows: Tensor,
    edited: Tensor,
    /// Of tokens.
    counts: Tensor,
}

/// A step that was enqueued.
struct Launched {
    logits: StepLogits,
    /// `[1, T]`.
    tokens: Tensor,
    /// `[R, 12]`: how the step itself samples its rows.
    sampling: Tensor,
    first_slot: usize,
}

impl LocalExecutor {
    pub(super) fn new(parts: Parts) -> Result<Self> {
        let (device, limits) = (parts.device, parts.limits);
        let (largest, depth) = (largest_step(&limits), limits.pipeline_depth);
        let upload_bytes = StepInput::bytes(largest, parts.windows.len());
        let transfers = device.transfers(upload_bytes, Results::bytes(&limits), depth)?;
        let tables = Tables::new(&device, &limits)?;
        let prompt_window = PromptWindow::new(&device, parts.embedding_size, parts.activation)?;
        let late_rows = LateRows::new(&device, &limits)?;
        let pools = pool_layers(&parts.kv, &parts.layer_pools, parts.windows.len());
        let tiers = match parts.host_blocks.is_empty() {
            true => None,
            false => Some(Tiers::new(&device, pools.clone(), &parts.host_blocks)?),
        };
        let disk = parts.disk.map(|options| DiskTier::open(options, &device, pools)).transpose()?;
        let disk_bytes = disk.as_ref().map_or(0, DiskTier::pinned_bytes);
        let tier_bytes = tiers.as_ref().map_or(0, Tiers::pinned_bytes) + disk_bytes;
        let row_bytes = tables.pinned_bytes() + late_rows.pinned_bytes();
        let pinned_bytes = (transfers.pinned_bytes() + row_bytes + tier_bytes) as u64;
        let memory = ExecutorMemory { pinned_bytes, ..parts.memory };
        Ok(Self {
            tiers,
            disk,
            graphs: parts.graphs.then(|| Graphs::new(&limits, parts.max_graphs)),
            fault_step: parts.fault_step,
            times: None,
            arena: Arena::new(&device, parts.workspace_bytes)?,
            input: StepInput::new(&device, largest, limits.block_size_tokens, parts.windows.len())?,
            transfers,
            tables,
            prompt_window,
            table_width: parts.embedding_size,
            rotation_border: parts.rotation_border,
            sampled: Tensor::zeros(&device, 1, depth * largest.rows, DType::I32, "sampled tokens")?,
            results: Results::new(&device, &limits)?,
            late_rows,
            model: parts.model,
            kv: parts.kv,
            windows: parts.windows,
            layer_pools: parts.layer_pools,
            activation: parts.activation,
            device,
            memory,
            sequences: Sequences::new(limits.vocab_size, parts.embedding_size),
            limits,
            host_sampler: HostSampler::default(),
            in_flight: VecDeque::new(),
            finished: VecDeque::new(),
            launched: 0,
            fetched: Vec::new(),
            last_logits: None,
        })
    }

    /// Runs what would otherwise be loaded, chosen or recorded while requests wait: the largest prompt, and every bucket
    /// of decode steps, all of it padding. Returns how many recordings there are. For devices that work on their own.
    ///
    /// # Errors
    /// A failure of the device.
    pub(super) fn warm_up(&mut self) -> Result<usize> {
        let largest = largest_step(&self.limits);
        self.forward(&[], 0, Some(StepShape { sequences: 1, rows: 1, edits: 0, ..largest }))?;
        for bucket in self.graphs.as_ref().map_or(Vec::new(), |graphs| graphs.buckets().to_vec()) {
            self.forward(&[], 0, Some(bucket))?;
        }
        self.device.synchronize()?;
        Ok(self.graphs.as_ref().map_or(0, Graphs::num_recorded))
    }

    /// Takes the times of steps from now on. They are told when the executor has been dropped; `None`: the device keeps no
    /// times of its own.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn time_steps(&mut self) -> Result<Option<Arc<Mutex<Vec<DecodeTime>>>>> {
        self.times = StepTimes::new(&self.device)?;
        Ok(self.times.as_ref().map(StepTimes::told))
    }

    /// Sequences that the runner remembers.
    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The logits `[R, V]` of the last step, before any pass.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn last_logits(&self) -> Result<Vec<Vec<f32>>> {
        match &self.last_logits {
            Some((rows, logits)) => download_rows(&self.device, &logits.row_range(0, *rows)),
            None => Ok(Vec::new()),
        }
    }

    fn start(&mut self, plan: &StepPlan) -> Result<()> {
        self.check(plan)?;
        if self.fault_step == Some(plan.step) {
            self.device.inject_fault()?;
        }
        self.tables.release_ended(plan, &mut self.sequences);
        self.sequences.apply(plan)?;
        self.tables.prepare(plan, &mut self.sequences, &self.sampled)?;
        let full = self.kv.iter().zip(&self.layer_pools).filter(|(_, pool)| **pool == 0);
        for (layer, _) in full.filter(|_| !plan.block_copies.is_empty()) {
            self.device.copy_blocks(layer, &plan.block_copies)?;
        }
        self.copy_windows(plan)?;
        let mut flight = Flight { step: plan.step, rows: Vec::new(), inspections: Vec::new(), fetches: None };
        if !plan.chunks.is_empty() {
            let first_slot = self.launched % self.limits.pipeline_depth * self.limits.max_step_rows;
            self.launched += 1;
            let launched = self.forward(&plan.chunks, first_slot, None)?;
            self.sample(plan, &launched, &mut flight)?;
            let logits = launched.logits.rows;
            flight.inspections = self.inspect(plan, &logits)?;
            self.last_logits = Some((plan.chunks.iter().map(Chunk::rows).sum(), logits));
        }
        self.in_flight.push_back(flight);
        Ok(())
    }

    /// Copies within the pools of windows.
    fn copy_windows(&self, plan: &StepPlan) -> Result<()> {
        if plan.window_copies.is_empty() {
            return Ok(());
        }
        for pool in 0..self.windows.len() {
            let of_pool = plan.window_copies.iter().filter(|copy| copy.pool == pool);
            let copies: Vec<_> = of_pool.map(|copy| copy.copy).collect();
            let layers = self.kv.iter().zip(&self.layer_pools).filter(|(_, number)| **number == pool + 1);
            for (layer, _) in layers.filter(|_| !copies.is_empty()) {
                self.device.copy_blocks(layer, &copies)?;
            }
        }
        Ok(())
    }

    /// Enqueues uploads, forward pass and the sampling of rows that need to wait for nothing. `padding`: a shape to warm up,
    /// where `chunks` are none.
    fn forward(&mut self, chunks: &[Chunk], first_slot: usize, padding: Option<StepShape>) -> Result<Launched> {
        let Self {
            graphs, device, model, kv, arena, input, transfers, tables, sampled, results, sequences, times, ..
        } = self;
        let (activation, prompt_window, layer_pools) = (self.activation, &self.prompt_window, &self.layer_pools[..]);
        let chunks = chunks.iter().map(|chunk| Ok((chunk, sequences.find(chunk.seq)?)));
        let chunks = chunks.collect::<Result<Vec<_>>>()?;
        let exact = padding.unwrap_or_else(|| StepShape::exact(&chunks));
        let prompt_rows = prompt_rows(&chunks);
        let graphs_of_step = graphs.as_ref().filter(|_| prompt_rows.is_empty());
        let bucket = graphs_of_step.and_then(|graphs| graphs.bucket(exact));
        let shape = bucket.unwrap_or(exact);
        let step = input.upload(&mut **transfers, &chunks, shape, first_slot)?;
        if let Some(times) = times {
            times.begin((exact.query_len == 1).then_some(exact.sequences))?;
        }
        let out = results.samples(shape.rows)?;
        let mut run = || {
            device.resolve_tokens(&step.tensors.tokens, sampled)?;
            let _scope = arena.scope();
            let cx = Forward::new(device, arena, &step.tensors, kv, activation).with_pools(layer_pools);
            let rows = model.forward(&cx.with_prompt_rows(prompt_window, &prompt_rows))?;
            let (edited, counts) = edit_workspace(arena, rows.rows(), rows.cols())?;
            let logits = StepLogits { rows, edited, counts };
            if shape.rows > 0 {
                let (tokens, edits) = (&step.tensors.tokens, step.edits.as_ref());
                if let Some(edits) = edits {
                    edit_logits(device, &logits, edits, tables.tensor(), tokens, None, &step.sampling)?;
                }
                let edited = edits.map(|_| &logits.edited);
                let (narrowed, params) = (edited.is_some(), &step.sampling);
                device.sample(&Sample { logits: &logits.rows, edited, params, out: &out, narrowed, sampled })?;
            }
            Ok(logits)
        };
        let logits = match (graphs, bucket) {
            (Some(graphs), Some(bucket)) if padding.is_some() => {
                let logits = run()?;
                graphs.record(device, bucket, &mut run)?;
                logits
            }
            (Some(graphs), Some(bucket)) => graphs.run(bucket, &mut run)?,
            _ => run()?,
        };
        Ok(Launched { logits, tokens: step.tensors.tokens, sampling: step.sampling, first_slot })
    }

    /// Reads what chunks are inspected for: waits for the logits, which the next step overwrites.
    fn inspect(&self, plan: &StepPlan, logits: &Tensor) -> Result<Vec<Inspection>> {
        let mut inspections = Vec::new();
        let mut end = 0;
        for chunk in &plan.chunks {
            end += chunk.rows();
            let positions = chunk.inspect.positions;
            if positions == 0 {
                continue;
            }
            let rows = download_rows(&self.device, &logits.row_range(end - positions, positions))?;
            let start = chunk.start + chunk.len - positions;
            let known = &self.sequences.find(chunk.seq)?.tokens;
            let behind = start + positions + usize::from(!chunk.sample);
            let next = known[start + 1..behind.min(known.len())].iter().filter(|_| chunk.inspect.next_log_probs);
            let next_log_probs = rows.iter().zip(next).map(|(row, &token)| log_prob(row, token)).collect();
            let logits = if chunk.inspect.logits { rows } else { Vec::new() };
            inspections.push(Inspection { seq: chunk.seq, start, logits, next_log_probs });
        }
        Ok(inspections)
    }

    /// Holds a plan against the limits that the memory was planned for.
    fn check(&self, plan: &StepPlan) -> Result<()> {
        let limits = &self.limits;
        let (tokens, sequences) = (plan.chunks.iter().map(|chunk| chunk.len).sum(), plan.chunks.len());
        let rows = plan.chunks.iter().map(Chunk::rows).sum();
        let wanted: [usize; 3] = [tokens, sequences, rows];
        let most = [limits.max_step_tokens, limits.max_step_sequences, limits.max_step_rows];
        if wanted.iter().zip(&most).any(|(wanted, most)| wanted > most) {
            return Err(Error::internal(format!(
                "a plan of {wanted:?} tokens, sequences and rows of logits; a step takes {most:?}"
            )));
        }
        let too_long = plan.chunks.iter().find(|chunk| chunk.start + chunk.len > limits.max_seq_len_tokens);
        if let Some(chunk) = too_long {
            return Err(Error::internal(format!(
                "sequence {} has {} tokens; the model was loaded for {}",
                chunk.seq,
                chunk.start + chunk.len,
                limits.max_seq_len_tokens
            )));
        }
        let mut changes = plan.window_blocks.iter();
        let exist = |change: &&WindowBlocks| {
            let pool = self.windows.get(change.pool).map_or(0, |pool| pool.num_blocks);
            change.blocks.iter().all(|block| (block.0 as usize) < pool)
        };
        if let Some(change) = changes.find(|change| !exist(change)) {
            return Err(Error::internal(format!("there are no such blocks of a window: {change:?}")));
        }
        let mut blocks = plan.chunks.iter().flat_map(|chunk| &chunk.append_blocks).copied();
        match blocks.find(|block| block.0 as usize >= limits.num_blocks) {
            Some(block) => Err(Error::internal(format!("block {block} of {} blocks", limits.num_blocks))),
            None => Ok(()),
        }
    }
}

/// The layers of each pool, those of full length first.
fn pool_layers(kv: &[KvLayer], layer_pools: &[usize], windows: usize) -> Vec<Vec<KvLayer>> {
    let of = |pool: usize| kv.iter().zip(layer_pools).filter(move |(_, number)| **number == pool);
    (0..=windows).map(|pool| of(pool).map(|(layer, _)| layer.clone()).collect()).collect()
}

/// Edited logits and counts of tokens, `[R, V]` both.
pub(super) fn edit_workspace(arena: &Arena, rows: usize, vocab: usize) -> Result<(Tensor, Tensor)> {
    Ok((arena.allocate(rows, vocab, DType::F32)?, arena.allocate(rows, vocab, DType::I32)?))
}

/// The largest step within `limits`.
pub(super) fn largest_step(limits: &ExecutorLimits) -> StepShape {
    StepShape {
        tokens: limits.max_step_tokens,
        sequences: limits.max_step_sequences,
        rows: limits.max_step_rows,
        edits: limits.max_step_rows,
        blocks: limits.max_seq_len_tokens.div_ceil(limits.block_size_tokens),
        query_len: limits.max_step_tokens,
        context_len: limits.max_seq_len_tokens,
    }
}

impl Executor for LocalExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.limits.clone()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        let (open, depth) = (self.in_flight.len() + self.finished.len(), self.limits.pipeline_depth);
        if open >= depth {
            return Err(Error::internal(format!("step {} is launched while {open} of {depth} are open", plan.step)));
        }
        self.start(plan).context(format!("step {}", plan.step))
    }

    fn collect(&mut self) -> Result<StepOutput> {
        if self.finished.is_empty() {
            self.land_oldest()?;
        }
        let landed = self.finished.pop_front();
        let (output, ended) = landed.ok_or_else(|| Error::internal("a step has landed without an output"))?;
        Ok(StepOutput { ended_ns_ago: ended.elapsed().as_nanos() as u64, ..output })
    }

    fn prompt_table_width(&self) -> Option<usize> {
        Some(self.table_width)
    }

    fn rotation_border(&self) -> Option<usize> {
        self.rotation_border
    }

    fn tiers(&self) -> TierLimits {
        self.tiers.as_ref().map(Tiers::limits).unwrap_or_default()
    }

    fn windows(&self) -> Vec<WindowPool> {
        self.windows.clone()
    }

    fn open_disk(&mut self) -> DiskLimits {
        self.disk.as_mut().map(DiskTier::take_limits).unwrap_or_default()
    }

    fn disk(&mut self, orders: Vec<DiskOrder>) {
        if let Some(disk) = &mut self.disk {
            disk.start(orders);
        }
    }

    fn transfer(&mut self, transfers: Vec<Transfer>) {
        if let Some(tiers) = &mut self.tiers {
            tiers.start(transfers);
        }
    }

    fn landed(&mut self, wait: bool) -> Vec<Landed> {
        // Waiting is for whatever there is: the one that has something under way.
        let mut landed = self.tiers.as_mut().map(|tiers| tiers.landed(wait)).unwrap_or_default();
        if let Some(disk) = &mut self.disk {
            let wait = wait && landed.is_empty();
            landed.extend(disk.landed(wait));
        }
        landed
    }

    fn memory(&self) -> ExecutorMemory {
        self.memory
    }
}

impl Drop for LocalExecutor {
    /// Waits for what is in flight: graphs go first, and may be running.
    fn drop(&mut self) {
        let told = self.times.as_ref().map_or(Ok(()), StepTimes::tell);
        if let Err(error) = told.and_then(|()| self.device.synchronize()) {
            tracing::error!("{error}");
        }
    }
}
