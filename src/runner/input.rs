//! The device tensors of one step: one buffer, one upload.

use super::sequences::{RunnerSequence, Sampler};
use crate::device::{AttentionBatch, Buffer, DType, RowEdits, RowSampling, SharedDevice, Tensor, Transfers};
use crate::error::{Error, Result};
use crate::ids::{BlockId, TokenId};
use crate::ops::{PromptRow, StepTensors, StepWindow};
use crate::step::Chunk;
use std::ops::Range;
use std::sync::Arc;

/// Sections of the buffer start at a multiple of this many elements.
const ALIGNMENT: usize = 64;

/// Sizes that a step's tensors are padded to. Equal shapes give equal addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    pub tokens: usize,
    pub sequences: usize,
    /// Rows of logits.
    pub rows: usize,
    /// Rows of edits: none, or as many as rows of logits.
    pub edits: usize,
    /// Entries of each block table.
    pub blocks: usize,
    /// Bound of the chunks' lengths.
    pub query_len: usize,
    /// Bound of the context lengths.
    pub context_len: usize,
}

impl StepShape {
    /// Without padding.
    pub(super) fn exact(chunks: &[(&Chunk, &RunnerSequence)]) -> Self {
        let edited = chunks.iter().any(|(chunk, sequence)| chunk.sample && is_edited(sequence));
        Self {
            tokens: chunks.iter().map(|(chunk, _)| chunk.len).sum(),
            sequences: chunks.len(),
            rows: chunks.iter().map(|(chunk, _)| chunk.rows()).sum(),
            edits: if edited { chunks.iter().map(|(chunk, _)| chunk.rows()).sum() } else { 0 },
            blocks: chunks.iter().map(|(_, sequence)| sequence.blocks.len()).max().unwrap_or(0).max(1),
            query_len: chunks.iter().map(|(chunk, _)| chunk.len).max().unwrap_or(0),
            context_len: chunks.iter().map(|(chunk, _)| chunk.start + chunk.len).max().unwrap_or(0),
        }
    }

    /// With `pools` beside the full-length blocks.
    fn sections(&self, pools: usize) -> Sections {
        let mut end = 0_usize;
        let mut next = |len: usize| {
            let start = end;
            end = (start + len).next_multiple_of(ALIGNMENT);
            start..start + len
        };
        Sections {
            tokens: next(self.tokens),
            positions: next(self.tokens),
            slots: next(self.tokens),
            cu_seqlens: next(self.sequences + 1),
            context_lens: next(self.sequences),
            sample_rows: next(self.rows),
            sampling: next(self.rows * RowSampling::WORDS),
            edits: next(self.edits * RowEdits::WORDS),
            block_tables: next(self.sequences * self.blocks),
            windows: (0..pools).map(|_| (next(self.tokens), next(self.sequences * self.blocks))).collect(),
            end,
        }
    }
}

struct Sections {
    tokens: Range<usize>,
    positions: Range<usize>,
    slots: Range<usize>,
    cu_seqlens: Range<usize>,
    context_lens: Range<usize>,
    sample_rows: Range<usize>,
    sampling: Range<usize>,
    edits: Range<usize>,
    block_tables: Range<usize>,
    /// Slots and block tables of each pool of windows.
    windows: Vec<(Range<usize>, Range<usize>)>,
    end: usize,
}

/// The inputs of one step on the device.
pub(super) struct UploadedStep {
    pub(super) tensors: StepTensors,
    /// `[R, 12]`: how each row is sampled.
    pub(super) sampling: Tensor,
    /// `[R, 24]`: how each row's logits are edited, if any are.
    pub(super) edits: Option<Tensor>,
}

/// Fixed memory for the inputs of any step within `limits`.
pub struct StepInput {
    buffer: Arc<Buffer>,
    staging: Vec<i32>,
    bytes: Vec<u8>,
    block_size_tokens: usize,
    /// Pools of windows.
    pools: usize,
    /// First row of the rotary table for short sequences: behind those of the longest.
    short_rows: usize,
}

impl StepInput {
    /// `limits`: the largest step. `pools`: those of layers that see a window of the context.
    pub fn new(device: &SharedDevice, limits: StepShape, block_size_tokens: usize, pools: usize) -> Result<Self> {
        let bytes = Self::bytes(limits, pools);
        let buffer = Buffer::new(device, bytes, "the inputs of a step")?;
        let staging = Vec::with_capacity(bytes / DType::I32.size());
        let short_rows = limits.context_len;
        Ok(Self { buffer, staging, bytes: Vec::with_capacity(bytes), block_size_tokens, pools, short_rows })
    }

