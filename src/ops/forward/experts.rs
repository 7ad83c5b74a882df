//! Mixture of experts.

use super::{Forward, check};
use crate::device::{DType, ExpertLinear, Route, RoutingRule, Tensor, Weight};
use crate::error::Result;

/// The experts of every token: `[T, k]`.
pub struct Routed {
    /// I32.
    pub ids: Tensor,
    /// F32.
    pub weights: Tensor,
}

impl Forward<'_> {
    /// The `k` experts of every token from `logits [T, E]` F32; `choice_bias [1, E]` counts for the choice only.
    pub fn route(&self, logits: &Tensor, k: usize, choice_bias: Option<&Tensor>, rule: RoutingRule) -> Result<Routed> {
        check(k <= logits.cols() && logits.dtype() == DType::F32, "route", ("logits", logits), ("logits", logits))?;
        if let Some(bias) = choice_bias {
            check(bias.cols() == logits.cols(), "route", ("logits", logits), ("bias", bias))?;
        }
        let ids = self.arena.allocate(logits.rows(), k, DType::I32)?;
        let weights = self.arena.allocate(logits.rows(), k, DType::F32)?;
        if logits.rows() > 0 {
            self.device.route(&Route { ids: &ids, weights: &weights, logits, choice_bias, rule })?;
        }
        Ok(Routed { ids, weights })
    }

    /// `[T * k, N]` from `x [T, K]` or `[T * k, K]` and the matrices `weight [E * N, K]`, `bias [E, N]` of the chosen
    /// experts.
    pub fn expert_linear(
        &self,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
        ids: &Tensor,
        num_experts: usize,
    ) -> Result<Tensor> {
        let Weight::Dense(matrix) = weight;
        let rows = ids.rows() * ids.cols();
        let fits = weight.in_features() == x.cols() && weight.out_features().is_multiple_of(num_experts);
        check(fits, "expert_linear", ("x", x), ("weight", matrix))?;
        check(x.rows() == ids.rows() || x.rows() == rows, "expert_linear", ("x", x), ("ids", ids))?;
        let features = weight.out_features() / num_experts;
        if let Some(bias) = bias {
            let fits = bias.rows() == num_experts && bias.cols() == features;
            check(fits, "expert_linear", ("weight", matrix), ("bias", bias))?;
        }
        let out = self.activation(rows, features)?;
        if rows > 0 {
            self.device.expert_linear(&ExpertLinear { out: &out, x, weight, bias, ids, num_experts })?;
        }
        Ok(out)
    }

    /// `out[t] = Σⱼ weights[t, j] * x[t * k + j]`, added to `out` if `accumulate`.
    pub fn combine(&self, out: &Tensor, x: &Tensor, weights: &Tensor, accumulate: bool) -> Result<()> {
        check(out.cols() == x.cols() && out.rows() == weights.rows(), "combine", ("out", out), ("x", x))?;
        check(x.rows() == weights.rows() * weights.cols(), "combine", ("x", x), ("weights", weights))?;
        if out.rows() == 0 {
            return Ok(());
        }
        self.device.combine(out, x, weights, accumulate)
    }
}
