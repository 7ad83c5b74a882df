//! Which attention kernels a step takes, and their grids. Everything here follows from upper bounds that the host
//! knows; the kernels read the true lengths from device memory.

use super::CudaDevice;
use super::driver::Geometry;
use super::kernels::{AttentionArgs, HEAD_DIMS, launch, type_index};
use crate::device::{Attention, Tensor};
use crate::error::{Error, Result};

/// Packed query rows of a sequence that the decode kernel takes (`DECODE_ROWS`).
const DECODE_ROWS: usize = 16;
/// Packed query rows of a block of the prefill kernel (`TILE_ROWS`).
const PREFILL_ROWS: usize = 128;
/// Tokens that a block of the decode kernel takes at once: its warps' slices.
const DECODE_TOKENS: usize = 64;
/// Largest head of `attention_any`, and of `attention_wide`.
const ANY_HEAD_DIM: usize = 256;
const WIDE_HEAD_DIM: usize = 1024;
/// Blocks of the decode kernel whose results are joined afterwards, at most.
const MAX_PARTIALS: usize = 2048;

/// Splits of a sequence, at most (`MAX_SPLITS`).
const MAX_SPLITS: usize = 128;

/// Bytes of the buffer that splits leave their results in.
pub(super) const PARTIAL_BYTES: usize = MAX_PARTIALS * DECODE_ROWS * (256 + 2) * 4;

/// Dynamic shared memory of the decode kernel (`STAGES` and `SLICE_BYTES`); `small`: as built for 100 KB.
pub(super) fn decode_shared_bytes(head_dim: usize, small: bool) -> usize {
    let stages = match (head_dim, small) {
        (..=64, _) => 4,
        (_, true) => 2,
        (_, false) => 3,
    };
    let row = (head_dim + 8) * 2;
    4 * stages * 2 * 16 * row + DECODE_ROWS * row
}

/// Dynamic shared memory of the prefill kernel (`QUERY_BYTES` and `TILE_BYTES`).
pub(super) fn prefill_shared_bytes(head_dim: usize) -> usize {
    let row = (head_dim + 8) * 2;
    let queries = PREFILL_ROWS * row;
    if head_dim <= 128 { queries.max(4 * 64 * row) } else { queries + 4 * 32 * row }
}

/// Dynamic shared memory of the Hopper prefill kernel: three stages of keys and values (`TILE_BYTES`).
pub(super) fn wgmma_shared_bytes(head_dim: usize) -> usize {
    (3 * 2 * 64 * head_dim * 2).max(PREFILL_ROWS * (head_dim + 8) * 2)
}

/// Into how many parts each sequence is split: the fewest rounds of blocks over the GPU, each block's fixed cost
/// counted as `OVERHEAD` tokens.
fn choose_splits(heads: usize, context: usize, slots: usize) -> usize {
    const OVERHEAD: usize = 96;
    let most = context.div_ceil(DECODE_TOKENS).min(MAX_PARTIALS / heads.max(1)).clamp(1, MAX_SPLITS);
    let cost = |splits: usize| {
        let share = context.div_ceil(splits).next_multiple_of(DECODE_TOKENS);
        let joining = if splits > 1 { OVERHEAD / 2 + splits } else { 0 };
        (heads * splits).div_ceil(slots) * (share + OVERHEAD) + joining
    };
    (1..=most).min_by_key(|&splits| (cost(splits), splits)).unwrap_or(1)
}

impl CudaDevice {
    pub(super) fn attend(&self, a: &Attention<'_>) -> Result<()> {
        let head_dim = a.cache.head_dim;
        if a.q.dtype() != a.cache.data.dtype() {
            return Err(Error::unsupported(format!(
                "a {} KV cache with {} activations on a GPU",
                a.cache.data.dtype(),
                a.q.dtype()
            )));
        }
        let args = self.attention_args(a);
        let sequences = a.batch.context_lens.cols();
        let class = HEAD_DIMS.iter().position(|&dim| head_dim <= dim);
        let tensor_cores =
            a.q.dtype().size() == 2 && head_dim.is_multiple_of(8) && aligned(a.q) && aligned(&a.cache.data);
        // Only the plain kernel sees sinks.
        let tensor_cores = tensor_cores && !a.cache.keys_only && a.sink_tokens == 0;
        match class.filter(|&class| tensor_cores && self.has_shared_for(class)) {
            Some(class) => self.attend_packed(a, args, sequences, class),
            None if head_dim <= WIDE_HEAD_DIM => {
                let grid = (a.batch.max_query_len, a.num_heads, sequences);
                let geometry = Geometry { grid, block: (32, 1), shared_bytes: 0 };
                let small = head_dim <= ANY_HEAD_DIM;
                let kernels = if small { &self.kernels.attention_any } else { &self.kernels.attention_wide };
                // SAFETY: the kernel of this type takes these arguments; shapes were checked by the caller.
                unsafe { launch(&self.context, kernels.of(a.q.dtype())?, geometry, &args, []) }
            }
            None => {
                Err(Error::unsupported(format!("attention heads of {head_dim} on a GPU; {WIDE_HEAD_DIM} is the most")))
            }
        }
    }

    fn has_shared_for(&self, class: usize) -> bool {
        let dim = HEAD_DIMS[class];
        self.decode_shared(dim).max(prefill_shared_bytes(dim)) <= self.properties.shared_bytes
    }

    fn decode_shared(&self, dim: usize) -> usize {
        decode_shared_bytes(dim, self.kernels.small_shared)
    }