    /// Bytes of a step's inputs.
    pub(super) fn bytes(shape: StepShape, pools: usize) -> usize {
        shape.sections(pools).end * DType::I32.size()
    }

    /// The tensors of a step of this shape, whatever they hold: to plan memory.
    pub fn tensors(&self, shape: StepShape) -> Result<StepTensors> {
        let sections = shape.sections(self.pools);
        let batch = |tables: &Range<usize>| {
            Ok(AttentionBatch {
                cu_seqlens: self.view(&sections.cu_seqlens, 1)?,
                context_lens: self.view(&sections.context_lens, 1)?,
                block_tables: self.view(tables, shape.sequences)?,
                max_query_len: shape.query_len,
                max_context_len: shape.context_len,
            })
        };
        let window = |(slots, tables): &(Range<usize>, Range<usize>)| {
            Ok(StepWindow { slots: self.view(slots, 1)?, batch: batch(tables)? })
        };
        Ok(StepTensors {
            tokens: self.view(&sections.tokens, 1)?,
            positions: self.view(&sections.positions, 1)?,
            slots: self.view(&sections.slots, 1)?,
            sample_rows: self.view(&sections.sample_rows, 1)?,
            batch: batch(&sections.block_tables)?,
            windows: sections.windows.iter().map(window).collect::<Result<_>>()?,
        })
    }

    fn view(&self, section: &Range<usize>, rows: usize) -> Result<Tensor> {
        let cols = section.len() / rows.max(1);
        Tensor::new(self.buffer.clone(), section.start * DType::I32.size(), rows, cols, DType::I32)
    }

    /// Uploads the inputs of `chunks` padded to `shape`: further tokens have slot -1, so that nothing is written for
    /// them; each further sequence has one of them and sees one token of block 0; further rows are not sampled. Row r's
    /// token goes to entry `first_slot + r` of the sampled tokens.
    pub(super) fn upload(
        &mut self,
        transfers: &mut dyn Transfers,
        chunks: &[(&Chunk, &RunnerSequence)],
        shape: StepShape,
        first_slot: usize,
    ) -> Result<UploadedStep> {
        let sections = shape.sections(self.pools);
        self.fill(chunks, shape, &sections, first_slot)?;
        self.bytes.resize(sections.end * DType::I32.size(), 0);
        for (bytes, word) in self.bytes.chunks_exact_mut(DType::I32.size()).zip(&self.staging) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let all = Tensor::new(self.buffer.clone(), 0, 1, sections.end, DType::I32)?;
        transfers.upload(&all, &self.bytes)?;
        let edits = (shape.edits > 0).then(|| self.view(&sections.edits, shape.edits)).transpose()?;
        let sampling = self.view(&sections.sampling, shape.rows)?;
        Ok(UploadedStep { tensors: self.tensors(shape)?, sampling, edits })
    }

