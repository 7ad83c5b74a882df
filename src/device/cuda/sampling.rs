//! Launches of the sampling kernels.

use super::CudaDevice;
use super::driver::Geometry;
use super::kernels::{EditArgs, ResolveArgs, SampleArgs, TopArgs, launch};
use crate::device::{EditLogits, MAX_TOP_TOKENS, Sample, Tensor, TopTokens};
use crate::error::{Error, Result};

/// Threads that choose one row's token (`THREADS`).
const ROW_THREADS: usize = 1024;

/// The same in `sample_narrowed`.
const NARROW_THREADS: usize = 512;

/// Threads of a block of `edit_dense` (`DENSE_THREADS`), and the logits that it takes (`DENSE_LOGITS`).
const DENSE_THREADS: usize = 256;
const DENSE_LOGITS: usize = 4096;

/// Threads of `edit_sparse` for a row (`SPARSE_THREADS`).
const SPARSE_THREADS: usize = 512;

impl CudaDevice {
    /// Reads where nothing is. The driver gives the GPU up for this process then.
    pub(super) fn read_astray(&self) -> Result<()> {
        let args = ResolveArgs { tokens: 64, sampled: 64, count: 1, entries: 1 };
        let geometry = Geometry { grid: (1, 1, 1), block: (32, 1), shared_bytes: 0 };
        // SAFETY: the kernel takes these arguments. The address is never mapped: the GPU's memory protection ends the
        // kernel, and no memory of the process changes.
        unsafe { launch(&self.context, self.kernels.resolve_tokens, geometry, &args, []) }
    }

    pub(super) fn resolve(&self, tokens: &Tensor, sampled: &Tensor) -> Result<()> {
        let args = ResolveArgs {
            tokens: tokens.addr(),
            sampled: sampled.addr(),
            count: tokens.cols() as i32,
            entries: sampled.cols() as i32,
        };
        let geometry = Geometry { grid: (tokens.cols().div_ceil(256), 1, 1), block: (256, 1), shared_bytes: 0 };
        // SAFETY: the kernel takes these arguments; both tensors are contiguous rows of integers, and entries outside
        // are not read.
        unsafe { launch(&self.context, self.kernels.resolve_tokens, geometry, &args, []) }
    }

    pub(super) fn sample_rows(&self, a: &Sample<'_>) -> Result<()> {
        let args = SampleArgs {
            logits: a.logits.addr(),
            edited: a.edited.unwrap_or(a.logits).addr(),
            params: a.params.addr(),
            out: a.out.addr(),
            sampled: a.sampled.addr(),
            logits_stride: a.logits.stride() as i64,
            edited_stride: a.edited.unwrap_or(a.logits).stride() as i64,
            vocab: a.logits.cols() as i32,
            entries: a.sampled.cols() as i32,
        };
        let geometry = Geometry { grid: (a.logits.rows(), 1, 1), block: (ROW_THREADS, 1), shared_bytes: 0 };
        // SAFETY: the kernel takes these arguments; rows of parameters and results are contiguous and as many as those
        // of the logits.
        unsafe { launch(&self.context, self.kernels.sample, geometry, &args, []) }?;
        if !a.narrowed {
            return Ok(());
        }
        let geometry = Geometry { block: (NARROW_THREADS, 1), ..geometry };
        // SAFETY: as above.
        unsafe { launch(&self.context, self.kernels.sample_narrowed, geometry, &args, []) }
    }

    pub(super) fn edit_rows(&self, a: &EditLogits<'_>) -> Result<()> {
        let (rows, vocab) = (a.logits.rows(), a.logits.cols());
        let args = EditArgs {
            logits: a.logits.addr(),
            out: a.out.addr(),
            counts: a.counts.addr(),
            rows: a.rows.addr(),
            tables: a.tables.addr(),
            tokens: a.tokens.addr(),
            masks: a.masks.map_or(0, Tensor::addr),
            sampling: a.sampling.addr(),
            logits_stride: a.logits.stride() as i64,
            out_stride: a.out.stride() as i64,
            counts_stride: a.counts.stride() as i64,
            mask_stride: a.masks.map_or(0, |masks| masks.stride() as i64),
            vocab: vocab as i32,
            table_words: a.tables.cols() as i32,
            num_tokens: a.tokens.cols() as i32,
        };
        let pieces = vocab.div_ceil(DENSE_LOGITS);
        let dense = Geometry { grid: (rows, pieces, 1), block: (DENSE_THREADS, 1), shared_bytes: 0 };
        let sparse = Geometry { grid: (rows, 1, 1), block: (SPARSE_THREADS, 1), shared_bytes: 0 };
        // SAFETY: the kernels take these arguments; records are contiguous and as many as rows of the logits, and the
        // lists that they name lie in the tables.
        unsafe {
            launch(&self.context, self.kernels.edit_dense, dense, &args, [])?;
            launch(&self.context, self.kernels.edit_sparse, sparse, &args, [])
        }
    }

    pub(super) fn top_rows(&self, a: &TopTokens<'_>) -> Result<()> {
        let count = a.ids.cols();
        if count > MAX_TOP_TOKENS {
            return Err(Error::internal(format!(
                "{count} most likely tokens of a row, at most {MAX_TOP_TOKENS} are found"
            )));
        }
        let args = TopArgs {
            logits: a.logits.addr(),
            edited: a.edited.unwrap_or(a.logits).addr(),
            params: a.params.map_or(0, Tensor::addr),
            ids: a.ids.addr(),
            log_probs: a.log_probs.addr(),
            logits_stride: a.logits.stride() as i64,
            edited_stride: a.edited.unwrap_or(a.logits).stride() as i64,
            vocab: a.logits.cols() as i32,
            count: count as i32,
        };
        let geometry = Geometry { grid: (a.logits.rows(), 1, 1), block: (ROW_THREADS, 1), shared_bytes: 0 };
        // SAFETY: as in `sample_rows`; the results are contiguous, and a block has room for that many candidates.
        unsafe { launch(&self.context, self.kernels.top_tokens, geometry, &args, []) }
    }
}