    /// The decode kernel for sequences of few rows, the prefill kernel for the others; each passes over the other's.
    fn attend_packed(&self, a: &Attention<'_>, mut args: AttentionArgs, sequences: usize, class: usize) -> Result<()> {
        let kv_heads = a.cache.kv_heads;
        let group = a.num_heads / kv_heads;
        let which = type_index(a.q.dtype())? as usize - 1;
        let dim = HEAD_DIMS[class];
        if a.batch.max_query_len * group > DECODE_ROWS {
            let tiles = (a.batch.max_query_len * group).div_ceil(PREFILL_ROWS);
            let hopper = self.kernels.attention_prefill_wgmma.filter(|_| a.alibi.is_none());
            let hopper = hopper.and_then(|kernels| kernels[which].get(class).copied());
            let (kernel, shared_bytes) = match hopper {
                Some(kernel) => (kernel, wgmma_shared_bytes(dim)),
                None => (self.kernels.attention_prefill[which][class], prefill_shared_bytes(dim)),
            };
            let geometry = Geometry { grid: (tiles, kv_heads, sequences), block: (256, 1), shared_bytes };
            // SAFETY: as above; shared memory of this size was allowed at load.
            unsafe { launch(&self.context, kernel, geometry, &args, [])? };
        }
        if group > DECODE_ROWS {
            return Ok(());
        }
        let heads = sequences * kv_heads;
        let resident = (self.properties.shared_bytes / self.decode_shared(dim)).clamp(1, 3);
        let seen = a.window.map_or(a.batch.max_context_len, |window| {
            a.batch.max_context_len.min(window + DECODE_ROWS + DECODE_TOKENS)
        });
        let seen = a.chunk.map_or(seen, |chunk| seen.min(chunk + DECODE_ROWS + DECODE_TOKENS));
        let splits = choose_splits(heads, seen, self.properties.multiprocessors * resident);
        args.splits = splits as i32;
        args.partial_weights = args.partial_values + (heads * splits * DECODE_ROWS * a.cache.head_dim * 4) as u64;
        let geometry =
            Geometry { grid: (splits, kv_heads, sequences), block: (128, 1), shared_bytes: self.decode_shared(dim) };
        // SAFETY: as above; `choose_splits` keeps the partial results within their buffer.
        unsafe { self.launch_chained(self.kernels.attention_decode[which][class], geometry, &args, [])? };
        if splits > 1 {
            let rows = (a.batch.max_query_len * group).min(DECODE_ROWS);
            let geometry = Geometry { grid: (heads, rows, 1), block: (128, 1), shared_bytes: 0 };
            // SAFETY: as above.
            unsafe { self.launch_chained(self.kernels.attention_combine[which], geometry, &args, [])? };
        }
        Ok(())
    }

    fn attention_args(&self, a: &Attention<'_>) -> AttentionArgs {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        AttentionArgs {
            out: a.out.addr(),
            q: a.q.addr(),
            cache: a.cache.data.addr(),
            cu_seqlens: a.batch.cu_seqlens.addr(),
            context_lens: a.batch.context_lens.addr(),
            block_tables: a.batch.block_tables.addr(),
            partial_values: self.partials.addr,
            partial_weights: 0,
            out_stride: a.out.stride() as i64,
            q_stride: a.q.stride() as i64,
            table_stride: a.batch.block_tables.stride() as i64,
            num_heads: a.num_heads as i32,
            kv_heads: a.cache.kv_heads as i32,
            head_dim: a.cache.head_dim as i32,
            block_shift: a.cache.block_size_tokens.trailing_zeros() as i32,
            scale: if a.softcap.is_some() { a.scale } else { a.scale * LOG2_E },
            cap_log2: a.softcap.map_or(0.0, |cap| cap * LOG2_E),
            inverse_cap: a.softcap.map_or(0.0, |cap| 1.0 / cap),
            window: a.window.map_or(0, to_i32),
            splits: 1,
            chunk: a.chunk.map_or(0, to_i32),
            planes: if a.cache.keys_only { 1 } else { 2 },
            sink_tokens: to_i32(a.sink_tokens),
            sinks: a.sinks.map_or(0, Tensor::addr),
            alibi: a.alibi.map_or(0, Tensor::addr),
            sink_q: a.sink_q.map_or(0, Tensor::addr),
            sink_q_stride: a.sink_q.map_or(0, |q| q.stride() as i64),
        }
    }
}

/// A number of tokens, as kernels take it.
pub(super) fn to_i32(tokens: usize) -> i32 {
    tokens.min(i32::MAX as usize) as i32
}

fn aligned(tensor: &Tensor) -> bool {
    tensor.addr().is_multiple_of(16) && tensor.stride().is_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_sequence_is_split_and_a_full_batch_is_not() {
        let slots = 264;
        assert!(choose_splits(8, 8192, slots) >= 16, "8 heads leave most of the GPU idle");
        assert_eq!(choose_splits(264, 4096, slots), 1);
        assert_eq!(choose_splits(8, 16, slots), 1);
    }

    #[test]
    fn partial_results_fit_their_buffer() {
        for heads in [1, 8, 100, 1000, 2000, 5000] {
            for context in [1, 1000, 131_072] {
                let splits = choose_splits(heads, context, 264);
                assert!(splits == 1 || heads * splits * DECODE_ROWS * (256 + 2) * 4 <= PARTIAL_BYTES);
            }
        }
    }
}
