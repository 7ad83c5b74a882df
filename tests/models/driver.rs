//! A minimal engine: cuts sequences into steps in a chosen way and keeps the block tables.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::device::cpu::CpuOptions;
use triton_trtllm::device::{DType, DeviceKind, DeviceOptions, SharedDevice, open};
use triton_trtllm::ids::{BlockId, SeqId, TokenId};
use triton_trtllm::runner::{LoadedModel, LocalExecutor, ModelOptions, ModelSource, load_on};
use triton_trtllm::step::{BlockCopy, Chunk, Executor, Inspect, NewSequence, PromptTable, SampledRow, StepPlan};

pub const BLOCK_SIZE: usize = 8;

/// The project, or where `TRTLLM_ROOT` says that its files lie.
pub fn root() -> PathBuf {
    std::env::var_os("TRTLLM_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

pub fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

/// The CPU, or what `MODELS_DEVICE` names.
pub fn device() -> SharedDevice {
    let cpu = CpuOptions { threads: Some(2), ..Default::default() };
    let kind = std::env::var("MODELS_DEVICE").map_or(DeviceKind::Cpu, |name| name.parse().unwrap());
    open(kind, &[], &DeviceOptions { cpu, ..Default::default() }).unwrap()
}

/// Small blocks and few sequences, in float32.
pub fn options(folder: &Path, max_seq_len: usize) -> ModelOptions {
    ModelOptions {
        dtype: Some(DType::F32),
        max_batch_size: Some(8),
        max_seq_len: Some(max_seq_len),
        max_step_tokens: Some(8 * max_seq_len),
        block_size_tokens: BLOCK_SIZE,
        ..ModelOptions::new(ModelSource::Folder(folder.to_owned()))
    }
}

pub fn load(options: &ModelOptions) -> LoadedModel<LocalExecutor> {
    load_on(&device(), options).unwrap()
}

/// Drives an executor step by step.
pub struct Driver {
    pub executor: LocalExecutor,
    step: u64,
    next_seq: u64,
    free: Vec<BlockId>,
    sequences: HashMap<SeqId, Tracked>,
}

#[derive(Default)]
struct Tracked {
    blocks: Vec<BlockId>,
    announced: Option<NewSequence>,
    computed: usize,
    len: usize,
}

impl Driver {
    pub fn new(executor: LocalExecutor) -> Self {
        let num_blocks = executor.limits().num_blocks as u32;
        // Not in order, so that a wrong block table is seen.
        let free = (0..num_blocks).map(|i| BlockId((i * 7 + 3) % num_blocks)).collect::<Vec<_>>();
        let mut unique = free.clone();
        unique.sort();
        unique.dedup();
        let free = if unique.len() == free.len() { free } else { unique };
        Self { executor, step: 0, next_seq: 1, free, sequences: HashMap::new() }
    }

    pub fn add(&mut self, prompt: &[TokenId], sampling: &SamplingParams) -> SeqId {
        let seq = SeqId(self.next_seq);
        self.next_seq += 1;
        let announced = Some(NewSequence {
            seq,
            prompt: prompt.to_vec(),
            generated: 0,
            prompt_table: None,
            sampling: sampling.clone(),
            is_short: false,
        });
        self.sequences.insert(seq, Tracked { announced, len: prompt.len(), ..Default::default() });
        seq
    }

    /// Gives a sequence that has not started embeddings for the tokens behind the vocabulary.
    pub fn set_prompt_table(&mut self, seq: SeqId, table: PromptTable) {
        let sequence = self.sequences.get_mut(&seq).unwrap();
        sequence.announced.as_mut().unwrap().prompt_table = Some(table);
    }

    /// Starts a sequence with the first `blocks` blocks of another one, which must hold the same tokens.
    pub fn share_prefix(&mut self, from: SeqId, to: SeqId, blocks: usize) {
        let shared = self.sequences[&from].blocks[..blocks].to_vec();
        let sequence = self.sequences.get_mut(&to).unwrap();
        sequence.computed = blocks * BLOCK_SIZE;
        sequence.blocks = shared;
    }

    /// Copies `tokens` tokens of block `index` of one sequence into a new block of another one.
    pub fn copy_block(&mut self, from: SeqId, to: SeqId, index: usize, tokens: usize) -> BlockCopy {
        let copy =
            BlockCopy { from: self.sequences[&from].blocks[index], to: self.free.pop().unwrap(), num_tokens: tokens };
        let sequence = self.sequences.get_mut(&to).unwrap();
        sequence.blocks.push(copy.to);
        sequence.computed += tokens;
        copy
    }

    /// Computes everything again from the first token, in other blocks.
    pub fn preempt(&mut self, seq: SeqId) {
        let sequence = self.sequences.get_mut(&seq).unwrap();
        self.free.splice(0..0, sequence.blocks.drain(..));
        sequence.computed = 0;
    }

    /// One step with at most `chunk` tokens of each of `seqs`; a sequence whose last token is reached is sampled.
    pub fn step(&mut self, seqs: &[SeqId], chunk: usize, block_copies: Vec<BlockCopy>) -> Vec<SampledRow> {
        self.step += 1;
        let mut plan = StepPlan { step: self.step, block_copies, ..Default::default() };
        for &seq in seqs {
            let sequence = self.sequences.get_mut(&seq).unwrap();
            let first = sequence.announced.is_some();
            plan.new_sequences.extend(sequence.announced.take());
            let (start, len) = (sequence.computed, chunk.min(sequence.len - sequence.computed));
            let keep_blocks = if first || start == 0 { 0 } else { sequence.blocks.len() };
            while sequence.blocks.len() * BLOCK_SIZE < start + len {
                sequence.blocks.push(self.free.pop().unwrap());
            }
            let append_blocks = sequence.blocks[keep_blocks..].to_vec();
            sequence.computed += len;
            let sample = sequence.computed == sequence.len;
            plan.chunks.push(Chunk {
                seq,
                start,
                len,
                keep_blocks,
                append_blocks,
                sample,
                draft: Vec::new(),
                inspect: Inspect::default(),
            });
        }
        self.executor.launch(&plan).unwrap();
        let output = self.executor.collect().unwrap();
        assert_eq!(output.step, self.step);
        for row in &output.rows {
            self.sequences.get_mut(&row.seq).unwrap().len += row.tokens.len();
        }
        output.rows
    }

    /// Steps until each of `seqs` has `count` new tokens; prompts in chunks of `chunk`.
    pub fn generate(&mut self, seqs: &[SeqId], count: usize, chunk: usize) -> Vec<Vec<TokenId>> {
        let mut tokens: HashMap<SeqId, Vec<TokenId>> = seqs.iter().map(|&seq| (seq, Vec::new())).collect();
        loop {
            let running: Vec<_> = seqs.iter().copied().filter(|seq| tokens[seq].len() < count).collect();
            if running.is_empty() {
                return seqs.iter().map(|seq| tokens.remove(seq).unwrap()).collect();
            }
            for row in self.step(&running, chunk, Vec::new()) {
                tokens.get_mut(&row.seq).unwrap().extend(row.tokens.iter().map(|token| token.id));
            }
        }
    }
}
