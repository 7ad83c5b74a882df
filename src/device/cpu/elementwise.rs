//! Operations whose cost is reading and writing activations once.

use super::CpuDevice;
use super::attend::Reach;
use super::functions::{SWISH_BOUND, activate, clamp};
use super::linear::widened;
use super::simd::{Float, Kernel, Simd, dispatch, load_up_to, store_up_to};
use super::view::{Cache, Element, Matrix, Side, indices, with_element};
use crate::device::{Activation, KvLayer, RopeKvWrite, RopeStyle, Tensor};
use crate::error::{Error, Result};
use crate::step::BlockCopy;

/// Columns of a task of [`gated_activation`].
const PIECE: usize = 2048;

/// The index `value` of a thing of which there are `count`.
///
/// # Errors
/// Internal, when there is no such thing: an access would leave its buffer.
fn checked(value: i32, count: usize, what: &str) -> Result<usize> {
    usize::try_from(value)
        .ok()
        .filter(|&index| index < count)
        .ok_or_else(|| Error::internal(format!("{what} {value} of {count}")))
}

pub(super) fn embed(device: &CpuDevice, out: Matrix<'_, f32>, table: &Tensor, ids: &Tensor, scale: f32) -> Result<()> {
    let ids = indices(ids, "embed: ids")?;
    for &id in ids {
        checked(id, table.rows(), "token id")?;
    }
    with_element!(table.dtype(), "embed: table", E => {
        let table = Matrix::<E>::of(table, "embed: table")?;
        device.pool.run(out.rows, &|t| {
            // SAFETY: ids were checked; row t is this task's alone.
            let (to, from) = unsafe { (out.row_mut(t), table.row(ids[t] as usize)) };
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.to_f32() * scale;
            }
        })
    })
}

pub(super) fn rms_norm(
    device: &CpuDevice,
    out: Matrix<'_, f32>,
    x: Matrix<'_, f32>,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    let weight = widened(weight)?;
    device.pool.run(out.rows, &|t| {
        for start in (0..x.cols).step_by(weight.len()) {
            let (out, x) = (out.pointer(t).wrapping_add(start), x.pointer(t).wrapping_add(start));
            // SAFETY: the device has this instruction set; the group lies in row t, which is this task's alone.
            unsafe { dispatch(device.isa, Normalize { out, x, addend: None, weight: &weight, eps }) };
        }
    })
}

pub(super) fn add_rms_norm(
    device: &CpuDevice,
    out: Matrix<'_, f32>,
    residual: Matrix<'_, f32>,
    x: Matrix<'_, f32>,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    let weight = widened(weight)?;
    device.pool.run(out.rows, &|t| {
        let addend = Some(x.pointer(t).cast_const());
        let (out, x) = (out.pointer(t), residual.pointer(t));
        // SAFETY: the device has this instruction set; row t of each tensor is this task's alone.
        unsafe { dispatch(device.isa, Normalize { out, x, addend, weight: &weight, eps }) };
    })
}

/// `x += addend`, then `out = x / rms(x) * weight`; `out` may be `x`. Pointers are good for as many elements as
/// `weight` has, which nobody else uses.
struct Normalize<'a> {
    out: *mut f32,
    x: *mut f32,
    addend: Option<*const f32>,
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let len = self.weight.len();
        // SAFETY: by the fields' contract; no access passes `len`.
        unsafe {
            let mut squares = S::splat(0.0);
            for i in (0..len).step_by(S::LANES) {
                let mut x = load_up_to::<S, f32>(self.x.add(i), len - i);
                if let Some(addend) = self.addend {
                    x = S::add(x, load_up_to::<S, f32>(addend.add(i), len - i));
                    store_up_to::<S>(self.x.add(i), x, len - i);
                }
                squares = S::fma(x, x, squares);
            }
            let factor = S::splat(1.0 / (S::sum(squares) / len as f32 + self.eps).sqrt());
            for i in (0..len).step_by(S::LANES) {
                let x = load_up_to::<S, f32>(self.x.add(i), len - i);
                let weight = load_up_to::<S, f32>(self.weight.as_ptr().add(i), len - i);
                store_up_to::<S>(self.out.add(i), S::mul(S::mul(x, factor), weight), len - i);
            }
        }
    }
}

