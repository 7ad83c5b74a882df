//! Sampling of whole batches, a row a task, with the arithmetic of [`crate::decode::sample`].

use super::CpuDevice;
use super::view::{Matrix, indices};
use crate::decode::SamplingParams;
use crate::decode::logits::scale;
use crate::decode::sample::{SampleScratch, choose, most_likely};
use crate::device::{RowMode, RowSample, RowSampling, Sample, Tensor, TopTokens};
use crate::error::{Error, Result};
use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<(Vec<f32>, SampleScratch)> = RefCell::default();
}

pub(super) fn resolve_tokens(tokens: &Tensor, sampled: &Tensor) -> Result<()> {
    let sampled = indices(sampled, "resolve_tokens: sampled")?;
    let tokens = Matrix::<i32>::of(tokens, "resolve_tokens: tokens")?;
    if tokens.rows == 0 {
        return Ok(());
    }
    // SAFETY: calls on a device are ordered: nobody else uses the tokens now.
    for token in unsafe { tokens.row_mut(0) }.iter_mut().filter(|token| **token < 0) {
        let slot = (-1 - i64::from(*token)) as usize;
        *token = *sampled.get(slot).ok_or_else(|| {
            Error::internal(format!("token {token} refers to sampled token {slot} of {}", sampled.len()))
        })?;
    }
    Ok(())
}

pub(super) fn sample(device: &CpuDevice, args: &Sample<'_>) -> Result<()> {
    let logits = Matrix::<f32>::of(args.logits, "sample: logits")?;
    let edited = Matrix::<f32>::of(args.edited.unwrap_or(args.logits), "sample: edited")?;
    let params = Matrix::<i32>::of(args.params, "sample: params")?;
    let out = Matrix::<i32>::of(args.out, "sample: out")?;
    let sampled = Matrix::<i32>::of(args.sampled, "sample: sampled")?;
    let rows = decode_rows(&params)?;
    if let Some(row) = rows.iter().find(|row| row.slot as usize >= sampled.cols) {
        return Err(Error::internal(format!("sampled token {} of {}", row.slot, sampled.cols)));
    }
    device.pool.run(rows.len(), &|r| {
        let row = &rows[r];
        if row.mode == RowMode::Skip {
            return;
        }
        let logits = if row.edited { edited } else { logits };
        // SAFETY: nobody writes to the logits meanwhile.
        let chosen = choose_row(unsafe { logits.row(r) }, row);
        // SAFETY: row r of `out` is this task's alone, and so is the entry, which was checked.
        unsafe {
            out.row_mut(r).copy_from_slice(&chosen.encode());
            *sampled.pointer(0).add(row.slot as usize) = chosen.token();
        }
    })
}

fn decode_rows(params: &Matrix<i32>) -> Result<Vec<RowSampling>> {
    // SAFETY: the row exists; parameters are written by `upload` only, and calls on a device are ordered.
    (0..params.rows).map(|r| RowSampling::decode(unsafe { params.row(r) })).collect()
}

pub(super) fn top_tokens(device: &CpuDevice, args: &TopTokens<'_>) -> Result<()> {
    let logits = Matrix::<f32>::of(args.logits, "top_tokens: logits")?;
    let edited = Matrix::<f32>::of(args.edited.unwrap_or(args.logits), "top_tokens: edited")?;
    let ids = Matrix::<i32>::of(args.ids, "top_tokens: ids")?;
    let log_probs = Matrix::<f32>::of(args.log_probs, "top_tokens: log_probs")?;
    let rows = match args.params {
        Some(params) => Some(decode_rows(&Matrix::of(params, "top_tokens: params")?)?),
        None => None,
    };
    device.pool.run(logits.rows, &|r| {
        let row = rows.as_ref().map(|rows| rows[r]);
        if row.is_some_and(|row| row.mode == RowMode::Skip) {
            return;
        }
        let logits = if row.is_some_and(|row| row.edited) { edited } else { logits };
        // SAFETY: nobody writes to the logits meanwhile, and row r of the results is this task's alone.
        let (logits, ids, log_probs) = unsafe { (logits.row(r), ids.row_mut(r), log_probs.row_mut(r)) };
        ids.fill(-1);
        log_probs.fill(f32::NEG_INFINITY);
        let found = SCRATCH.with_borrow_mut(|(scaled, scratch)| {
            scaled.clear();
            scaled.extend_from_slice(logits);
            scale(scaled, row.map_or(1.0, |row| row.inverse_temperature));
            most_likely(scaled, ids.len(), scratch)
        });
        // A row that nothing can be chosen from has no tokens.
        for (place, (id, log_prob)) in found.unwrap_or_default().into_iter().enumerate() {
            (ids[place], log_probs[place]) = (id, log_prob);
        }
    })
}

fn choose_row(logits: &[f32], row: &RowSampling) -> RowSample {
    let params = SamplingParams {
        temperature: if row.mode == RowMode::Greedy { 0.0 } else { 1.0 },
        top_k: row.top_k,
        top_p: Some(row.top_p),
        min_p: row.min_p,
        typical_p: row.typical_p,
        seed: row.seed,
        log_probs: row.log_probs,
        ..Default::default()
    };
    SCRATCH.with_borrow_mut(|(scaled, scratch)| {
        scaled.clear();
        scaled.extend_from_slice(logits);
        scale(scaled, row.inverse_temperature);
        RowSample(choose(scaled, &params, row.position as usize, scratch))
    })
}