    fn fill(
        &mut self,
        chunks: &[(&Chunk, &RunnerSequence)],
        shape: StepShape,
        sections: &Sections,
        first_slot: usize,
    ) -> Result<()> {
        self.staging.clear();
        self.staging.resize(sections.end, 0);
        self.staging[sections.slots.clone()].fill(-1);
        sections.windows.iter().for_each(|(slots, _)| self.staging[slots.clone()].fill(-1));
        self.staging[sections.context_lens.clone()].fill(1);
        let (mut token, mut row) = (0, 0);
        for (index, &(chunk, sequence)) in chunks.iter().enumerate() {
            self.staging[sections.cu_seqlens.start + index] = token as i32;
            self.staging[sections.context_lens.start + index] = (chunk.start + chunk.len) as i32;
            let table = sections.block_tables.start + index * shape.blocks;
            for (entry, block) in self.staging[table..table + shape.blocks].iter_mut().zip(&sequence.blocks) {
                *entry = block.0 as i32;
            }
            for (pool, (slots, tables)) in sections.windows.iter().enumerate() {
                let blocks = sequence.windows.get(pool).map_or(&[][..], |blocks| blocks);
                let table = tables.start + index * shape.blocks;
                for (entry, block) in self.staging[table..table + shape.blocks].iter_mut().zip(blocks) {
                    *entry = block.0 as i32;
                }
                for at in 0..chunk.len {
                    self.staging[slots.start + token + at] = self.slot(blocks, chunk.start + at)?;
                }
            }
            let first_row = if sequence.is_short { self.short_rows } else { 0 };
            for position in chunk.start..chunk.start + chunk.len {
                self.staging[sections.tokens.start + token] = token_at(chunk, sequence, position);
                self.staging[sections.positions.start + token] = (first_row + position) as i32;
                self.staging[sections.slots.start + token] = self.slot(&sequence.blocks, position)?;
                token += 1;
            }
            for behind in (1..=chunk.rows()).rev() {
                self.staging[sections.sample_rows.start + row] = (token - behind) as i32;
                let words = sections.sampling.start + row * RowSampling::WORDS;
                let guesses = (1 + chunk.draft.len()).checked_sub(behind).filter(|_| chunk.sample);
                let sampling = match guesses {
                    Some(guesses) => sampling_of(sequence, &chunk.draft[..guesses], first_slot + row),
                    None => RowSampling { slot: (first_slot + row) as u32, ..RowSampling::SKIP },
                };
                self.staging[words..words + RowSampling::WORDS].copy_from_slice(&sampling.encode());
                if let Some(places) = sequence.places.as_ref().filter(|_| guesses == Some(0) && is_edited(sequence)) {
                    let edits = places.row(sequence, sequence.tokens.len(), token - 1).encode();
                    let words = sections.edits.start + row * RowEdits::WORDS;
                    self.staging[words..words + RowEdits::WORDS].copy_from_slice(&edits);
                }
                row += 1;
            }
        }
        for (further, entry) in self.staging[sections.cu_seqlens.clone()][chunks.len()..].iter_mut().enumerate() {
            *entry = (token + further).min(shape.tokens) as i32;
        }
        Ok(())
    }

    fn slot(&self, table: &[BlockId], position: usize) -> Result<i32> {
        let block = table.get(position / self.block_size_tokens).ok_or_else(|| {
            let (blocks, size) = (table.len(), self.block_size_tokens);
            Error::internal(format!(
                "position {position} lies behind a block table of {blocks} blocks of {size} tokens"
            ))
        })?;
        Ok((block.0 as usize * self.block_size_tokens + position % self.block_size_tokens) as i32)
    }
}

/// The embeddings that requests bring for tokens of these chunks.
pub(super) fn prompt_rows<'a>(chunks: &[(&Chunk, &'a RunnerSequence)]) -> Vec<PromptRow<'a>> {
    let mut rows = Vec::new();
    let mut first = 0;
    for (chunk, sequence) in chunks {
        let positions = (0..chunk.len).filter(|_| sequence.prompt_table.is_some());
        rows.extend(positions.filter_map(|at| {
            let values = sequence.prompt_row(chunk.start + at)?;
            Some(PromptRow { token: first + at, values })
        }));
        first += chunk.len;
    }
    rows
}

fn token_at(chunk: &Chunk, sequence: &RunnerSequence, position: usize) -> i32 {
    match position.checked_sub(sequence.tokens.len()) {
        Some(guess) => chunk.draft[guess],
        // Of what a request embeds itself, the token in its place does not matter.
        None if sequence.prompt_row(position).is_some() => 0,
        None => sequence.tokens[position],
    }
}

/// Whether the step itself edits the sequence's logits.
fn is_edited(sequence: &RunnerSequence) -> bool {
    sequence.places.is_some() && sequence.sampler() == Sampler::Step
}

