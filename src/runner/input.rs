//! The device tensors of one step: one buffer, one upload.

use super::sequences::RunnerSequence;
use crate::device::{AttentionBatch, Buffer, DType, SharedDevice, Tensor};
use crate::error::{Error, Result};
use crate::ops::StepTensors;
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
    /// Entries of each block table.
    pub blocks: usize,
}

impl StepShape {
    /// Without padding.
    fn exact(chunks: &[(&Chunk, &RunnerSequence)]) -> Self {
        Self {
            tokens: chunks.iter().map(|(chunk, _)| chunk.len).sum(),
            sequences: chunks.len(),
            rows: chunks.iter().filter(|(chunk, _)| chunk.sample).count(),
            blocks: chunks.iter().map(|(_, sequence)| sequence.blocks.len()).max().unwrap_or(0).max(1),
        }
    }

    fn sections(&self) -> Sections {
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
            block_tables: next(self.sequences * self.blocks),
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
    block_tables: Range<usize>,
    end: usize,
}

/// Fixed memory for the inputs of any step within `limits`.
pub struct StepInput {
    device: SharedDevice,
    buffer: Arc<Buffer>,
    staging: Vec<i32>,
    bytes: Vec<u8>,
    block_size_tokens: usize,
}

impl StepInput {
    /// `limits`: the largest step.
    pub fn new(device: &SharedDevice, limits: StepShape, block_size_tokens: usize) -> Result<Self> {
        let elements = limits.sections().end;
        let buffer = Buffer::new(device, elements * DType::I32.size(), "the inputs of a step")?;
        let (staging, bytes) = (Vec::with_capacity(elements), Vec::with_capacity(elements * DType::I32.size()));
        Ok(Self { device: device.clone(), buffer, staging, bytes, block_size_tokens })
    }

    /// The tensors of a step of this shape, whatever they hold: to plan memory.
    pub fn tensors(&self, shape: StepShape, max_query_len: usize, max_context_len: usize) -> Result<StepTensors> {
        let sections = shape.sections();
        let view = |section: &Range<usize>, rows: usize| {
            let cols = section.len() / rows.max(1);
            Tensor::new(self.buffer.clone(), section.start * DType::I32.size(), rows, cols, DType::I32)
        };
        Ok(StepTensors {
            tokens: view(&sections.tokens, 1)?,
            positions: view(&sections.positions, 1)?,
            slots: view(&sections.slots, 1)?,
            sample_rows: view(&sections.sample_rows, 1)?,
            batch: AttentionBatch {
                cu_seqlens: view(&sections.cu_seqlens, 1)?,
                context_lens: view(&sections.context_lens, 1)?,
                block_tables: view(&sections.block_tables, shape.sequences)?,
                max_query_len,
                max_context_len,
            },
        })
    }

    /// Uploads the inputs of `chunks`, without padding.
    pub(super) fn upload(&mut self, chunks: &[(&Chunk, &RunnerSequence)]) -> Result<StepTensors> {
        self.upload_padded(chunks, StepShape::exact(chunks))
    }

    /// Uploads the inputs of `chunks` padded to `shape`: further tokens have slot -1, so that nothing is written for
    /// them; further sequences see one token of block 0, and the first of them takes all further tokens.
    fn upload_padded(&mut self, chunks: &[(&Chunk, &RunnerSequence)], shape: StepShape) -> Result<StepTensors> {
        let sections = shape.sections();
        self.staging.clear();
        self.staging.resize(sections.end, 0);
        self.staging[sections.slots.clone()].fill(-1);
        self.staging[sections.context_lens.clone()].fill(1);
        self.staging[sections.cu_seqlens.clone()].fill(shape.tokens as i32);
        let (mut token, mut row) = (0, 0);
        for (index, &(chunk, sequence)) in chunks.iter().enumerate() {
            self.staging[sections.cu_seqlens.start + index] = token as i32;
            self.staging[sections.context_lens.start + index] = (chunk.start + chunk.len) as i32;
            let table = sections.block_tables.start + index * shape.blocks;
            for (entry, block) in self.staging[table..].iter_mut().zip(&sequence.blocks) {
                *entry = block.0 as i32;
            }
            for position in chunk.start..chunk.start + chunk.len {
                self.staging[sections.tokens.start + token] = sequence.tokens[position];
                self.staging[sections.positions.start + token] = position as i32;
                self.staging[sections.slots.start + token] = self.slot(sequence, position)?;
                token += 1;
            }
            if chunk.sample {
                self.staging[sections.sample_rows.start + row] = token as i32 - 1;
                row += 1;
            }
        }
        self.staging[sections.cu_seqlens.start + chunks.len()] = token as i32;
        self.bytes.clear();
        self.bytes.extend(self.staging.iter().flat_map(|value| value.to_ne_bytes()));
        let all = Tensor::new(self.buffer.clone(), 0, 1, sections.end, DType::I32)?;
        self.device.upload(&all, &self.bytes)?;
        let max_query_len = chunks.iter().map(|(chunk, _)| chunk.len).max().unwrap_or(0);
        let max_context_len = chunks.iter().map(|(chunk, _)| chunk.start + chunk.len).max().unwrap_or(0);
        self.tensors(shape, max_query_len, max_context_len)
    }