pub(super) fn rope_kv_write(device: &CpuDevice, args: &RopeKvWrite<'_>) -> Result<()> {
    with_element!(args.cache.data.dtype(), "the KV cache", E => rope_kv_write_as::<E>(device, args))
}

fn rope_kv_write_as<E: Float>(device: &CpuDevice, args: &RopeKvWrite<'_>) -> Result<()> {
    let cache = Cache::<E>::of(args.cache)?;
    let (q, k) = (Matrix::<f32>::of(args.q, "rope: q")?, Matrix::<f32>::of(args.k, "rope: k")?);
    let v = Matrix::<f32>::of(args.v, "rope: v")?;
    let (positions, slots) = (indices(args.positions, "rope: positions")?, indices(args.slots, "rope: slots")?);
    let sinks = args.sink_queries.as_ref().map(|sinks| {
        let reach = Reach { window: sinks.window, chunk: sinks.chunk, sink_tokens: sinks.sink_tokens };
        Ok((Matrix::<f32>::of(sinks.out, "rope: sink queries")?, reach))
    });
    let sinks = sinks.transpose()?;
    let table = args.rope.map(|rope| Ok((Matrix::<f32>::of(&rope.cos_sin, "rope: table")?, rope.style)));
    let table = table.transpose()?;
    let num_slots = cache.num_blocks * cache.block_size;
    for (&position, &slot) in positions.iter().zip(slots).take(q.rows) {
        if slot >= 0 {
            checked(slot, num_slots, "slot")?;
        }
        if let Some((table, _)) = &table {
            checked(position, table.rows, "position")?;
        }
    }
    let dim = cache.head_dim;
    device.pool.run(q.rows, &|t| {
        // SAFETY: row t of each tensor is this task's alone, and so is the token's slot.
        let (q, k) = unsafe { (q.row_mut(t), k.row_mut(t)) };
        if let Some((sink_q, reach)) = &sinks {
            // SAFETY: as above.
            let sink_q = unsafe { sink_q.row_mut(t) };
            sink_q.copy_from_slice(q);
            if let Some((table, style)) = &table {
                let position = positions[t] as usize;
                // SAFETY: as below, for a position that is no larger.
                let cos_sin = unsafe { table.row(position - reach.tokens_before_window(position)) };
                sink_q.chunks_exact_mut(dim).for_each(|head| rotate(head, cos_sin, *style));
            }
        }
        if let Some((table, style)) = &table {
            // SAFETY: the position was checked; the table is a parameter.
            let cos_sin = unsafe { table.row(positions[t] as usize) };
            q.chunks_exact_mut(dim).chain(k.chunks_exact_mut(dim)).for_each(|head| rotate(head, cos_sin, *style));
        }
        let Ok(slot) = usize::try_from(slots[t]) else { return };
        let (block, offset) = (slot / cache.block_size, slot % cache.block_size);
        let write = |side: Side, heads: &[f32]| {
            for (head, from) in heads.chunks_exact(dim).enumerate() {
                // SAFETY: the slot was checked; no two tokens of a step have the same one.
                let to = unsafe { cache.data.row_mut(cache.row(block, side, head, offset)) };
                from.iter().zip(to).for_each(|(from, to)| *to = E::from_f32(*from));
            }
        };
        write(Side::Keys, k);
        if cache.sides == 2 {
            // SAFETY: nobody writes to the values, which are not the keys.
            write(Side::Values, unsafe { v.row(t) });
        }
    })
}

fn rotate(head: &mut [f32], cos_sin: &[f32], style: RopeStyle) {
    let half = cos_sin.len() / 2;
    let (cos, sin) = cos_sin.split_at(half);
    match style {
        RopeStyle::HalfSplit => {
            let (first, rest) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
        RopeStyle::Interleaved => {
            for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
            }
        }
    }
}

