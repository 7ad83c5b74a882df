//! Causal attention over the paged cache.

use super::linear::ToF32;
use super::pool::Pool;
use super::view::{Cache, Matrix, indices, with_element};
use crate::device::Attention;
use crate::error::{Error, Result};

pub(super) fn attention(pool: &Pool, args: &Attention<'_>) -> Result<()> {
    with_element!(args.cache.data.dtype(), "the KV cache", E => attention_as::<E>(pool, args))
}

fn attention_as<E: ToF32>(pool: &Pool, args: &Attention<'_>) -> Result<()> {
    let cache = Cache::<E>::of(args.cache)?;
    let (out, q) = (Matrix::<f32>::of(args.out, "attention: out")?, Matrix::<f32>::of(args.q, "attention: q")?);
    let cu_seqlens = indices(&args.batch.cu_seqlens, "cu_seqlens")?;
    let context_lens = indices(&args.batch.context_lens, "context_lens")?;
    let tables = Matrix::<i32>::of(&args.batch.block_tables, "block_tables")?;
    let (dim, group) = (cache.head_dim, args.num_heads / cache.kv_heads);
    for (s, &len) in context_lens.iter().enumerate() {
        if len as usize > tables.cols * cache.block_size {
            return Err(Error::internal(format!("a context of {len} tokens in {} blocks", tables.cols)));
        }
        // SAFETY: tables are written by `upload` only.
        let table = unsafe { tables.row(s) };
        for &block in &table[..(len as usize).div_ceil(cache.block_size)] {
            if block < 0 || block as usize >= cache.num_blocks {
                return Err(Error::internal(format!("block {block} of {}", cache.num_blocks)));
            }
        }
    }
    for s in 0..context_lens.len() {
        let (start, end) = (cu_seqlens[s] as usize, cu_seqlens[s + 1] as usize);
        let context = context_lens[s] as usize;
        // SAFETY: tables are written by `upload` only.
        let table = unsafe { tables.row(s) };
        pool.run((end - start) * args.num_heads, &|task| {
            let (t, head) = (start + task / args.num_heads, task % args.num_heads);
            let position = context - (end - t);
            let first = args.window.map_or(0, |window| (position + 1).saturating_sub(window));
            // SAFETY: nobody writes to `q` or the cache; head `head` of row t of `out` is this task's alone.
            let (query, out) = unsafe {
                let out = std::slice::from_raw_parts_mut(out.pointer(t).add(head * dim), dim);
                (std::slice::from_raw_parts(q.pointer(t).add(head * dim), dim), out)
            };
            let mut scores: Vec<f32> = (first..=position)
                .map(|at| {
                    let block = table[at / cache.block_size] as usize;
                    let row = cache.key_row(block, head / group, at % cache.block_size);
                    // SAFETY: as above.
                    let key = unsafe { cache.data.row(row) };
                    let score = query.iter().zip(key).map(|(q, k)| q * k.to_f32()).sum::<f32>() * args.scale;
                    args.softcap.map_or(score, |cap| cap * (score / cap).tanh())
                })
                .collect();
            let max = scores.iter().fold(f32::NEG_INFINITY, |max, &score| max.max(score));
            scores.iter_mut().for_each(|score| *score = (*score - max).exp());
            let sum: f32 = scores.iter().sum();
            out.fill(0.0);
            for (at, score) in (first..=position).zip(&scores) {
                let block = table[at / cache.block_size] as usize;
                let row = cache.value_row(block, head / group, at % cache.block_size);
                // SAFETY: as above.
                let value = unsafe { cache.data.row(row) };
                out.iter_mut().zip(value).for_each(|(out, value)| *out += score / sum * value.to_f32());
            }
        })?;
    }
    Ok(())
}
