//! Attention with its projections.

use super::latent::LatentAttention;
use super::names::QkvNames;
use super::parts::{Linear, Norm, Part};
use crate::device::{Elementwise, RopeTable, Tensor};
use crate::error::{Error, Result};
use crate::model::{HeadNorm, LayerRope, ModelConfig, Piece, VectorKind, WeightLoader};
use crate::ops::{Forward, LayerAttention};
use std::ops::Range;

pub(super) enum Attention {
    Heads(Box<Heads>),
    Latent(Box<LatentAttention>),
}

/// Every head has queries of its own, every kv head keys and values.
pub(super) struct Heads {
    qkv: Linear,
    head_norms: Option<(Norm, Norm)>,
    sinks: Option<Tensor>,
    output: Linear,
}

/// What the attention of all layers shares.
pub(super) struct Positions {
    pub(super) global: Option<RopeTable>,
    pub(super) local: Option<RopeTable>,
    /// Slopes of linear biases.
    pub(super) slopes: Option<Tensor>,
    /// `[positions, 1]` F32: factors of queries.
    pub(super) query_factors: Option<Tensor>,
}

impl Attention {
    pub(super) fn load(
        config: &ModelConfig,
        loader: &mut WeightLoader<'_>,
        prefix: &str,
        index: usize,
    ) -> Result<Self> {
        Ok(match config.latent {
            Some(sizes) => Self::Latent(Box::new(LatentAttention::load(config, sizes, loader, prefix)?)),
            None => Self::Heads(Box::new(Heads::load(config, loader, prefix, index)?)),
        })
    }

    /// The layer behind [`Attention::forward`].
    pub(super) fn output(&self) -> &Linear {
        match self {
            Self::Heads(heads) => &heads.output,
            Self::Latent(latent) => latent.output(),
        }
    }

    /// Attended values of all heads, before the output layer.
    pub(super) fn forward(
        &self,
        cx: &Forward<'_>,
        config: &ModelConfig,
        index: usize,
        positions: &Positions,
        x: &Tensor,
    ) -> Result<Tensor> {
        let args = LayerAttention {
            layer: index,
            num_heads: config.num_heads,
            rope: None,
            scale: config.attention_scale,
            window: config.windows[index],
            sink_tokens: config.sink_tokens[index],
            chunk: config.chunks[index],
            softcap: config.attention_softcap,
            sinks: None,
            alibi: positions.slopes.as_ref(),
        };
        match self {
            Self::Heads(heads) => heads.forward(cx, config, &args, positions, x),
            Self::Latent(latent) => latent.forward(cx, &args, positions, x),
        }
    }
}