pub(super) fn gated_activation(
    device: &CpuDevice,
    out: Matrix<'_, f32>,
    gate_up: Matrix<'_, f32>,
    activation: Activation,
) -> Result<()> {
    let pieces = out.cols.div_ceil(PIECE);
    device.pool.run(out.rows * pieces, &|task| {
        let (t, start) = (task / pieces, task % pieces * PIECE);
        let len = PIECE.min(out.cols - start);
        let gate = gate_up.pointer(t).wrapping_add(start).cast_const();
        let up = gate.wrapping_add(out.cols);
        let out = out.pointer(t).wrapping_add(start);
        // SAFETY: the device has this instruction set; these columns of row t of `out` are this task's alone, and
        // nobody writes to `gate_up`, whose rows are twice as long.
        unsafe { dispatch(device.isa, Gate { out, gate, up, len, activation }) };
    })
}

/// `out = act(gate) * up` for `len` elements.
struct Gate {
    out: *mut f32,
    gate: *const f32,
    up: *const f32,
    len: usize,
    activation: Activation,
}

impl Kernel for Gate {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for i in (0..self.len).step_by(S::LANES) {
            // SAFETY: pointers are good for `len` elements, and no access passes that.
            unsafe {
                let gate = load_up_to::<S, f32>(self.gate.add(i), self.len - i);
                let up = load_up_to::<S, f32>(self.up.add(i), self.len - i);
                let up = match self.activation {
                    Activation::ClampedSwish => S::add(clamp::<S>(up, SWISH_BOUND), S::splat(1.0)),
                    _ => up,
                };
                let activated = activate::<S>(gate, self.activation);
                store_up_to::<S>(self.out.add(i), S::mul(activated, up), self.len - i);
            }
        }
    }
}

pub(super) fn add(device: &CpuDevice, sum: Matrix<'_, f32>, x: Matrix<'_, f32>) -> Result<()> {
    device.pool.run(sum.rows, &|t| {
        // SAFETY: row t of the sum is this task's alone, and nobody writes to `x`.
        let (sum, x) = unsafe { (sum.row_mut(t), x.row(t)) };
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    })
}

pub(super) fn gather_rows(out: Matrix<'_, f32>, x: Matrix<'_, f32>, rows: &Tensor) -> Result<()> {
    let rows = indices(rows, "gather_rows: rows")?;
    for (r, &row) in rows.iter().enumerate().take(out.rows) {
        let row = checked(row, x.rows, "row")?;
        // SAFETY: the row was checked; nobody else uses `out` or writes to `x` during the call.
        unsafe { out.row_mut(r).copy_from_slice(x.row(row)) };
    }
    Ok(())
}

pub(super) fn copy_blocks(cache: &KvLayer, copies: &[BlockCopy]) -> Result<()> {
    with_element!(cache.data.dtype(), "the KV cache", E => copy_blocks_as::<E>(cache, copies))
}

fn copy_blocks_as<E: Element>(cache: &KvLayer, copies: &[BlockCopy]) -> Result<()> {
    let cache = Cache::<E>::of(cache)?;
    for copy in copies {
        let from = checked(copy.from.0 as i32, cache.num_blocks, "block")?;
        let to = checked(copy.to.0 as i32, cache.num_blocks, "block")?;
        if copy.num_tokens > cache.block_size {
            let (tokens, size) = (copy.num_tokens, cache.block_size);
            return Err(Error::internal(format!("a copy of {tokens} tokens of a block of {size}")));
        }
        for head in 0..cache.sides * cache.kv_heads {
            for offset in 0..copy.num_tokens {
                let row = |block: usize| (block * cache.sides * cache.kv_heads + head) * cache.block_size + offset;
                let (from, to) = (cache.data.pointer(row(from)), cache.data.pointer(row(to)));
                // SAFETY: blocks and tokens were checked, so that both rows lie in the cache; nobody else uses it
                // during the call. The rows may be the same.
                unsafe { std::ptr::copy(from, to, cache.head_dim) };
            }
        }
    }
    Ok(())
}
