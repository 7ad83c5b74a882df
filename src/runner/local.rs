//! A model on a device of this process.

use super::input::{StepInput, StepShape};
use super::sequences::Sequences;
use crate::decode::logits;
use crate::decode::sample::{SampleScratch, sample};
use crate::device::{DType, KvLayer, SharedDevice, Tensor};
use crate::error::{Error, Result, ResultExt};
use crate::ids::SeqId;
use crate::model::Model;
use crate::ops::{Arena, Forward};
use crate::step::{Executor, ExecutorLimits, ExecutorMemory, SampledRow, SampledToken, StepOutput, StepPlan};
use std::collections::VecDeque;

/// Runs each step when it is launched; `collect` hands out the finished ones.
pub struct LocalExecutor {
    device: SharedDevice,
    model: Box<dyn Model>,
    kv: Vec<KvLayer>,
    arena: Arena,
    input: StepInput,
    activation: DType,
    limits: ExecutorLimits,
    memory: ExecutorMemory,
    sequences: Sequences,
    sampler: RowSampler,
    finished: VecDeque<StepOutput>,
}

/// What a [`LocalExecutor`] is made of.
pub(super) struct Parts {
    pub(super) device: SharedDevice,
    pub(super) model: Box<dyn Model>,
    pub(super) kv: Vec<KvLayer>,
    pub(super) workspace_bytes: usize,
    pub(super) activation: DType,
    pub(super) limits: ExecutorLimits,
    pub(super) memory: ExecutorMemory,
}

impl LocalExecutor {
    pub(super) fn new(parts: Parts) -> Result<Self> {
        let limits = parts.limits;
        let arena = Arena::new(&parts.device, parts.workspace_bytes)?;
        let input = StepInput::new(&parts.device, largest_step(&limits), limits.block_size_tokens)?;
        Ok(Self {
            device: parts.device,
            model: parts.model,
            kv: parts.kv,
            arena,
            input,
            activation: parts.activation,
            limits,
            memory: parts.memory,
            sequences: Sequences::default(),
            sampler: RowSampler::default(),
            finished: VecDeque::new(),
        })
    }

    /// Sequences that the runner remembers.
    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The logits `[R, V]` of the last step, before any pass.
    pub fn last_logits(&self) -> impl Iterator<Item = Vec<f32>> {
        let row_bytes = (self.sampler.vocab_size * DType::F32.size()).max(1);
        self.sampler.bytes.chunks_exact(row_bytes).map(|row| floats(row).collect())
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepOutput> {
        self.check(plan)?;
        self.sequences.apply(plan)?;
        if !plan.block_copies.is_empty() {
            for layer in &self.kv {
                self.device.copy_blocks(layer, &plan.block_copies)?;
            }
        }
        let mut output = StepOutput { step: plan.step, rows: Vec::new() };
        if plan.chunks.is_empty() {
            return Ok(output);
        }
        let chunks = plan.chunks.iter().map(|chunk| Ok((chunk, self.sequences.find(chunk.seq)?)));
        let step = self.input.upload(&chunks.collect::<Result<Vec<_>>>()?)?;
        let _scope = self.arena.scope();
        let logits = self.model.forward(&Forward::new(&self.device, &self.arena, &step, &self.kv, self.activation))?;
        self.sampler.read(&self.device, &logits)?;
        for (row, chunk) in plan.chunks.iter().filter(|chunk| chunk.sample).enumerate() {
            output.rows.push(self.sampler.sample(row, chunk.seq, &mut self.sequences)?);
        }
        Ok(output)
    }

    /// Holds a plan against the limits that the memory was planned for.
    fn check(&self, plan: &StepPlan) -> Result<()> {
        let limits = &self.limits;
        let tokens: usize = plan.chunks.iter().map(|chunk| chunk.len).sum();
        if tokens > limits.max_step_tokens || plan.chunks.len() > limits.max_step_sequences {
            return Err(Error::internal(format!(
                "a plan of {tokens} tokens of {} sequences; a step takes {} tokens of {} sequences",
                plan.chunks.len(),
                limits.max_step_tokens,
                limits.max_step_sequences
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
        let mut blocks = plan.chunks.iter().flat_map(|chunk| &chunk.append_blocks).copied();
        match blocks.find(|block| block.0 as usize >= limits.num_blocks) {
            Some(block) => Err(Error::internal(format!("block {block} of {} blocks", limits.num_blocks))),
            None => Ok(()),
        }
    }
}

/// The largest step within `limits`.
pub(super) fn largest_step(limits: &ExecutorLimits) -> StepShape {
    StepShape {
        tokens: limits.max_step_tokens,
        sequences: limits.max_step_sequences,
        rows: limits.max_step_sequences,
        blocks: limits.max_seq_len_tokens.div_ceil(limits.block_size_tokens),
    }
}

impl Executor for LocalExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.limits.clone()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        let output = self.run(plan).context(format!("step {}", plan.step))?;
        self.finished.push_back(output);
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.finished.pop_front().ok_or_else(|| Error::internal("no step was launched that could be collected"))
    }

    fn memory(&self) -> ExecutorMemory {
        self.memory
    }
}

/// Samples on the host.
#[derive(Default)]
struct RowSampler {
    bytes: Vec<u8>,
    vocab_size: usize,
    row: Vec<f32>,
    scratch: SampleScratch,
}

impl RowSampler {
    /// Takes the logits `[R, V]` of a step.
    fn read(&mut self, device: &SharedDevice, logits: &Tensor) -> Result<()> {
        self.vocab_size = logits.cols();
        self.bytes.resize(logits.bytes(), 0);
        if logits.rows() == 0 {
            return device.synchronize();
        }
        device.download(logits, &mut self.bytes)
    }

    /// Samples one row and appends the token to its sequence. A row that cannot be sampled is an error of its own.
    fn sample(&mut self, row: usize, seq: SeqId, sequences: &mut Sequences) -> Result<SampledRow> {
        let sequence = sequences.find_mut(seq)?;
        let row_bytes = self.vocab_size * DType::F32.size();
        let bytes = &self.bytes[row * row_bytes..(row + 1) * row_bytes];
        self.row.clear();
        self.row.extend(floats(bytes));
        if sequence.sampling.changes_logits(sequence.generated()) {
            logits::apply(&mut self.row, &sequence.sampling, &sequence.history());
        }
        let sampling = sequence.sampling.for_next(&sequence.history());
        let token = sample(&self.row, &sampling, sequence.tokens.len(), &mut self.scratch);
        Ok(match token {
            Ok(token) => {
                sequence.push(token.id);
                SampledRow { seq, tokens: vec![token], error: None }
            }
            Err(error) => SampledRow { seq, tokens: Vec::<SampledToken>::new(), error: Some(error) },
        })
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}
