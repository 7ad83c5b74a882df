//! Operations whose cost is reading and writing activations once.

use super::linear::ToF32;
use super::pool::Pool;
use super::view::{Cache, Element, Matrix, indices, with_element};
use crate::device::{Activation, KvLayer, RopeKvWrite, RopeStyle, Tensor};
use crate::error::{Error, Result};
use crate::step::BlockCopy;
use half::{bf16, f16};

pub(super) trait FromF32: Element {
    fn from_f32(value: f32) -> Self;
}
impl FromF32 for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
}
impl FromF32 for f16 {
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}
impl FromF32 for bf16 {
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

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

pub(super) fn embed(pool: &Pool, out: Matrix<'_, f32>, table: &Tensor, ids: &Tensor, scale: f32) -> Result<()> {
    let ids = indices(ids, "embed: ids")?;
    for &id in ids {
        checked(id, table.rows(), "token id")?;
    }
    with_element!(table.dtype(), "embed: table", E => {
        let table = Matrix::<E>::of(table, "embed: table")?;
        pool.run(out.rows, &|t| {
            // SAFETY: ids were checked; row t is this task's alone.
            let (to, from) = unsafe { (out.row_mut(t), table.row(ids[t] as usize)) };
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.to_f32() * scale;
            }
        })
    })
}

fn parameters(tensor: &Tensor, name: &str) -> Result<Vec<f32>> {
    with_element!(tensor.dtype(), name, E => {
        let matrix = Matrix::<E>::of(tensor, name)?;
        // SAFETY: parameters are not written while a model runs.
        Ok(unsafe { matrix.row(0) }.iter().map(|&value| value.to_f32()).collect())
    })
}

pub(super) fn rms_norm(pool: &Pool, out: Matrix<'_, f32>, x: Matrix<'_, f32>, weight: &Tensor, eps: f32) -> Result<()> {
    let weight = parameters(weight, "rms_norm: weight")?;
    pool.run(out.rows, &|t| {
        for start in (0..x.cols).step_by(weight.len()) {
            // SAFETY: row t is this task's alone; `out` and `x` are read and written through pointers, since they may
            // be the same.
            unsafe { normalize(out.pointer(t).add(start), x.pointer(t).add(start), &weight, eps) };
        }
    })
}

/// # Safety
/// Both pointers are good for `weight.len()` elements that nobody else uses.
unsafe fn normalize(out: *mut f32, x: *const f32, weight: &[f32], eps: f32) {
    // SAFETY: by the contract.
    let sum: f32 = (0..weight.len()).map(|i| unsafe { *x.add(i) * *x.add(i) }).sum();
    let factor = 1.0 / (sum / weight.len() as f32 + eps).sqrt();
    for (i, weight) in weight.iter().enumerate() {
        // SAFETY: by the contract.
        unsafe { *out.add(i) = *x.add(i) * factor * weight };
    }
}

pub(super) fn add_rms_norm(
    pool: &Pool,
    out: Matrix<'_, f32>,
    residual: Matrix<'_, f32>,
    x: Matrix<'_, f32>,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    let weight = parameters(weight, "add_rms_norm: weight")?;
    pool.run(out.rows, &|t| {
        for i in 0..x.cols {
            // SAFETY: row t is this task's alone.
            unsafe { *residual.pointer(t).add(i) += *x.pointer(t).add(i) };
        }
        // SAFETY: as above.
        unsafe { normalize(out.pointer(t), residual.pointer(t), &weight, eps) };
    })
}

pub(super) fn rope_kv_write(pool: &Pool, args: &RopeKvWrite<'_>) -> Result<()> {
    with_element!(args.cache.data.dtype(), "the KV cache", E => rope_kv_write_as::<E>(pool, args))
}

fn rope_kv_write_as<E: FromF32>(pool: &Pool, args: &RopeKvWrite<'_>) -> Result<()> {
    let cache = Cache::<E>::of(args.cache)?;
    let (q, k) = (Matrix::<f32>::of(args.q, "rope: q")?, Matrix::<f32>::of(args.k, "rope: k")?);
    let v = Matrix::<f32>::of(args.v, "rope: v")?;
    let (positions, slots) = (indices(args.positions, "rope: positions")?, indices(args.slots, "rope: slots")?);
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
    pool.run(q.rows, &|t| {
        // SAFETY: row t of each tensor is this task's alone, and so is the token's slot.
        let (q, k, v) = unsafe { (q.row_mut(t), k.row_mut(t), v.row(t)) };
        if let Some((table, style)) = &table {
            // SAFETY: the position was checked; the table is a parameter.
            let cos_sin = unsafe { table.row(positions[t] as usize) };
            q.chunks_exact_mut(dim).chain(k.chunks_exact_mut(dim)).for_each(|head| rotate(head, cos_sin, *style));
        }
        let Ok(slot) = usize::try_from(slots[t]) else { return };
        let (block, offset) = (slot / cache.block_size, slot % cache.block_size);
        for (head, (key, value)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
            // SAFETY: the slot was checked; no two tokens of a step have the same one.
            let (to_key, to_value) = unsafe {
                let key_row = cache.data.row_mut(cache.key_row(block, head, offset));
                (key_row, cache.data.row_mut(cache.value_row(block, head, offset)))
            };
            key.iter().zip(to_key).for_each(|(from, to)| *to = E::from_f32(*from));
            value.iter().zip(to_value).for_each(|(from, to)| *to = E::from_f32(*from));
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
    pool: &Pool,
    out: Matrix<'_, f32>,
    gate_up: Matrix<'_, f32>,
    activation: Activation,
) -> Result<()> {
    pool.run(out.rows, &|t| {
        // SAFETY: row t of `out` is this task's alone; nobody writes to `gate_up`.
        let (out, gate_up) = unsafe { (out.row_mut(t), gate_up.row(t)) };
        let (gate, up) = gate_up.split_at(out.len());
        for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
            let argument = match activation {
                Activation::Silu => gate,
                Activation::GeluTanh => {
                    2.0 * (2.0 / std::f32::consts::PI).sqrt() * (gate + 0.044715 * gate * gate * gate)
                }
            };
            *out = gate / (1.0 + (-argument).exp()) * up;
        }
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
        for head in 0..2 * cache.kv_heads {
            for offset in 0..copy.num_tokens {
                let row = |block: usize| (block * 2 * cache.kv_heads + head) * cache.block_size + offset;
                let (from, to) = (cache.data.pointer(row(from)), cache.data.pointer(row(to)));
                // SAFETY: blocks and tokens were checked, so that both rows lie in the cache; nobody else uses it
                // during the call. The rows may be the same.
                unsafe { std::ptr::copy(from, to, cache.head_dim) };
            }
        }
    }
    Ok(())
}
