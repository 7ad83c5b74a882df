//! The hardware: memory and fused operations behind one object-safe trait.
//!
//! An operation gets its inputs and outputs as arguments. It allocates nothing, decides nothing and checks nothing:
//! [`crate::ops::Forward`] has checked shapes before. Activations are 2-D row-major matrices; heads are parameters.
//! Legend of shapes: T tokens, S sequences, R rows to sample, C hidden, H query heads, K kv heads, D head dim,
//! V vocabulary, B block size, F feed-forward size.

pub mod bench;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod edits;
mod experts;
mod features;
mod memory;
mod open;
mod sampling;
mod work;

pub use edits::{DecayingTopP, EditLogits, RowEdits, TableList};
pub use experts::{ExpertGroups, ExpertLinear, GroupScore, Route, RoutingRule, Score};
pub use features::{Elementwise, Feature};
pub use memory::{Buffer, DType, RawBuffer, Tensor};
pub use open::{CudaOptions, DeviceKind, DeviceOptions, GpuId, open};
pub use sampling::{MAX_TOP_TOKENS, RowMode, RowSample, RowSampling, Sample, TopTokens};
pub use work::{Graph, HostSlot, HostTier, Mark, Stamps, Transfers};

use crate::error::{Error, Result};
use std::sync::Arc;

/// Memory of a device and how much of it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For logs: `"CPU: 2 threads, AVX-512"`.
    pub description: String,
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// Whether the host reads device memory in place ([`Device::host_bytes`]).
    pub host_accessible: bool,
}

/// One device (a CPU with its thread pool, or one GPU). Calls are ordered: each sees the effects of those before.
pub trait Device: Send + Sync {
    fn info(&self) -> DeviceInfo;

    /// The type activations have on this device for weights of `weights` type.
    fn activation_dtype(&self, weights: DType) -> DType;

    /// The type of KV cache entries for weights of `weights` type.
    fn kv_dtype(&self, weights: DType) -> DType;

    /// Allocates zeroed memory, aligned to 256 bytes. `purpose` is named in the error.
    ///
    /// # Errors
    /// Says what was asked for and what was there.
    fn allocate(&self, bytes: usize, purpose: &str) -> Result<RawBuffer>;

    /// Returns what [`Device::allocate`] gave. Called by [`Buffer`]'s drop only.
    fn free(&self, buffer: RawBuffer);

    /// Copies host bytes into a tensor of exactly that size (contiguous). Returns when `src` may be reused.
    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()>;

    /// Waits for everything before, then copies a contiguous tensor to the host.
    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()>;

