//! Rows that the device samples behind the others of their step: which tokens their guides allow is known only when the
//! token before is, and that one is computed while the step is launched.

use crate::decode::guided::TokenMask;
use crate::device::{Buffer, DType, RowEdits, RowSampling, SharedDevice, Tensor, Transfers};
use crate::error::Result;
use crate::step::ExecutorLimits;
use std::sync::Arc;

const WORD_BYTES: usize = size_of::<i32>();

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
    masks: usize,
    /// Records of all rows: sampling, then edits. Behind them the masks.
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
        words(limits) * WORD_BYTES
    }

    pub(super) fn new(device: &SharedDevice, limits: &ExecutorLimits) -> Result<Self> {
        let bytes = Self::bytes(limits);
        Ok(Self {
            buffer: Buffer::new(device, bytes, "guided rows of a step")?,
            transfers: device.transfers(bytes, 0, limits.pipeline_depth)?,
            mask_words: mask_words(limits),
            rows: 0,
            masks: 0,
            bytes: Vec::new(),
        })
    }

    pub(super) fn pinned_bytes(&self) -> usize {
        self.transfers.pinned_bytes()
    }

    /// Begins a step of so many rows.
    pub(super) fn begin(&mut self, rows: usize) {
        (self.rows, self.masks) = (rows, 0);
        self.bytes.clear();
        self.bytes.resize(self.record_words() * WORD_BYTES, 0);
    }

    /// Adds a row; without a mask every token may come.
    pub(super) fn add(&mut self, row: usize, sampling: &RowSampling, edits: RowEdits, mask: Option<&TokenMask>) {
        let edits = RowEdits { mask: mask.map(|_| self.masks as u32), ..edits };
        self.write(row * RowSampling::WORDS, sampling.encode());
        self.write(self.rows * RowSampling::WORDS + row * RowEdits::WORDS, edits.encode());
        if let Some(mask) = mask {
            self.write(
                self.record_words() + self.masks * self.mask_words,
                mask.words().iter().map(|&word| word as i32),
            );
            self.masks += 1;
        }
    }

    /// Enqueues the copy to the device.
    pub(super) fn upload(&mut self) -> Result<LateInput> {
        let all = self.view(0, 1, self.bytes.len() / WORD_BYTES)?;
        self.transfers.upload(&all, &self.bytes)?;
        let masks =
            (self.masks > 0).then(|| self.view(self.record_words(), self.masks, self.mask_words)).transpose()?;
        let edits = self.view(self.rows * RowSampling::WORDS, self.rows, RowEdits::WORDS)?;
        Ok(LateInput { sampling: self.view(0, self.rows, RowSampling::WORDS)?, edits, masks })
    }

    fn record_words(&self) -> usize {
        self.rows * (RowSampling::WORDS + RowEdits::WORDS)
    }

    /// Words at a place, behind the end if that is where it is.
    fn write(&mut self, at: usize, words: impl IntoIterator<Item = i32, IntoIter: ExactSizeIterator>) {
        let words = words.into_iter();
        let start = at * WORD_BYTES;
        let end = start + words.len() * WORD_BYTES;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        // Whole words at once: one byte after the other they would take milliseconds.
        let (places, _) = self.bytes[start..end].as_chunks_mut::<WORD_BYTES>();
        places.iter_mut().zip(words).for_each(|(place, word)| *place = word.to_ne_bytes());
    }

    fn view(&self, word: usize, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(self.buffer.clone(), word * WORD_BYTES, rows, cols, DType::I32)
    }
}
