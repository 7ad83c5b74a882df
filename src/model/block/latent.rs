//! Attention over compressed keys and values (MLA): the cache holds what all heads share.
//!
//! ```text
//! cache of a token   [rotated key P | latent L]                         one head, keys and values in one
//! query of a head    [rotated query P | query N · key_up L]             scores = query · cached
//! output of a head   (weighted sum of cached)[P..] · value_upᵀ -> V
//! ```
//!
//! Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1, with the up-projections absorbed as described there.

use super::attention::Positions;
use super::parts::{Linear, Norm, Part};
use crate::device::{Elementwise, Tensor, Weight};
use crate::error::Result;
use crate::model::{Latent, ModelConfig, Piece, View, WeightLoader};
use crate::ops::{Forward, LayerAttention};

/// The eps of both norms, whatever that of the others.
const NORM_EPS: f32 = 1e-6;

pub(super) struct LatentAttention {
    sizes: Latent,
    /// `[query latent | rotated key | latent]`, the first if there is one.
    down: Linear,
    query_norm: Option<Norm>,
    /// `[N | P]` of each head.
    query: Linear,
    latent_norm: Norm,
    /// `[L, N]` of each head.
    key_up: Vec<Weight>,
    /// `[V, L]` of each head.
    value_up: Vec<Weight>,
    output: Linear,
}

impl LatentAttention {
    pub(super) fn load(
        config: &ModelConfig,
        sizes: Latent,
        loader: &mut WeightLoader<'_>,
        prefix: &str,
    ) -> Result<Self> {
        let Latent { query_rank, rank, plain_dim, rotated_dim, value_dim } = sizes;
        let (hidden, heads) = (config.hidden_size, config.num_heads);
        let name = |name: &str| format!("{prefix}.self_attn.{name}");
        let mut down: Vec<_> = query_rank.iter().map(|&rank| Part::whole(name("q_a_proj"), rank)).collect();
        let ranges = vec![rank..rank + rotated_dim, 0..rank];
        down.push(Part { name: name("kv_a_proj_with_mqa"), rows: rank + rotated_dim, ranges });
        let down = Linear::load(loader, &down, hidden, (config.qkv_bias, false))?;
        let norm = |loader: &mut WeightLoader<'_>, part: &str, size: usize| {
            let weight = Piece::vector(format!("{}.weight", name(part)), size);
            Norm::of(config, loader, &[weight], None, size).map(|norm| norm.with_eps(NORM_EPS))
        };
        let query_norm = query_rank.map(|rank| norm(loader, "q_a_layernorm", rank)).transpose()?;
        let part = if query_rank.is_some() { "q_b_proj" } else { "q_proj" };
        let query = [Part::whole(name(part), heads * (plain_dim + rotated_dim))];
        let query = Linear::load(loader, &query, query_rank.unwrap_or(hidden), (false, false))?;
        let latent_norm = norm(loader, "kv_a_layernorm", rank)?;
        let apart = loader.source().contains(&name("k_b_proj.weight"));
        let (key_up, value_up) = if apart {
            let stacked = |name: String, rows: usize, cols: usize| Piece {
                shape: vec![heads, rows, cols],
                ..Piece::matrix(name, heads * rows, cols)
            };
            (stacked(name("k_b_proj.weight"), rank, plain_dim), stacked(name("v_b_proj.weight"), value_dim, rank))
        } else {
            up_pieces(name("kv_b_proj.weight"), heads, sizes)
        };
        let (key_up, value_up) = (loader.table(&[key_up], plain_dim)?, loader.table(&[value_up], rank)?);
        let per_head = |all: &Tensor, rows: usize| {
            (0..heads).map(|head| Weight::Dense(all.row_range(head * rows, rows))).collect::<Vec<_>>()
        };
        let output = [Part::whole(name("o_proj"), hidden)];
        let output = Linear::load(loader, &output, heads * value_dim, (config.output_bias, false))?;
        let (key_up, value_up) = (per_head(&key_up, rank), per_head(&value_up, value_dim));
        Ok(Self { sizes, down, query_norm, query, latent_norm, key_up, value_up, output })
    }

    pub(super) fn output(&self) -> &Linear {
        &self.output
    }

    /// Attended values `[T, H * V]`, before the output layer.
    pub(super) fn forward(
        &self,
        cx: &Forward<'_>,
        args: &LayerAttention<'_>,
        positions: &Positions,
        x: &Tensor,
    ) -> Result<Tensor> {
        let Latent { query_rank, rank, plain_dim, rotated_dim, value_dim } = self.sizes;
        let (rows, heads, cached) = (x.rows(), args.num_heads, rotated_dim + rank);
        let down = self.down.forward(cx, x)?;
        let key = down.columns(query_rank.unwrap_or(0), cached);
        self.latent_norm.in_place(cx, &key.columns(rotated_dim, rank))?;
        let query = match (&self.query_norm, query_rank) {
            (Some(norm), Some(rank)) => {
                let compressed = down.columns(0, rank);
                norm.in_place(cx, &compressed)?;
                self.query.forward(cx, &compressed)?
            }
            _ => self.query.forward(cx, x)?,
        };
        let full = cx.activation(rows, heads * cached)?;
        for (head, key_up) in self.key_up.iter().enumerate() {
            let plain = query.columns(head * (plain_dim + rotated_dim), plain_dim);
            cx.project(&full.columns(head * cached + rotated_dim, rank), &plain, key_up)?;
        }
        let rotated = query.reshaped(rows * heads, plain_dim + rotated_dim)?.columns(plain_dim, rotated_dim);
        let to = full.reshaped(rows * heads, cached)?.columns(0, rotated_dim);
        cx.apply(&to, &rotated, Elementwise::Scale(1.0))?;
        let args = LayerAttention { rope: positions.global.as_ref(), ..*args };
        let sink_query = cx.rope_kv_write(&full, &key, &key, &args)?;
        let attended = cx.attention(&full, sink_query.as_ref(), &args)?;
        let out = cx.activation(rows, heads * value_dim)?;
        for (head, value_up) in self.value_up.iter().enumerate() {
            let latent = attended.columns(head * cached + rotated_dim, rank);
            cx.project(&out.columns(head * value_dim, value_dim), &latent, value_up)?;
        }
        Ok(out)
    }
}

/// The stored `[H * (N + V), L]` as `[L, N]` and as `[V, L]` of every head.
fn up_pieces(name: String, heads: usize, sizes: Latent) -> (Piece, Piece) {
    let Latent { rank, plain_dim, value_dim, .. } = sizes;
    let both = plain_dim + value_dim;
    let start = |head: usize| head * both * rank;
    let key = |head: usize| View { offset: start(head), rows: rank, row_stride: 1, col_stride: rank };
    let value =
        |head: usize| View { offset: start(head) + plain_dim * rank, rows: value_dim, row_stride: rank, col_stride: 1 };
    let piece = |views: Vec<View>| Piece { name: name.clone(), shape: vec![heads * both, rank], views };
    (piece((0..heads).map(key).collect()), piece((0..heads).map(value).collect()))
}
