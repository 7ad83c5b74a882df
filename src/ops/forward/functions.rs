//! Layer norm and functions of single elements.

use super::{Forward, check, same_kind};
use crate::device::{Activation, DType, Elementwise, Feature, LayerNorm, Tensor};
use crate::error::Result;

impl Forward<'_> {
    /// `(x - mean) / deviation * weight + bias` over each row of `x [T, C]`.
    pub fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
        let out = self.activation(x.rows(), x.cols())?;
        self.layer_norm_into(&out, x, weight, bias, (x.cols(), eps))?;
        Ok(out)
    }

    /// [`Forward::layer_norm`] in place on each group of columns, with `weight` and `bias` `[1, group]` or `[1, C]`.
    pub fn head_layer_norm(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        group: usize,
        eps: f32,
    ) -> Result<()> {
        self.layer_norm_into(x, x, weight, bias, (group, eps))
    }

    fn layer_norm_into(
        &self,
        out: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        (group, eps): (usize, f32),
    ) -> Result<()> {
        let fits = group > 0 && x.cols().is_multiple_of(group) && [group, x.cols()].contains(&weight.cols());
        check(fits, "layer_norm", ("x", x), ("weight", weight))?;
        if let Some(bias) = bias {
            check(bias.cols() == weight.cols(), "layer_norm", ("weight", weight), ("bias", bias))?;
        }
        if x.rows() == 0 {
            return Ok(());
        }
        self.device.layer_norm(&LayerNorm { out, x, weight, bias, group, eps })
    }

    /// In place: `x = function(x)`.
    pub fn map(&self, x: &Tensor, function: Elementwise) -> Result<()> {
        if x.rows() == 0 {
            return Ok(());
        }
        self.device.elementwise(x, x, function)
    }

    /// `out = function(x)`, where both may be columns of larger tensors.
    pub fn apply(&self, out: &Tensor, x: &Tensor, function: Elementwise) -> Result<()> {
        check(same_kind(out, x), "apply", ("out", out), ("x", x))?;
        if x.rows() == 0 {
            return Ok(());
        }
        self.device.elementwise(out, x, function)
    }

    /// `out[t] = x[t] * table[position of t]`, with a table `[positions, 1]` F32.
    pub fn scale_by_position(&self, x: &Tensor, table: &Tensor) -> Result<Tensor> {
        if !self.device.supports(Feature::PositionFactors) {
            return Err(Feature::PositionFactors.missing());
        }
        let (positions, out) = (&self.step.positions, self.activation(x.rows(), x.cols())?);
        check(positions.cols() == x.rows(), "scale_by_position", ("x", x), ("positions", positions))?;
        let factors = self.arena.allocate(x.rows(), 1, DType::F32)?;
        if x.rows() > 0 {
            self.device.embed(&factors, table, positions, 1.0)?;
        }
        self.combine(&out, x, &factors, false)?;
        Ok(out)
    }

    /// In place: `x = act(x)`, of a feed-forward layer without a gate.
    pub fn activate(&self, x: &Tensor, activation: Activation) -> Result<()> {
        self.map(x, Elementwise::Activate(activation))
    }

    /// `out = x`.
    pub fn copy(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        self.apply(out, x, Elementwise::Scale(1.0))
    }

    /// `sum += x`.
    pub fn add(&self, sum: &Tensor, x: &Tensor) -> Result<()> {
        check(same_kind(sum, x), "add", ("sum", sum), ("x", x))?;
        if x.rows() == 0 {
            return Ok(());
        }
        self.device.add(sum, x)
    }
}
