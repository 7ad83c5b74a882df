//! Linear layers and norms with their parameters.

use crate::device::{Activation, Tensor, Weight};
use crate::error::Result;
use crate::model::{ModelConfig, NormKind, Piece, VectorKind, WeightLoader};
use crate::ops::Forward;
use std::ops::Range;

pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

/// A named layer of a checkpoint, or some of its output features.
pub(super) struct Part {
    pub(super) name: String,
    /// Output features of the stored layer.
    pub(super) rows: usize,
    /// Those that are taken, in order.
    pub(super) ranges: Vec<Range<usize>>,
}

impl Part {
    pub(super) fn whole(name: String, rows: usize) -> Self {
        Self { name, rows, ranges: vec![Range { start: 0, end: rows }] }
    }
}

impl Linear {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        parts: &[Part],
        cols: usize,
        (bias, transposed): (bool, bool),
    ) -> Result<Self> {
        let matrix = |part: &Part| {
            let name = format!("{}.weight", part.name);
            let whole = match transposed {
                true => Piece::transposed(name, part.rows, cols),
                false => Piece::matrix(name, part.rows, cols),
            };
            whole.select(&part.ranges)
        };
        let vector = |part: &Part| Piece::vector(format!("{}.bias", part.name), part.rows).select(&part.ranges);
        let weight = loader.matrix(&parts.iter().map(matrix).collect::<Vec<_>>(), cols)?;
        let bias = bias.then(|| loader.vector(&parts.iter().map(vector).collect::<Vec<_>>(), VectorKind::Bias));
        Ok(Self { weight, bias: bias.transpose()? })
    }

    pub(super) fn forward(&self, cx: &Forward<'_>, x: &Tensor) -> Result<Tensor> {
        cx.linear(x, &self.weight, self.bias.as_ref())
    }

    /// The activation of its gates times its other half.
    pub(super) fn forward_gated(&self, cx: &Forward<'_>, x: &Tensor, activation: Activation) -> Result<Tensor> {
        cx.gated_linear(x, &self.weight, self.bias.as_ref(), activation)
    }

    /// Into `out`, summed over the ranks.
    pub(super) fn forward_reduce(&self, cx: &Forward<'_>, out: &Tensor, x: &Tensor) -> Result<()> {
        cx.linear_reduce(out, x, &self.weight, self.bias.as_ref())
    }

    /// In F32.
    pub(super) fn logits(&self, cx: &Forward<'_>, x: &Tensor) -> Result<Tensor> {
        cx.logits(x, &self.weight, self.bias.as_ref())
    }
}

/// A norm over rows, or over groups of columns of them.
pub(super) struct Norm {
    layer: bool,
    weight: Tensor,
    bias: Option<Tensor>,
    /// Columns that are normalised together.
    group: usize,
    eps: f32,
}

impl Norm {
    /// Of hidden states.
    pub(super) fn load(config: &ModelConfig, loader: &mut WeightLoader<'_>, name: &str) -> Result<Self> {
        let size = config.hidden_size;
        let has_bias = matches!(config.norm, NormKind::Layer { bias: true } | NormKind::LayerPlusOne);
        let bias = has_bias.then(|| Piece::vector(format!("{name}.bias"), size));
        Self::of(config, loader, &[Piece::vector(format!("{name}.weight"), size)], bias, size)
    }

    /// Of groups of columns.
    pub(super) fn of(
        config: &ModelConfig,
        loader: &mut WeightLoader<'_>,
        weights: &[Piece],
        bias: Option<Piece>,
        group: usize,
    ) -> Result<Self> {
        let (layer, kind) = match config.norm {
            NormKind::Rms => (false, VectorKind::Norm),
            NormKind::RmsPlusOne => (false, VectorKind::NormPlusOne),
            NormKind::Layer { .. } => (true, VectorKind::Norm),
            NormKind::LayerPlusOne => (true, VectorKind::NormPlusOne),
        };
        let weight = loader.vector(weights, kind)?;
        let bias = bias.map(|bias| loader.vector(&[bias], VectorKind::Bias)).transpose()?;
        Ok(Self { layer, weight, bias, group, eps: config.norm_eps })
    }

    /// A norm of `size` columns whose weight is 1 and in no checkpoint.
    pub(super) fn without_weight(config: &ModelConfig, loader: &mut WeightLoader<'_>, size: usize) -> Result<Self> {
        let weight = loader.constants(&vec![1.0; size])?;
        Ok(Self { layer: false, weight, bias: None, group: size, eps: config.norm_eps })
    }

    pub(super) fn with_eps(self, eps: f32) -> Self {
        Self { eps, ..self }
    }

    pub(super) fn forward(&self, cx: &Forward<'_>, x: &Tensor) -> Result<Tensor> {
        match self.layer {
            true => cx.layer_norm(x, &self.weight, self.bias.as_ref(), self.eps),
            false => cx.rms_norm(x, &self.weight, self.eps),
        }
    }

    /// `residual += x`, then the norm of it.
    pub(super) fn forward_add(&self, cx: &Forward<'_>, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        if !self.layer {
            return cx.add_rms_norm(residual, x, &self.weight, self.eps);
        }
        cx.add(residual, x)?;
        self.forward(cx, residual)
    }

    pub(super) fn in_place(&self, cx: &Forward<'_>, x: &Tensor) -> Result<()> {
        match self.layer {
            true => cx.head_layer_norm(x, &self.weight, self.bias.as_ref(), self.group, self.eps),
            false => cx.head_rms_norm(x, &self.weight, self.eps),
        }
    }
}
