//! What the device leaves of a step's rows: the sampled tokens and, where they were asked for, the most likely ones.

use crate::device::{Buffer, DType, RowSample, SharedDevice, Tensor};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::step::ExecutorLimits;
use std::sync::Arc;

/// Most likely tokens of a row that the device tells; more are found by the host.
pub(super) const MAX_TOP_TOKENS: usize = 32;

/// Rows of a step, and how many most likely tokens it tells of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ResultShape {
    pub(super) rows: usize,
    pub(super) top: usize,
}

impl ResultShape {
    fn words(self) -> usize {
        self.rows * (RowSample::WORDS + 2 * self.top)
    }
}

/// The results of one step: samples `[R, 4]`, ids `[R, N]` and log-probabilities `[R, N]` behind one another.
pub(super) struct Results {
    buffer: Arc<Buffer>,
}

impl Results {
    /// Bytes of the results of any step within `limits`.
    pub(super) fn bytes(limits: &ExecutorLimits) -> usize {
        ResultShape { rows: limits.max_step_rows, top: MAX_TOP_TOKENS }.words() * DType::I32.size()
    }

    pub(super) fn new(device: &SharedDevice, limits: &ExecutorLimits) -> Result<Self> {
        Ok(Self { buffer: Buffer::new(device, Self::bytes(limits), "the results of a step")? })
    }

    /// `[rows, 4]` I32.
    pub(super) fn samples(&self, rows: usize) -> Result<Tensor> {
        self.view(0, rows, RowSample::WORDS, DType::I32)
    }

    /// Ids and log-probabilities of the most likely tokens, `[R, N]` both.
    pub(super) fn top(&self, shape: ResultShape) -> Result<(Tensor, Tensor)> {
        let ids = shape.rows * RowSample::WORDS;
        let log_probs = ids + shape.rows * shape.top;
        Ok((
            self.view(ids, shape.rows, shape.top, DType::I32)?,
            self.view(log_probs, shape.rows, shape.top, DType::F32)?,
        ))
    }

    /// All of them, `[1, W]`.
    pub(super) fn all(&self, shape: ResultShape) -> Result<Tensor> {
        self.view(0, 1, shape.words(), DType::I32)
    }

    fn view(&self, word: usize, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        Tensor::new(self.buffer.clone(), word * DType::I32.size(), rows, cols, dtype)
    }
}

/// The results of a step on the host.
#[derive(Clone, Copy)]
pub(super) struct Fetched<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) shape: ResultShape,
}

impl Fetched<'_> {
    /// # Errors
    /// Internal, for a row that the step does not have, or a record that no device writes.
    pub(super) fn sample(&self, row: usize, log_probs: bool) -> Result<RowSample> {
        RowSample::decode(&self.words(row * RowSample::WORDS, RowSample::WORDS)?, log_probs)
    }

    /// The `count` most likely tokens of a row, best first; fewer where the vocabulary is smaller.
    ///
    /// # Errors
    /// Internal, for a row that the step does not have.
    pub(super) fn top(&self, row: usize, count: usize) -> Result<Vec<(TokenId, f32)>> {
        let ResultShape { rows, top } = self.shape;
        let ids = rows * RowSample::WORDS + row * top;
        let found = self.words(ids, count)?.into_iter().zip(self.words(ids + rows * top, count)?);
        Ok(found.filter(|&(id, _)| id >= 0).map(|(id, bits)| (id, f32::from_bits(bits as u32))).collect())
    }

    fn words(&self, start: usize, count: usize) -> Result<Vec<i32>> {
        let size = DType::I32.size();
        let bytes = self.bytes.get(start * size..(start + count) * size);
        let bytes = bytes.ok_or_else(|| Error::internal("a step has fewer results than rows"))?;
        Ok(bytes.chunks_exact(size).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_find_what_is_theirs() {
        let shape = ResultShape { rows: 2, top: 3 };
        let mut words = vec![7, 0, 0, 0, 8, 0, 0, 0];
        words.extend([1, 2, -1, 4, 5, 6]);
        words.extend([-0.5f32, -1.5, 0.0, -0.25, -2.0, -3.0].map(|value| value.to_bits() as i32));
        assert_eq!(words.len(), shape.words());
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let fetched = Fetched { bytes: &bytes, shape };
        assert_eq!(fetched.sample(1, false).unwrap().token(), 8);
        assert_eq!(fetched.top(0, 3).unwrap(), [(1, -0.5), (2, -1.5)]);
        assert_eq!(fetched.top(1, 2).unwrap(), [(4, -0.25), (5, -2.0)]);
        assert!(fetched.sample(5, false).is_err());
    }
}