impl Heads {
    fn load(config: &ModelConfig, loader: &mut WeightLoader<'_>, prefix: &str, index: usize) -> Result<Self> {
        let names = &config.names;
        let dim = |heads: usize| {
            let dim = heads.checked_mul(config.head_dim);
            dim.ok_or_else(|| Error::invalid(format!("{heads} heads of {} elements overflow", config.head_dim)))
        };
        let (query_dim, kv_dim) = (dim(config.num_heads)?, dim(config.num_kv_heads)?);
        let parts = qkv_parts(config, prefix, (query_dim, kv_dim));
        let qkv = Linear::load(loader, &parts, config.hidden_size, (config.qkv_bias, names.transposed))?;
        let norm = |loader: &mut WeightLoader<'_>, name: &str, heads: usize| {
            head_norm(config, loader, &format!("{prefix}.{name}"), heads)
        };
        let head_norms = match config.head_norm {
            Some(HeadNorm::Weightless) if config.layer_ropes[index] == LayerRope::None => None,
            Some(HeadNorm::Weightless) => {
                let norm = |loader: &mut WeightLoader<'_>| Norm::without_weight(config, loader, config.head_dim);
                Some((norm(loader)?, norm(loader)?))
            }
            Some(_) => Some((
                norm(loader, names.query_norm, config.num_heads)?,
                norm(loader, names.key_norm, config.num_kv_heads)?,
            )),
            None => None,
        };
        let sinks = match config.attention_sinks {
            true => {
                let piece = Piece::vector(format!("{prefix}.{}", names.sinks), config.num_heads);
                Some(loader.vector(&[piece], VectorKind::PerHead)?)
            }
            false => None,
        };
        let output = [Part::whole(format!("{prefix}.{}", names.output), config.hidden_size)];
        let output = Linear::load(loader, &output, query_dim, (config.output_bias, names.transposed))?;
        Ok(Self { qkv, head_norms, sinks, output })
    }

    /// Attended values `[T, H * D]`, before the output layer.
    fn forward(
        &self,
        cx: &Forward<'_>,
        config: &ModelConfig,
        args: &LayerAttention<'_>,
        positions: &Positions,
        x: &Tensor,
    ) -> Result<Tensor> {
        let (query_dim, kv_dim) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let qkv = self.qkv.forward(cx, x)?;
        if let Some(bound) = config.qkv_clip {
            cx.map(&qkv, Elementwise::Clamp(bound))?;
        }
        let mut query = qkv.columns(0, query_dim);
        let key = qkv.columns(query_dim, kv_dim);
        let value = qkv.columns(query_dim + kv_dim, kv_dim);
        if let Some((of_query, of_key)) = &self.head_norms {
            of_query.in_place(cx, &query)?;
            of_key.in_place(cx, &key)?;
        }
        let rope = match config.layer_ropes[args.layer] {
            LayerRope::None => None,
            LayerRope::Global => positions.global.as_ref(),
            LayerRope::Local => positions.local.as_ref(),
        };
        let grows = rope.is_none() || config.query_growth.is_some_and(|growth| growth.rotated);
        if let Some(factors) = positions.query_factors.as_ref().filter(|_| grows) {
            query = cx.scale_by_position(&query, factors)?;
        }
        let args = LayerAttention { rope, sinks: self.sinks.as_ref(), ..*args };
        let sink_query = cx.rope_kv_write(&query, &key, &value, &args)?;
        cx.attention(&query, sink_query.as_ref(), &args)
    }
}

/// Where queries, keys and values are, in this order.
fn qkv_parts(config: &ModelConfig, prefix: &str, (query_dim, kv_dim): (usize, usize)) -> Vec<Part> {
    let (dim, kv_heads, group) = (config.head_dim, config.num_kv_heads, config.num_heads / config.num_kv_heads);
    let fused = |name: &str, ranges: Vec<Range<usize>>| {
        vec![Part { name: format!("{prefix}.{name}"), rows: query_dim + 2 * kv_dim, ranges }]
    };
    match config.names.qkv {
        QkvNames::Separate { query, key, value } => {
            let sizes = [(query, query_dim), (key, kv_dim), (value, kv_dim)];
            sizes.map(|(name, rows)| Part::whole(format!("{prefix}.{name}"), rows)).into()
        }
        QkvNames::Concatenated(name) => vec![Part::whole(format!("{prefix}.{name}"), query_dim + 2 * kv_dim)],
        QkvNames::PerHead(name) | QkvNames::PerGroup(name) => {
            let start = |kv_head: usize, slot: usize| (kv_head * (group + 2) + slot) * dim;
            let slots = [(0, group), (group, 1), (group + 1, 1)];
            let ranges = slots.into_iter().flat_map(|(slot, count)| {
                (0..kv_heads).map(move |kv_head| start(kv_head, slot)..start(kv_head, slot + count))
            });
            fused(name, ranges.collect())
        }
    }
}

fn head_norm(config: &ModelConfig, loader: &mut WeightLoader<'_>, name: &str, heads: usize) -> Result<Norm> {
    let dim = config.head_dim;
    let weight = format!("{name}.weight");
    let (weights, group) = match config.head_norm {
        Some(HeadNorm::PerHead) => {
            let whole = Piece::vector(weight, heads * dim);
            (vec![Piece { shape: vec![heads, dim], ..whole }], dim)
        }
        Some(HeadNorm::PerHeadListed) => {
            ((0..heads).map(|head| Piece::vector(format!("{name}.norms.{head}.weight"), dim)).collect(), dim)
        }
        Some(HeadNorm::FullWidth) => (vec![Piece::vector(weight, heads * dim)], heads * dim),
        _ => (vec![Piece::vector(weight, dim)], dim),
    };
    Norm::of(config, loader, &weights, None, group)
}
