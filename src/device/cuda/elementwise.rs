//! Geometry of the memory-bound kernels: norms, gathers, activation, rope.

use super::CudaDevice;
use super::attention::to_i32;
use super::driver::Geometry;
use super::kernels::{LayerNormArgs, NormArgs, RopeArgs, RowArgs, launch, type_index};
use crate::device::{Activation, DType, Elementwise, LayerNorm, RopeKvWrite, RopeStyle, Tensor};
use crate::error::{Error, Result};

/// Groups of up to this many columns are normalized by a warp each.
const WARP_COLUMNS: usize = 1024;

/// Vectors of a row that a thread holds (`KEEP`).
const KEEP: usize = 4;

/// Whether 16-byte accesses fit: every row starts on a 16-byte boundary and `cols` are whole vectors of `vector`
/// elements.
pub(super) fn vectors(tensors: &[&Tensor], cols: usize, vector: usize) -> bool {
    let aligned = |tensor: &&Tensor| {
        tensor.addr().is_multiple_of(16)
            && (tensor.rows() <= 1 || (tensor.stride() * tensor.dtype().size()).is_multiple_of(16))
    };
    cols.is_multiple_of(vector) && tensors.iter().all(aligned)
}

/// Elements of 16 bytes.
pub(super) fn vector_of(dtype: DType) -> usize {
    16 / dtype.size()
}

impl CudaDevice {
    pub(super) fn norm(
        &self,
        out: &Tensor,
        x: &Tensor,
        residual: Option<&Tensor>,
        weight: &Tensor,
        eps: f32,
    ) -> Result<()> {
        let cols = weight.cols();
        let groups = x.cols() / cols;
        let vector = vector_of(x.dtype());
        let mut tensors = vec![out, x, weight];
        tensors.extend(residual);
        let vectors = vectors(&tensors, cols, vector);
        let geometry = if cols <= WARP_COLUMNS {
            Geometry { grid: ((x.rows() * groups).div_ceil(8), 1, 1), block: (32, 8), shared_bytes: 0 }
        } else {
            let width = if vectors { vector } else { 1 };
            let rows = x.rows() * groups;
            // Few rows: as many threads as there are vectors, for the least latency.
            let held = if rows <= 2 * self.properties.multiprocessors { 1 } else { KEEP };
            let threads = cols.div_ceil(width * held).next_multiple_of(32).clamp(64, 512);
            Geometry { grid: (rows, 1, 1), block: (threads, 1), shared_bytes: 0 }
        };
        let args = NormArgs {
            out: out.addr(),
            x: x.addr(),
            residual: residual.map_or(0, Tensor::addr),
            weight: weight.addr(),
            out_stride: out.stride() as i64,
            x_stride: x.stride() as i64,
            residual_stride: residual.map_or(0, |residual| residual.stride() as i64),
            rows: x.rows() as i32,
            groups: groups as i32,
            cols: cols as i32,
            weight_dtype: type_index(weight.dtype())?,
            eps,
        };
        // SAFETY: the kernel of this type takes these arguments; shapes were checked by the caller of the device.
        unsafe { self.launch_chained(self.kernels.rms_norm.of(x.dtype())?, geometry, &args, [i32::from(vectors)]) }
    }

    /// `out[r] = x[index[r]] * scale`.
    pub(super) fn take_rows(&self, out: &Tensor, x: &Tensor, index: &Tensor, scale: f32) -> Result<()> {
        let vectors = vectors(&[out, x], out.cols(), 8);
        let args = RowArgs {
            out: out.addr(),
            x: x.addr(),
            index: index.addr(),
            out_stride: out.stride() as i64,
            x_stride: x.stride() as i64,
            cols: out.cols() as i32,
            x_dtype: type_index(x.dtype())?,
            x_rows: x.rows() as i32,
            scale,
        };
        let geometry = row_geometry(out.rows(), out.cols(), if vectors { 8 } else { 1 });
        // SAFETY: as in `norm`; rows outside `x` are not read.
        unsafe { self.launch_chained(self.kernels.take_rows.of(out.dtype())?, geometry, &args, [i32::from(vectors)]) }
    }

