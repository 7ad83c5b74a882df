//! Causal attention over the paged cache: what is computed where. The arithmetic is in [`super::attend`].
//!
//! The work is cut into tiles of query rows of one sequence and one kv head, all heads of its group included, so that
//! they share each read of keys and values. A tile goes through its keys in chunks at fixed positions; each chunk's
//! result is computed from nothing and merged in order. So the bits of a row do not depend on how the work is cut:
//! neither on the prompt's chunks, nor on whether the context is split over threads (decoding of few sequences).

use super::CpuDevice;
use super::attend::{Attend, CHUNK_TOKENS, MAX_HEAD_DIM, Merge, Queries, Reach, Sizes};
use super::linear::widened;
use super::scratch::Scratch;
use super::simd::{Float, dispatch};
use super::view::{Cache, Matrix, indices, with_element};
use crate::device::Attention;
use crate::error::{Error, Result};
use std::ops::Range;

/// Query rows (tokens × heads of a group) of a tile.
const TILE_ROWS: usize = 48;
/// With fewer tiles than this for a thread, contexts are split.
const TILES_PER_THREAD: usize = 3;

/// Computes chunks of a tile: to `out`, or each to the partial results at an address.
type AttendTile<'a> = dyn Fn(&Tile<'_>, Range<usize>, Option<*mut f32>) + Sync + 'a;

/// Some queries of one sequence for one kv head.
struct Tile<'a> {
    /// Rows of `q` and `out`.
    tokens: Range<usize>,
    /// Position of the first of them.
    position: usize,
    kv_head: usize,
    table: &'a [i32],
}

pub(super) fn attention(device: &CpuDevice, args: &Attention<'_>) -> Result<()> {
    with_element!(args.cache.data.dtype(), "the KV cache", E => attention_as::<E>(device, args))
}

fn attention_as<E: Float>(device: &CpuDevice, args: &Attention<'_>) -> Result<()> {
    let cache = Cache::<E>::of(args.cache)?;
    let out = Matrix::<f32>::of(args.out, "attention: out")?;
    let q = Matrix::<f32>::of(args.q, "attention: q")?;
    let sink_q = args.sink_q.map(|sink_q| Matrix::<f32>::of(sink_q, "attention: sink_q")).transpose()?;
    if cache.head_dim > MAX_HEAD_DIM {
        let dim = cache.head_dim;
        return Err(Error::unsupported(format!("attention with heads of {dim} elements; the bound is {MAX_HEAD_DIM}")));
    }
    let group = args.num_heads / cache.kv_heads;
    let tiles = tiles(args, &cache, group)?;
    let sizes = Sizes::new(cache.head_dim, group, (TILE_ROWS / group).max(1));
    let reach = Reach { window: args.window, chunk: args.chunk, sink_tokens: args.sink_tokens };
    let (slopes, sinks) = (args.alibi.map(widened).transpose()?, args.sinks.map(widened).transpose()?);
    let attend = |tile: &Tile<'_>, chunks: Range<usize>, partials: Option<*mut f32>| {
        let first = tile.kv_head * group * cache.head_dim;
        let queries = Queries {
            q: q.pointer(tile.tokens.start).wrapping_add(first),
            out: out.pointer(tile.tokens.start).wrapping_add(first),
            q_stride: q.stride,
            sink_q: sink_q
                .as_ref()
                .map(|sink_q| (sink_q.pointer(tile.tokens.start).wrapping_add(first).cast_const(), sink_q.stride)),
            out_stride: out.stride,
            count: tile.tokens.len(),
            position: tile.position,
        };
        let attend = Attend {
            queries,
            sizes,
            cache: &cache,
            kv_head: tile.kv_head,
            table: tile.table,
            scale: args.scale,
            reach,
            softcap: args.softcap,
            slopes: of_group(slopes.as_deref(), tile.kv_head, group),
            sinks: of_group(sinks.as_deref(), tile.kv_head, group),
            chunks,
            partials,
        };
        // SAFETY: the device has this instruction set; the tile's rows, blocks and lengths were checked by `tiles`;
        // nobody else writes to its part of `out` or its partial results.
        unsafe { dispatch(device.isa, attend) };
    };
    let wanted = TILES_PER_THREAD * device.pool.num_threads();
    if tiles.len() >= wanted || device.pool.num_threads() == 1 {
        // The last tiles of a prompt have the longest contexts: they go first.
        return device.pool.run(tiles.len(), &|task| {
            let tile = &tiles[tiles.len() - 1 - task];
            attend(tile, tile.chunks(reach), None);
        });
    }
    let merged = Merged { out, group, head_cols: group * cache.head_dim, sinks: sinks.as_deref() };
    split(device, &tiles, wanted, sizes, reach, &attend, &merged)
}