    /// The tensor's memory as the host sees it, where the device is the host: waits for everything before.
    fn host_bytes<'a>(&self, tensor: &'a Tensor) -> Option<&'a [u8]>;

    /// Waits until everything enqueued is done.
    fn synchronize(&self) -> Result<()>;

    /// Whether calls only enqueue, so that the host can prepare a step while another one runs.
    fn is_asynchronous(&self) -> bool;

    /// Copies for steps that overlap: uploads of up to `upload_bytes`, results of up to `result_bytes`, of up to `depth`
    /// steps at a time.
    fn transfers(&self, upload_bytes: usize, result_bytes: usize, depth: usize) -> Result<Box<dyn Transfers>>;

    /// Room for so many points in the work, for measurements. `None`: the device computes while it is called, and the
    /// host's clock tells all.
    fn stamps(&self, _room: usize) -> Result<Option<Box<dyn Stamps>>> {
        Ok(None)
    }

    /// Host memory for `num_blocks` blocks of `block_bytes` each, all layers together.
    ///
    /// # Errors
    /// Says how much was asked for.
    fn host_tier(&self, block_bytes: usize, num_blocks: usize) -> Result<Box<dyn HostTier>>;

    /// Calls `work` and keeps what it enqueues instead of running it; `work` neither allocates nor waits nor copies to
    /// or from the host. `None`, and `work` was not called: this device has no graphs.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>>;

    /// Makes the device fail for good, as a wild access of a kernel would: to test what comes after.
    ///
    /// # Errors
    /// `Unsupported` where nothing can make it fail.
    fn inject_fault(&self) -> Result<()> {
        Err(Error::unsupported("only a GPU can be made to fail"))
    }

    /// `out[t] = table[ids[t]] * scale`. `out [T, C]`, `table [V, C]`, `ids [1, T]` I32.
    fn embed(&self, out: &Tensor, table: &Tensor, ids: &Tensor, scale: f32) -> Result<()>;

    /// `out = x / rms(x) * weight` for every group of `weight.cols()` columns: the whole row, or each head.
    /// Mean and reciprocal root in f32. `x` and `out` may be the same tensor.
    fn rms_norm(&self, out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()>;

    /// `residual += x; out = rms_norm(residual)`. All `[T, C]`.
    fn add_rms_norm(&self, out: &Tensor, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()>;

    /// `out = x · weightᵀ + bias`, accumulated in f32. `x [T, K]`, `weight [N, K]`, `out [T, N]`, `bias [1, N]`.
    /// `out` may be F32 whatever the type of `x`.
    fn linear(&self, out: &Tensor, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<()>;

    /// Rotates queries (in place) and keys by position, and writes keys and values into the paged cache; no values where
    /// the cache is of keys only.
    fn rope_kv_write(&self, args: &RopeKvWrite<'_>) -> Result<()>;

    /// Causal attention of packed query chunks over the paged cache, which already holds the chunks' own keys.
    fn attention(&self, args: &Attention<'_>) -> Result<()>;

    /// `out = act(gate) * up` where `gate_up [T, 2F]` holds gate then up in each row; `out [T, F]`.
    fn gated_activation(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()>;

    /// Whether [`Device::gated_linear`] takes these shapes.
    fn gates_products(&self, _x: &Tensor, _weight: &Weight) -> bool {
        false
    }

    /// [`Device::linear`] and [`Device::gated_activation`] in one pass: `x [T, K]`, `weight [2F, K]`, `out [T, F]`. The gates
    /// and the others are rounded to the type of `out` in between.
    ///
    /// # Errors
    /// `Internal` where [`Device::gates_products`] says no.
    fn gated_linear(&self, _out: &Tensor, _x: &Tensor, _weight: &Weight, _activation: Activation) -> Result<()> {
        Err(Error::internal("this device has no product with gates"))
    }

    /// `out[r] = x[rows[r]]`. `rows [1, R]` I32.
    fn gather_rows(&self, out: &Tensor, x: &Tensor, rows: &Tensor) -> Result<()>;

    /// Replaces each negative id `-1 - slot` of `tokens [1, T]` by `sampled[slot]`: tokens that were sampled on the device
    /// and that the host does not know yet. Both I32; `sampled [1, N]`.
    fn resolve_tokens(&self, tokens: &Tensor, sampled: &Tensor) -> Result<()>;

    /// Chooses a token for each row of logits, as [`crate::decode::sample::sample`] does.
    fn sample(&self, args: &Sample<'_>) -> Result<()>;

    /// Changes rows of logits as their requests say, as [`crate::decode::logits::apply`] does: all of it before a token is
    /// chosen. What a row's request says about earlier tokens is read from tables on the device.
    fn edit_logits(&self, args: &EditLogits<'_>) -> Result<()>;

    /// Finds the most likely tokens of each row of logits, as [`crate::decode::sample::most_likely`] does.
    fn top_tokens(&self, args: &TopTokens<'_>) -> Result<()>;

    /// Whether the device has an operation, or a variant of one, that not every device has. A model that needs what is
    /// not there is refused when it is loaded.
    fn supports(&self, _feature: Feature) -> bool {
        false
    }

    /// `out = (x - mean) / √(variance + eps) * weight + bias` for every `group` columns, in f32. `weight` and `bias`
    /// have a value for each column of a group, or of the whole row. `x` and `out` may be the same tensor.
    fn layer_norm(&self, _args: &LayerNorm<'_>) -> Result<()> {
        Err(Feature::LayerNorm.missing())
    }

    /// `out = function(x)`, element by element. `x` and `out` may be the same tensor.
    fn elementwise(&self, _out: &Tensor, _x: &Tensor, _function: Elementwise) -> Result<()> {
        Err(Feature::Elementwise.missing())
    }

    /// `sum += x`. Both `[T, C]`.
    fn add(&self, _sum: &Tensor, _x: &Tensor) -> Result<()> {
        Err(Feature::Add.missing())
    }

    /// Chooses the experts of every token and their weights.
    fn route(&self, _args: &Route<'_>) -> Result<()> {
        Err(Feature::Experts.missing())
    }

    /// [`Device::linear`] with a matrix for each row.
    fn expert_linear(&self, _args: &ExpertLinear<'_>) -> Result<()> {
        Err(Feature::Experts.missing())
    }

    /// `out[t] = Σⱼ weights[t, j] * x[t * k + j]` for `weights [T, k]` F32, added to `out` if `accumulate`.
    /// `out [T, C]`, `x [T * k, C]`.
    fn combine(&self, _out: &Tensor, _x: &Tensor, _weights: &Tensor, _accumulate: bool) -> Result<()> {
        Err(Feature::Experts.missing())
    }

    /// Copies the first `num_tokens` slots of whole blocks within one layer's cache, in order.
    fn copy_blocks(&self, cache: &KvLayer, copies: &[crate::step::BlockCopy]) -> Result<()>;
}

/// A parameter matrix `[N, K]` in some storage format.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Row-major, F32, F16 or BF16.
    Dense(Tensor),
}

impl Weight {
    /// N: rows, the output features.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.rows(),
        }
    }

    /// K: columns, the input features.
    pub fn in_features(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.cols(),
        }
    }

    /// Bytes read when every element is used once.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.bytes(),
        }
    }
}

/// Keys and values of one layer: `[num_blocks, 2, K, B, D]`, keys then values in each block.
#[derive(Clone, Debug)]
pub struct KvLayer {
    /// `[num_blocks * 2 * K * B, D]`.
    pub data: Tensor,
    pub kv_heads: usize,
    pub block_size_tokens: usize,
    pub head_dim: usize,
    /// The keys are the values, too: `[num_blocks, 1, K, B, D]` (latent attention).
    pub keys_only: bool,
}

impl KvLayer {
    /// Keys and values of one block.
    pub fn block_bytes(&self) -> usize {
        self.block_rows() * self.head_dim * self.data.dtype().size()
    }

    /// One block, contiguous.
    pub fn block(&self, block: crate::ids::BlockId) -> Tensor {
        self.data.row_range(block.0 as usize * self.block_rows(), self.block_rows())
    }

    fn block_rows(&self) -> usize {
        let sides = if self.keys_only { 1 } else { 2 };
        sides * self.kv_heads * self.block_size_tokens
    }
}

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + rot/2)`.
    HalfSplit,
    /// `(2i, 2i + 1)`.
    Interleaved,
}

/// Rotary table: `cos_sin [max_positions, rot]` F32, `rot/2` cosines then `rot/2` sines, multiplier included.
/// Elements of a head from `rot` on pass unrotated.
#[derive(Clone, Debug)]
pub struct RopeTable {
    pub cos_sin: Tensor,
    pub style: RopeStyle,
}

/// Arguments of [`Device::rope_kv_write`].
pub struct RopeKvWrite<'a> {
    /// `[T, H*D]`, rotated in place.
    pub q: &'a Tensor,
    /// `[T, K*D]`; unchanged or rotated afterwards: not to be read again.
    pub k: &'a Tensor,
    /// `[T, K*D]`.
    pub v: &'a Tensor,
    /// `[1, T]` I32.
    pub positions: &'a Tensor,
    /// `[1, T]` I32: `block * B + offset`; negative: nothing is written (padding).
    pub slots: &'a Tensor,
    /// `None`: no rotation (NoPE).
    pub rope: Option<&'a RopeTable>,
    pub cache: &'a KvLayer,
    pub num_heads: usize,
    /// In layers that see the first tokens of a sequence beside a window.
    pub sink_queries: Option<SinkQueries<'a>>,
}

/// Queries for the first tokens of a sequence, which are as far away as if what lies between them and the window were not
/// there. Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", section 3.2.
#[derive(Clone, Copy)]
pub struct SinkQueries<'a> {
    /// `[T, H*D]`: `q` rotated by its position among the tokens that it sees, not in the sequence.
    pub out: &'a Tensor,
    /// As in [`Attention`], as are the others.
    pub window: Option<usize>,
    pub chunk: Option<usize>,
    pub sink_tokens: usize,
}

/// Which tokens attend to what; the same for every layer of a step.
#[derive(Clone, Debug)]
pub struct AttentionBatch {
    /// `[1, S + 1]` I32: query rows of sequence s are `cu_seqlens[s] .. cu_seqlens[s + 1]`.
    pub cu_seqlens: Tensor,
    /// `[1, S]` I32: tokens in the cache after this step, the chunk included. Query i of a chunk of n sits at
    /// position `context_len - n + i`.
    pub context_lens: Tensor,
    /// `[S, max_blocks]` I32; entries past the context are unspecified.
    pub block_tables: Tensor,
    /// Upper bound of a chunk's length in this step.
    pub max_query_len: usize,
    /// Upper bound of the context lengths in this step.
    pub max_context_len: usize,
}

/// Arguments of [`Device::attention`].
pub struct Attention<'a> {
    /// `[T, H*D]`.
    pub out: &'a Tensor,
    /// `[T, H*D]`, rotated.
    pub q: &'a Tensor,
    pub cache: &'a KvLayer,
    pub batch: &'a AttentionBatch,
    pub num_heads: usize,
    /// Factor of `q·k`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it.
    pub window: Option<usize>,
    /// Beside the window, the first tokens of the sequence.
    pub sink_tokens: usize,
    /// `[T, H*D]`, what takes the place of `q` for these first tokens where they lie before the window
    /// ([`SinkQueries`]); `None`: `q` itself.
    pub sink_q: Option<&'a Tensor>,
    /// A token sees only those of its own chunk of so many positions.
    pub chunk: Option<usize>,
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// `[1, H]` F32: one more score of each head in the softmax, without a value.
    pub sinks: Option<&'a Tensor>,
    /// `[1, H]` F32: `slope * (key position - query position)` is added to every score, before the softmax; positions are
    /// those among the tokens that the query sees.
    pub alibi: Option<&'a Tensor>,
}

/// Arguments of [`Device::layer_norm`].
pub struct LayerNorm<'a> {
    pub out: &'a Tensor,
    pub x: &'a Tensor,
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub group: usize,
    pub eps: f32,
}

/// Activation of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x Φ(x)` with the normal distribution's Φ.
    Gelu,
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
    /// `x * sigmoid(1.702 x)` with `x` at most 7; a gated layer's `up` is bounded by ±7, and 1 is added to it.
    ClampedSwish,
}

/// A device shared by everything that lives on it.
pub type SharedDevice = Arc<dyn Device>;
