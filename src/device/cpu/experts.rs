//! Mixture of experts: the choice, the experts' matrices row by row, and the weighted sum.

use super::CpuDevice;
use super::linear::{linear, widened};
use super::scratch::Scratch;
use super::view::Matrix;
use crate::device::{ExpertGroups, ExpertLinear, GroupScore, Route, RoutingRule, Score, Weight};
use crate::error::{Error, Result};

pub(super) fn route(device: &CpuDevice, args: &Route<'_>) -> Result<()> {
    let (ids, weights) =
        (Matrix::<i32>::of(args.ids, "route: ids")?, Matrix::<f32>::of(args.weights, "route: weights")?);
    let logits = Matrix::<f32>::of(args.logits, "route: logits")?;
    let bias = args.choice_bias.map(widened).transpose()?;
    device.pool.run(logits.rows, &|t| {
        // SAFETY: row t of each tensor is this task's alone.
        let (ids, weights, logits) = unsafe { (ids.row_mut(t), weights.row_mut(t), logits.row(t)) };
        choose(logits, bias.as_deref(), &args.rule, ids, weights);
    })
}

/// Experts and weights of one token.
fn choose(logits: &[f32], bias: Option<&[f32]>, rule: &RoutingRule, ids: &mut [i32], weights: &mut [f32]) {
    let scores: Vec<f32> = match rule.score {
        Score::Softmax => {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
            let sum: f32 = powers.iter().sum();
            powers.iter().map(|power| power / sum).collect()
        }
        Score::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
    };
    let mut choices = scores.clone();
    if let Some(bias) = bias {
        choices.iter_mut().zip(bias).for_each(|(choice, bias)| *choice += bias);
    }
    if let Some(groups) = rule.groups {
        keep_best_groups(&mut choices, groups);
    }
    for (id, weight) in ids.iter_mut().zip(weights.iter_mut()) {
        let best = largest(&choices);
        (*id, *weight) = (best as i32, scores[best]);
        choices[best] = f32::NEG_INFINITY;
    }
    let sum: f32 = if rule.renormalize { weights.iter().sum() } else { 1.0 };
    weights.iter_mut().for_each(|weight| *weight *= rule.scale / sum);
}

/// Number of the largest value, the first of equal ones.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// Takes the experts of all but the best groups out of the choice.
fn keep_best_groups(choices: &mut [f32], groups: ExpertGroups) {
    let size = choices.len() / groups.count;
    let score = |group: &[f32]| {
        let first = largest(group);
        let others = group.iter().enumerate().filter(|(i, _)| *i != first).map(|(_, value)| *value);
        match groups.score {
            GroupScore::Largest => group[first],
            GroupScore::TopTwo => group[first] + others.fold(f32::NEG_INFINITY, f32::max),
        }
    };
    let mut scores: Vec<f32> = choices.chunks(size).map(score).collect();
    let mut kept = vec![false; groups.count];
    for _ in 0..groups.kept {
        let best = largest(&scores);
        kept[best] = true;
        scores[best] = f32::NEG_INFINITY;
    }
    for (group, _) in choices.chunks_mut(size).zip(kept).filter(|(_, kept)| !kept) {
        group.fill(f32::NEG_INFINITY);
    }
}

pub(super) fn expert_linear(device: &CpuDevice, args: &ExpertLinear<'_>) -> Result<()> {
    let Weight::Dense(weight) = args.weight;
    let (out, x) = (Matrix::<f32>::of(args.out, "expert_linear: out")?, Matrix::<f32>::of(args.x, "expert_linear: x")?);
    let features = weight.rows() / args.num_experts;
    let repeats = out.rows / x.rows.max(1);
    for (expert, rows) in rows_of_experts(args)?.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let mut inputs = Scratch::take(rows.len() * x.cols);
        let mut outputs = Scratch::take(rows.len() * features);
        for (to, &row) in inputs.chunks_exact_mut(x.cols).zip(&rows) {
            // SAFETY: nobody writes to the inputs during the call, and rows were counted from the ids.
            to.copy_from_slice(unsafe { x.row(row / repeats) });
        }
        let weight = weight.row_range(expert * features, features);
        let bias = args.bias.map(|bias| bias.row_range(expert, 1));
        let matrices =
            (Matrix::over(&mut outputs, rows.len(), features), Matrix::over(&mut inputs, rows.len(), x.cols));
        linear(device, matrices.0, matrices.1, &weight, bias.as_ref())?;
        for (from, &row) in outputs.chunks_exact(features).zip(&rows) {
            // SAFETY: nobody else uses `out` during the call.
            unsafe { out.row_mut(row) }.copy_from_slice(from);
        }
    }
    Ok(())
}

/// For each expert the rows of the output that it computes.
///
/// # Errors
/// Internal, when there is no such expert.
fn rows_of_experts(args: &ExpertLinear<'_>) -> Result<Vec<Vec<usize>>> {
    let ids = Matrix::<i32>::of(args.ids, "expert_linear: ids")?;
    let mut rows = vec![Vec::new(); args.num_experts];
    for t in 0..ids.rows {
        // SAFETY: ids were written by an earlier call, and calls on a device are ordered.
        for (j, &id) in unsafe { ids.row(t) }.iter().enumerate() {
            let expert = usize::try_from(id).ok().and_then(|id| rows.get_mut(id));
            let expert = expert.ok_or_else(|| Error::internal(format!("expert {id} of {}", args.num_experts)))?;
            expert.push(t * ids.cols + j);
        }
    }
    Ok(rows)
}

pub(super) fn combine(
    device: &CpuDevice,
    out: Matrix<'_, f32>,
    x: Matrix<'_, f32>,
    weights: Matrix<'_, f32>,
    accumulate: bool,
) -> Result<()> {
    device.pool.run(out.rows, &|t| {
        // SAFETY: row t of the output is this task's alone, and nobody writes to the others.
        let (out, weights) = unsafe { (out.row_mut(t), weights.row(t)) };
        if !accumulate {
            out.fill(0.0);
        }
        for (j, weight) in weights.iter().enumerate() {
            // SAFETY: as above.
            let x = unsafe { x.row(t * weights.len() + j) };
            out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
        }
    })
}