/// The values of a kv head's query heads.
fn of_group(values: Option<&[f32]>, kv_head: usize, group: usize) -> Option<&[f32]> {
    values.map(|values| &values[kv_head * group..(kv_head + 1) * group])
}

/// Where split contexts come together.
struct Merged<'a> {
    out: Matrix<'a, f32>,
    group: usize,
    /// Columns of a group.
    head_cols: usize,
    sinks: Option<&'a [f32]>,
}

/// Splits contexts over threads: every chunk's result to memory, then the same merge as without the split.
fn split(
    device: &CpuDevice,
    tiles: &[Tile<'_>],
    wanted: usize,
    sizes: Sizes,
    reach: Reach,
    attend: &AttendTile<'_>,
    merged: &Merged<'_>,
) -> Result<()> {
    let longest = tiles.iter().map(|tile| tile.chunks(reach).len()).max().unwrap_or(0);
    let splits = wanted.div_ceil(tiles.len().max(1)).min(longest).max(1);
    let tile_len = longest * sizes.partial_len();
    let mut partials = Scratch::take(tiles.len() * tile_len);
    let partials = Matrix::over(&mut partials, tiles.len(), tile_len);
    device.pool.run(tiles.len() * splits, &|task| {
        let (index, part) = (task / splits, task % splits);
        let chunks = tiles[index].chunks(reach);
        let at = |part: usize| chunks.len() * part / splits;
        let part = at(part)..at(part + 1);
        if !part.is_empty() {
            let to = partials.pointer(index).wrapping_add(part.start * sizes.partial_len());
            attend(&tiles[index], chunks.start + part.start..chunks.start + part.end, Some(to));
        }
    })?;
    device.pool.run(tiles.len(), &|index| {
        let tile = &tiles[index];
        let merge = Merge {
            partials: partials.pointer(index),
            num_chunks: tile.chunks(reach).len(),
            sinks: of_group(merged.sinks, tile.kv_head, merged.group),
            sizes,
            count: tile.tokens.len(),
            out: merged.out.pointer(tile.tokens.start).wrapping_add(tile.kv_head * merged.head_cols),
            out_stride: merged.out.stride,
        };
        // SAFETY: the device has this instruction set; the partial results were written above, and the tile's part of
        // `out` is this task's alone.
        unsafe { dispatch(device.isa, merge) };
    })
}

impl Tile<'_> {
    /// Numbers of the chunks of keys that some of the queries see.
    fn chunks(&self, reach: Reach) -> Range<usize> {
        reach.first_chunk(self.position)..(self.position + self.tokens.len()).div_ceil(CHUNK_TOKENS)
    }
}

/// # Errors
/// Internal, when a length or a block leaves its tensor.
fn tiles<'a, E: Float>(args: &'a Attention<'_>, cache: &Cache<'_, E>, group: usize) -> Result<Vec<Tile<'a>>> {
    let cu_seqlens = indices(&args.batch.cu_seqlens, "attention: cu_seqlens")?;
    let context_lens = indices(&args.batch.context_lens, "attention: context_lens")?;
    let tables = Matrix::<i32>::of(&args.batch.block_tables, "attention: block_tables")?;
    let queries_per_tile = (TILE_ROWS / group).max(1);
    let mut tiles = Vec::new();
    for (s, (bounds, &context)) in cu_seqlens.windows(2).zip(context_lens).enumerate() {
        let (start, end, context) = (bounds[0] as usize, bounds[1] as usize, context as usize);
        if start == end {
            continue;
        }
        let blocks = context.div_ceil(cache.block_size);
        if end < start || end > args.q.rows() || context < end - start || blocks > tables.cols {
            return Err(Error::internal(format!(
                "attention: sequence {s} has rows {start}..{end} of {} and a context of {context} tokens in {} blocks",
                args.q.rows(),
                tables.cols
            )));
        }
        // SAFETY: tables are written by `upload` only, and calls on a device are ordered.
        let table = unsafe { &tables.row(s)[..blocks] };
        if let Some(block) = table.iter().find(|&&block| block < 0 || block as usize >= cache.num_blocks) {
            return Err(Error::internal(format!("attention: block {block} of {}", cache.num_blocks)));
        }
        for first in (start..end).step_by(queries_per_tile) {
            let tokens = first..(first + queries_per_tile).min(end);
            let position = context - (end - first);
            tiles.extend((0..cache.kv_heads).map(|kv_head| Tile { tokens: tokens.clone(), position, kv_head, table }));
        }
    }
    Ok(tiles)
}