    fn slot(&self, sequence: &RunnerSequence, position: usize) -> Result<i32> {
        let block = sequence.blocks.get(position / self.block_size_tokens).ok_or_else(|| {
            let (blocks, size) = (sequence.blocks.len(), self.block_size_tokens);
            Error::internal(format!(
                "position {position} lies behind a block table of {blocks} blocks of {size} tokens"
            ))
        })?;
        Ok((block.0 as usize * self.block_size_tokens + position % self.block_size_tokens) as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::SamplingParams;
    use crate::device::cpu::{CpuDevice, CpuOptions};
    use crate::ids::{BlockId, SeqId};
    use crate::step::NewSequence;

    fn values(device: &SharedDevice, tensor: &Tensor) -> Vec<i32> {
        let mut bytes = vec![0; tensor.bytes()];
        device.download(tensor, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn sequence(tokens: &[i32], blocks: &[u32]) -> RunnerSequence {
        let new = NewSequence { seq: SeqId(1), prompt: tokens.to_vec(), sampling: SamplingParams::default() };
        let mut sequence = RunnerSequence::new(new);
        sequence.blocks = blocks.iter().map(|&id| BlockId(id)).collect();
        sequence
    }

    fn chunk(start: usize, len: usize, sample: bool) -> Chunk {
        Chunk { seq: SeqId(1), start, len, keep_blocks: 0, append_blocks: Vec::new(), sample }
    }

    #[test]
    fn a_decode_and_a_prefill_chunk_are_packed_and_padded() {
        let device: SharedDevice = CpuDevice::new(CpuOptions { threads: Some(1), ..Default::default() }).unwrap();
        let limits = StepShape { tokens: 16, sequences: 4, rows: 4, blocks: 8 };
        let mut input = StepInput::new(&device, limits, 4).unwrap();
        let (a, b) = (sequence(&[10, 11, 12, 13, 14, 15], &[5, 2]), sequence(&[20, 21, 22], &[7]));
        let (chunk_a, chunk_b) = (chunk(5, 1, true), chunk(1, 2, false));
        let chunks = [(&chunk_a, &a), (&chunk_b, &b)];
        let shape = StepShape { tokens: 5, sequences: 3, rows: 2, blocks: 3 };
        let step = input.upload_padded(&chunks, shape).unwrap();
        assert_eq!(values(&device, &step.tokens), [15, 21, 22, 0, 0]);
        assert_eq!(values(&device, &step.positions), [5, 1, 2, 0, 0]);
        assert_eq!(values(&device, &step.slots), [9, 29, 30, -1, -1]);
        assert_eq!(values(&device, &step.batch.cu_seqlens), [0, 1, 3, 5]);
        assert_eq!(values(&device, &step.batch.context_lens), [6, 3, 1]);
        assert_eq!(values(&device, &step.batch.block_tables), [5, 2, 0, 7, 0, 0, 0, 0, 0]);
        assert_eq!(values(&device, &step.sample_rows), [0, 0]);
        assert_eq!((step.batch.max_query_len, step.batch.max_context_len), (2, 6));
        assert_eq!(input.upload(&chunks).unwrap().tokens.addr(), step.tokens.addr());
    }

    #[test]
    fn a_position_without_a_block_is_an_error() {
        let device: SharedDevice = CpuDevice::new(CpuOptions { threads: Some(1), ..Default::default() }).unwrap();
        let mut input = StepInput::new(&device, StepShape { tokens: 8, sequences: 1, rows: 1, blocks: 2 }, 4).unwrap();
        let (sequence, chunk) = (sequence(&[1; 6], &[0]), chunk(0, 6, true));
        let error = input.upload(&[(&chunk, &sequence)]).unwrap_err();
        assert!(error.message().contains("position 4 lies behind a block table of 1 blocks"));
    }
}
