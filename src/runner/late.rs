//! Rows that the device samples behind the others of their step: which tokens their guides allow is known only when the
//! token before is, and that one is computed while the step is launched.

use crate::decode::guided::TokenMask;
use crate::device::{Buffer, DType, RowEdits, RowSampling, SharedDevice, Tensor, Transfers};
use crate::error::Result;
use crate::step::ExecutorLimits;
use std::sync::Arc;

/// Words of a mask.
fn mask_words(limits: &ExecutorLimits) -> usize {
    limits.vocab_size.div_ceil(32)
}

fn words(limits: &ExecutorLimits) -> usize {
    let records = RowSampling::WORDS + RowEdits::WORDS;
    limits.max_step_rows * records + limits.max_step_sequences * mask_words(limits)
}

/// Fixed memory for such rows of one step.
pub(super) struct LateRows {
    buffer: Arc<Buffer>,
    transfers: Box<dyn Transfers>,
    mask_words: usize,
    rows: usize,
    /// Records of all rows: sampling, then edits.
    records: Vec<i32>,
    masks: Vec<u32>,
    /// Both.
    bytes: Vec<u8>,
}

/// What a device reads of them. R rows of the step, M masks, V vocabulary.
pub(super) struct LateInput {
    /// `[R, 12]`: all other rows are skipped.
    pub(super) sampling: Tensor,
    /// `[R, 24]`: all other rows are left alone.
    pub(super) edits: Tensor,
    /// `[M, ⌈V / 32⌉]`.
    pub(super) masks: Option<Tensor>,
}

impl LateRows {
    /// Bytes of the device.
    pub(super) fn bytes(limits: &ExecutorLimits) -> usize {
        words(limits) * DType::I32.size()
    }

    pub(super) fn new(device: &SharedDevice, limits: &ExecutorLimits) -> Result<Self> {
        let bytes = Self::bytes(limits);
        Ok(Self {
            buffer: Buffer::new(device, bytes, "guided rows of a step")?,
            transfers: device.transfers(bytes, 0, limits.pipeline_depth)?,
            mask_words: mask_words(limits),
            rows: 0,
            records: Vec::new(),
            masks: Vec::new(),
            bytes: Vec::new(),
        })
    }

    pub(super) fn pinned_bytes(&self) -> usize {
        self.transfers.pinned_bytes()
    }

    /// Begins a step of so many rows.
    pub(super) fn begin(&mut self, rows: usize) {
        self.rows = rows;
        self.masks.clear();
        self.records.clear();
        self.records.resize(rows * (RowSampling::WORDS + RowEdits::WORDS), 0);
    }

    /// Adds a row; without a mask every token may come.
    pub(super) fn add(&mut self, row: usize, sampling: &RowSampling, edits: RowEdits, mask: Option<&TokenMask>) {
        let index = (self.masks.len() / self.mask_words.max(1)) as u32;
        if let Some(mask) = mask {
            self.masks.extend_from_slice(mask.words());
        }
        let (samplings, all_edits) = self.records.split_at_mut(self.rows * RowSampling::WORDS);
        samplings[row * RowSampling::WORDS..][..RowSampling::WORDS].copy_from_slice(&sampling.encode());
        let edits = RowEdits { mask: mask.map(|_| index), ..edits }.encode();
        all_edits[row * RowEdits::WORDS..][..RowEdits::WORDS].copy_from_slice(&edits);
    }

    /// Enqueues the copy to the device.
    pub(super) fn upload(&mut self) -> Result<LateInput> {
        let size = DType::I32.size();
        self.bytes.resize((self.records.len() + self.masks.len()) * size, 0);
        let (records, masks) = self.bytes.split_at_mut(self.records.len() * size);
        records
            .chunks_exact_mut(size)
            .zip(&self.records)
            .for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        masks.chunks_exact_mut(size).zip(&self.masks).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        let all = self.view(0, 1, self.bytes.len() / size)?;
        self.transfers.upload(&all, &self.bytes)?;
        let num_masks = self.masks.len() / self.mask_words.max(1);
        let masks = (num_masks > 0).then(|| self.view(self.records.len(), num_masks, self.mask_words)).transpose()?;
        let edits = self.view(self.rows * RowSampling::WORDS, self.rows, RowEdits::WORDS)?;
        Ok(LateInput { sampling: self.view(0, self.rows, RowSampling::WORDS)?, edits, masks })
    }

    fn view(&self, word: usize, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(self.buffer.clone(), word * DType::I32.size(), rows, cols, DType::I32)
    }
}
