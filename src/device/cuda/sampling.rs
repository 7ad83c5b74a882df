//! Launches of the sampling kernels.

use super::CudaDevice;
use super::driver::Geometry;
use super::kernels::{ResolveArgs, SampleArgs, TopArgs, launch};
use crate::device::{MAX_TOP_TOKENS, Sample, Tensor, TopTokens};
use crate::error::{Error, Result};

/// Threads that choose one row's token (`THREADS`).
const ROW_THREADS: usize = 1024;

impl CudaDevice {
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
            params: a.params.addr(),
            out: a.out.addr(),
            sampled: a.sampled.addr(),
            logits_stride: a.logits.stride() as i64,
            vocab: a.logits.cols() as i32,
            entries: a.sampled.cols() as i32,
        };
        let geometry = Geometry { grid: (a.logits.rows(), 1, 1), block: (ROW_THREADS, 1), shared_bytes: 0 };
        // SAFETY: the kernel takes these arguments; rows of parameters and results are contiguous and as many as those
        // of the logits.
        unsafe { launch(&self.context, self.kernels.sample, geometry, &args, []) }
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
            params: a.params.map_or(0, Tensor::addr),
            ids: a.ids.addr(),
            log_probs: a.log_probs.addr(),
            logits_stride: a.logits.stride() as i64,
            vocab: a.logits.cols() as i32,
            count: count as i32,
        };
        let geometry = Geometry { grid: (a.logits.rows(), 1, 1), block: (ROW_THREADS, 1), shared_bytes: 0 };
        // SAFETY: as in `sample_rows`; the results are contiguous, and a block has room for that many candidates.
        unsafe { launch(&self.context, self.kernels.top_tokens, geometry, &args, []) }
    }
}