    pub(super) fn gated(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()> {
        let (args, geometry, vectors) = elements(out, gate_up, 1.0)?;
        let kernel = self.kernels.gated_activation.of(out.dtype())?;
        // SAFETY: as in `norm`.
        unsafe { self.launch_chained(kernel, geometry, &args, [vectors, number_of(activation)]) }
    }

    pub(super) fn center(&self, a: &LayerNorm<'_>) -> Result<()> {
        let vector = vector_of(a.x.dtype());
        let mut tensors = vec![a.out, a.x, a.weight];
        tensors.extend(a.bias);
        let vectors = vectors(&tensors, a.group, vector);
        let args = LayerNormArgs {
            out: a.out.addr(),
            x: a.x.addr(),
            weight: a.weight.addr(),
            bias: a.bias.map_or(0, Tensor::addr),
            out_stride: a.out.stride() as i64,
            x_stride: a.x.stride() as i64,
            groups: (a.x.cols() / a.group) as i32,
            group: a.group as i32,
            parameters: a.weight.cols() as i32,
            weight_dtype: type_index(a.weight.dtype())?,
            bias_dtype: a.bias.map_or(Ok(0), |bias| type_index(bias.dtype()))?,
            eps: a.eps,
        };
        let units = a.group.div_ceil(if vectors { vector } else { 1 });
        let geometry = Geometry {
            grid: (a.x.rows() * (a.x.cols() / a.group), 1, 1),
            block: (units.next_multiple_of(32).min(256), 1),
            shared_bytes: 0,
        };
        // SAFETY: as in `norm`.
        unsafe {
            launch(&self.context, self.kernels.layer_norm.of(a.x.dtype())?, geometry, &args, [i32::from(vectors)])
        }
    }

    pub(super) fn apply(&self, out: &Tensor, x: &Tensor, function: Elementwise) -> Result<()> {
        let (function, parameter) = match function {
            Elementwise::Activate(activation) => (number_of(activation), 0.0),
            Elementwise::Sigmoid => (6, 0.0),
            Elementwise::Scale(factor) => (7, factor),
            Elementwise::Clamp(bound) => (8, bound),
            Elementwise::Softcap(cap) => (9, cap),
        };
        let (args, geometry, vectors) = elements(out, x, parameter)?;
        let kernel = self.kernels.elementwise.of(out.dtype())?;
        // SAFETY: as in `norm`.
        unsafe { launch(&self.context, kernel, geometry, &args, [vectors, function]) }
    }

    pub(super) fn sum(&self, sum: &Tensor, x: &Tensor) -> Result<()> {
        let (args, geometry, vectors) = elements(sum, x, 1.0)?;
        // SAFETY: as in `norm`.
        unsafe { launch(&self.context, self.kernels.add.of(sum.dtype())?, geometry, &args, [vectors]) }
    }

    pub(super) fn rope(&self, args: &RopeKvWrite<'_>) -> Result<()> {
        let RopeKvWrite { q, k, v, positions, slots, rope, cache, num_heads, sink_queries } = *args;
        if q.dtype() != cache.data.dtype() {
            return Err(Error::unsupported(format!(
                "a {} KV cache with {} activations on a GPU",
                cache.data.dtype(),
                q.dtype()
            )));
        }
        let rot = rope.map_or(0, |rope| rope.cos_sin.cols());
        let style = rope.map_or(RopeStyle::HalfSplit, |rope| rope.style);
        let vector = vector_of(q.dtype());
        let halves_fit = rope.is_none() || (rot / 2) % vector == 0 && vectors(&[&rope.unwrap().cos_sin], rot / 2, 4);
        let sink_q = sink_queries.map_or(q, |sinks| sinks.out);
        let vectors = vectors(&[q, k, v, &cache.data, sink_q], cache.head_dim, vector) && halves_fit;
        let kernel_args = RopeArgs {
            q: q.addr(),
            k: k.addr(),
            v: v.addr(),
            positions: positions.addr(),
            slots: slots.addr(),
            cos_sin: rope.map_or(0, |rope| rope.cos_sin.addr()),
            cache: cache.data.addr(),
            q_stride: q.stride() as i64,
            k_stride: k.stride() as i64,
            v_stride: v.stride() as i64,
            num_heads: num_heads as i32,
            kv_heads: cache.kv_heads as i32,
            head_dim: cache.head_dim as i32,
            rot: rot as i32,
            style: match style {
                RopeStyle::HalfSplit => 0,
                RopeStyle::Interleaved => 1,
            },
            block_shift: cache.block_size_tokens.trailing_zeros() as i32,
            max_positions: rope.map_or(0, |rope| rope.cos_sin.rows() as i32),
            planes: if cache.keys_only { 1 } else { 2 },
            sink_q: sink_queries.map_or(0, |sinks| sinks.out.addr()),
            sink_q_stride: sink_q.stride() as i64,
            window: sink_queries.and_then(|sinks| sinks.window).map_or(0, to_i32),
            chunk: sink_queries.and_then(|sinks| sinks.chunk).map_or(0, to_i32),
            sink_tokens: sink_queries.map_or(0, |sinks| to_i32(sinks.sink_tokens)),
        };
        let units = num_heads * cache.head_dim / if vectors { vector } else { 1 };
        let geometry =
            Geometry { grid: (q.rows(), 1, 1), block: (units.next_multiple_of(32).clamp(32, 256), 1), shared_bytes: 0 };
        let kernel = self.kernels.rope_kv_write.of(q.dtype())?;
        // SAFETY: as in `norm`; slots are negative or lie in the cache.
        unsafe { self.launch_chained(kernel, geometry, &kernel_args, [i32::from(vectors)]) }
    }
}

/// The number by which kernels know an activation (`Function` in `activation.cuh`).
pub(super) fn number_of(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
        Activation::Relu => 3,
        Activation::ReluSquared => 4,
        Activation::ClampedSwish => 5,
    }
}

/// Arguments and geometry of a kernel that takes elements of `x` to those of `out`, and whether by vectors.
fn elements(out: &Tensor, x: &Tensor, parameter: f32) -> Result<(RowArgs, Geometry, i32)> {
    let vector = vector_of(out.dtype());
    let vectors = vectors(&[out, x], out.cols(), vector);
    let args = RowArgs {
        out: out.addr(),
        x: x.addr(),
        index: 0,
        out_stride: out.stride() as i64,
        x_stride: x.stride() as i64,
        cols: out.cols() as i32,
        x_dtype: type_index(x.dtype())?,
        x_rows: x.rows() as i32,
        scale: parameter,
    };
    Ok((args, row_geometry(out.rows(), out.cols(), if vectors { vector } else { 1 }), i32::from(vectors)))
}

pub(super) fn row_geometry(rows: usize, cols: usize, width: usize) -> Geometry {
    let units = cols.div_ceil(width);
    let threads = units.next_multiple_of(32).min(256);
    Geometry { grid: (rows, units.div_ceil(threads), 1), block: (threads, 1), shared_bytes: 0 }
}
