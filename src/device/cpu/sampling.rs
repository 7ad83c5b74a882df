//! Sampling of whole batches, a row a task, with the arithmetic of [`crate::decode::sample`].

use super::CpuDevice;
use super::view::{Matrix, indices};
use crate::decode::SamplingParams;
use crate::decode::logits::scale;
use crate::decode::sample::{SampleScratch, choose};
use crate::device::{RowMode, RowSample, RowSampling, Sample, Tensor};
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
    let params = Matrix::<i32>::of(args.params, "sample: params")?;
    let out = Matrix::<i32>::of(args.out, "sample: out")?;
    let sampled = Matrix::<i32>::of(args.sampled, "sample: sampled")?;
    let mut rows = Vec::with_capacity(logits.rows);
    for r in 0..logits.rows.min(params.rows) {
        // SAFETY: the row exists; parameters are written by `upload` only, and calls on a device are ordered.
        let row = RowSampling::decode(unsafe { params.row(r) })?;
        if row.slot as usize >= sampled.cols {
            return Err(Error::internal(format!("sampled token {} of {}", row.slot, sampled.cols)));
        }
        rows.push(row);
    }
    device.pool.run(rows.len(), &|r| {
        let row = &rows[r];
        if row.mode == RowMode::Skip {
            return;
        }
        // SAFETY: nobody writes to the logits meanwhile.
        let chosen = choose_row(unsafe { logits.row(r) }, row);
        // SAFETY: row r of `out` is this task's alone, and so is the entry, which was checked.
        unsafe {
            out.row_mut(r).copy_from_slice(&chosen.encode());
            *sampled.pointer(0).add(row.slot as usize) = chosen.token();
        }
    })
}

fn choose_row(logits: &[f32], row: &RowSampling) -> RowSample {
    let params = SamplingParams {
        temperature: if row.mode == RowMode::Greedy { 0.0 } else { 1.0 },
        top_k: row.top_k,
        top_p: Some(row.top_p),
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