fn sampling_of(sequence: &RunnerSequence, draft: &[TokenId], slot: usize) -> RowSampling {
    match sequence.sampler() {
        Sampler::Step => sequence.row_sampling(draft, slot),
        Sampler::LateRow | Sampler::Host => RowSampling { slot: slot as u32, ..RowSampling::SKIP },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::SamplingParams;
    use crate::device::cpu::{CpuDevice, CpuOptions};
    use crate::ids::SeqId;
    use crate::step::{Inspect, NewSequence};

    fn values(device: &SharedDevice, tensor: &Tensor) -> Vec<i32> {
        let mut bytes = vec![0; tensor.bytes()];
        device.download(tensor, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn sequence(tokens: &[i32], blocks: &[u32]) -> RunnerSequence {
        let new = NewSequence {
            seq: SeqId(1),
            generated: 0,
            prompt: tokens.to_vec(),
            prompt_table: None,
            sampling: SamplingParams::default(),
            is_short: false,
        };
        let mut sequence = RunnerSequence::new(new);
        sequence.blocks = blocks.iter().map(|&id| BlockId(id)).collect();
        sequence
    }

    fn chunk(start: usize, len: usize, sample: bool) -> Chunk {
        Chunk {
            seq: SeqId(1),
            start,
            len,
            keep_blocks: 0,
            append_blocks: Vec::new(),
            sample,
            draft: Vec::new(),
            inspect: Inspect::default(),
        }
    }

    fn device() -> SharedDevice {
        CpuDevice::new(CpuOptions { threads: Some(1), ..Default::default() }).unwrap()
    }

    #[test]
    fn a_decode_and_a_prefill_chunk_are_packed() {
        let device = device();
        let limits =
            StepShape { tokens: 16, sequences: 4, rows: 4, edits: 0, blocks: 8, query_len: 16, context_len: 32 };
        let mut input = StepInput::new(&device, limits, 4, 0).unwrap();
        let mut transfers = device.transfers(0, 0, 1).unwrap();
        let (mut a, b) = (sequence(&[10, 11, 12, 13, 14], &[5, 2]), sequence(&[20, 21, 22], &[7]));
        a.push_in_flight(6);
        let (chunk_a, chunk_b) = (chunk(5, 1, true), chunk(1, 2, false));
        let chunks = [(&chunk_a, &a), (&chunk_b, &b)];
        let shape = StepShape::exact(&chunks);
        assert_eq!((shape.query_len, shape.context_len, shape.blocks), (2, 6, 2));
        let UploadedStep { tensors: step, sampling, .. } = input.upload(&mut *transfers, &chunks, shape, 3).unwrap();
        assert_eq!(values(&device, &step.tokens), [-7, 21, 22]);
        assert_eq!(values(&device, &step.positions), [5, 1, 2]);
        assert_eq!(values(&device, &step.slots), [9, 29, 30]);
        assert_eq!(values(&device, &step.batch.cu_seqlens), [0, 1, 3]);
        assert_eq!(values(&device, &step.batch.context_lens), [6, 3]);
        assert_eq!(values(&device, &step.batch.block_tables), [5, 2, 7, 0]);
        assert_eq!(values(&device, &step.sample_rows), [0]);
        let row = RowSampling::decode(&values(&device, &sampling)).unwrap();
        assert_eq!((row.position, row.slot), (6, 3));
    }

    #[test]
    fn decodes_are_padded_with_sequences_of_one_token() {
        let device = device();
        let shape = StepShape { tokens: 4, sequences: 4, rows: 4, edits: 0, blocks: 3, query_len: 1, context_len: 12 };
        let mut input = StepInput::new(&device, shape, 4, 0).unwrap();
        let mut transfers = device.transfers(0, 0, 1).unwrap();
        let a = sequence(&[10, 11, 12, 13, 14, 15], &[5, 2]);
        let decode = chunk(5, 1, true);
        let UploadedStep { tensors: step, sampling, .. } =
            input.upload(&mut *transfers, &[(&decode, &a)], shape, 0).unwrap();
        assert_eq!(values(&device, &step.tokens), [15, 0, 0, 0]);
        assert_eq!(values(&device, &step.slots), [9, -1, -1, -1]);
        assert_eq!(values(&device, &step.batch.cu_seqlens), [0, 1, 2, 3, 4]);
        assert_eq!(values(&device, &step.batch.context_lens), [6, 1, 1, 1]);
        assert_eq!(values(&device, &step.batch.block_tables), [5, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let modes: Vec<_> = values(&device, &sampling).chunks_exact(RowSampling::WORDS).map(|row| row[0]).collect();
        assert_eq!(modes, [1, 0, 0, 0]);
    }

    #[test]
    fn a_position_without_a_block_is_an_error() {
        let device = device();
        let limits = StepShape { tokens: 4, sequences: 1, rows: 1, edits: 0, blocks: 2, query_len: 4, context_len: 8 };
        let mut input = StepInput::new(&device, limits, 4, 0).unwrap();
        let mut transfers = device.transfers(0, 0, 1).unwrap();
        let (sequence, chunk) = (sequence(&[1, 2, 3, 4, 5], &[0]), chunk(4, 1, true));
        let chunks = [(&chunk, &sequence)];
        let error = input.upload(&mut *transfers, &chunks, StepShape::exact(&chunks), 0).err().unwrap();
        assert!(error.message().contains("position 4"), "{error}");
    }
}
