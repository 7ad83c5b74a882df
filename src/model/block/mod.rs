//! The decoder block that the families share, with its knobs in [`ModelConfig`].

mod attention;
mod latent;
mod mlp;
mod names;
mod parts;

pub use names::{MlpNames, QkvNames, TensorNames};

use super::{LayerRope, Model, ModelConfig, Piece, WeightLoader};
use crate::device::{DType, Elementwise, Tensor, Weight};
use crate::error::Result;
use crate::ops::Forward;
use attention::{Attention, Positions};
use half::{bf16, f16};
use mlp::Mlp;
use parts::{Linear, Norm, Part};

/// A decoder-only model.
pub struct Decoder {
    config: ModelConfig,
    embedding: Tensor,
    learned_positions: Option<Tensor>,
    embedding_norm: Option<Norm>,
    layers: Vec<Layer>,
    /// Into and out of the hidden size, where embeddings have another one.
    projections: Option<(Linear, Linear)>,
    final_norm: Option<Norm>,
    head: Weight,
    head_bias: Option<Tensor>,
    positions: Positions,
}

struct Layer {
    attention_norm: Option<Norm>,
    attention: Attention,
    attention_post_norm: Option<Norm>,
    mlp_norm: Option<Norm>,
    mlp: Mlp,
    mlp_post_norm: Option<Norm>,
}

impl Decoder {
    /// Asks the loader for every tensor.
    pub fn load(mut config: ModelConfig, loader: &mut WeightLoader<'_>, max_seq_len: usize) -> Result<Self> {
        let names = config.names;
        let embedding_name = format!("{}.weight", names.embedding);
        // The file is the truth: configurations forget padding rows and added tokens.
        config.vocab_size = loader.source().rows(&embedding_name)?.unwrap_or(config.vocab_size);
        if config.round_embedding_scale {
            config.embedding_scale = rounded(config.embedding_scale, loader.matrix_dtype());
        }
        // A chunk that holds the longest sequence is none.
        config.chunks.iter_mut().for_each(|chunk| *chunk = chunk.filter(|&chunk| chunk < max_seq_len));
        let (hidden, vocab, size) = (config.hidden_size, config.vocab_size, config.embedding_size());
        let embedding = loader.table(&[Piece::matrix(&embedding_name, vocab, size)], size)?;
        let projections = match config.projected_embedding {
            Some(size) => {
                let (into, out_of) = names.projections;
                let load = |loader: &mut WeightLoader<'_>, name: &str, rows: usize, cols: usize| {
                    Linear::load(loader, &[Part::whole(name.to_owned(), rows)], cols, (false, false))
                };
                Some((load(loader, into, hidden, size)?, load(loader, out_of, size, hidden)?))
            }
            None => None,
        };
        let learned_positions = match config.position_offset {
            Some(offset) => {
                let table = Piece::matrix(format!("{}.weight", names.positions), config.max_positions + offset, hidden);
                Some(loader.table(&[table], hidden)?.row_range(offset, config.max_positions))
            }
            None => None,
        };
        let embedding_norm = names.embedding_norm.map(|name| Norm::load(&config, loader, name)).transpose()?;
        let layers = (0..config.num_layers).map(|index| Layer::load(&config, loader, index)).collect::<Result<_>>()?;
        let final_norm = names.final_norm.map(|name| Norm::load(&config, loader, name)).transpose()?;
        let head = load_head(&config, loader, &embedding, &embedding_name)?;
        let head_bias = config.head_bias.then(|| Piece::vector(format!("{}.bias", names.head), vocab));
        let head_bias = head_bias.map(|bias| loader.vector(&[bias], super::VectorKind::Bias)).transpose()?;
        let positions = load_positions(&config, loader, max_seq_len)?;
        Ok(Self {
            config,
            embedding,
            learned_positions,
            embedding_norm,
            layers,
            projections,
            final_norm,
            head,
            head_bias,
            positions,
        })
    }

    /// The configuration with the sizes found in the checkpoint.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, cx: &Forward<'_>) -> Result<Tensor> {
        let mut x = cx.embed(&self.embedding, self.config.embedding_scale)?;
        if let Some((into, _)) = &self.projections {
            x = into.forward(cx, &x)?;
        }
        if let Some(table) = &self.learned_positions {
            cx.add(&x, &cx.embed_positions(table)?)?;
        }
        match &self.embedding_norm {
            Some(norm) => norm.forward(cx, &x),
            None => Ok(x),
        }
    }

    /// One layer: `residual` and `delta`, whose sum is the hidden state, are replaced by those behind the layer.
    fn layer(&self, cx: &Forward<'_>, index: usize, residual: &Tensor, delta: &Tensor) -> Result<()> {
        let _scope = cx.scope();
        let layer = &self.layers[index];
        if self.config.norm_behind_sum {
            return self.layer_with_norms_behind(cx, index, residual, delta);
        }
        let added = (index > 0).then_some(delta);
        let x = input(cx, layer.attention_norm.as_ref(), residual, added)?;
        let attended = layer.attention.forward(cx, &self.config, index, &self.positions, &x)?;
        layer.attention.output().forward_reduce(cx, delta, &attended)?;
        if self.config.parallel {
            let x = match &layer.mlp_norm {
                Some(norm) => norm.forward(cx, residual)?,
                None => x,
            };
            let out = cx.activation(x.rows(), x.cols())?;
            layer.mlp.forward(cx, &out, &x)?;
            cx.add(delta, &out)?;
            return self.scale_residual(cx, delta);
        }
        self.leave(cx, layer.attention_post_norm.as_ref(), delta)?;
        let x = input(cx, layer.mlp_norm.as_ref(), residual, Some(delta))?;
        layer.mlp.forward(cx, delta, &x)?;
        self.leave(cx, layer.mlp_post_norm.as_ref(), delta)
    }

    /// One layer whose norms are those of the sums: `residual` alone is the hidden state.
    fn layer_with_norms_behind(&self, cx: &Forward<'_>, index: usize, residual: &Tensor, delta: &Tensor) -> Result<()> {
        let layer = &self.layers[index];
        let attended = layer.attention.forward(cx, &self.config, index, &self.positions, residual)?;
        layer.attention.output().forward_reduce(cx, delta, &attended)?;
        cx.add(residual, delta)?;
        layer.attention_norm.as_ref().map_or(Ok(()), |norm| norm.in_place(cx, residual))?;
        layer.mlp.forward(cx, delta, residual)?;
        cx.add(residual, delta)?;
        layer.mlp_norm.as_ref().map_or(Ok(()), |norm| norm.in_place(cx, residual))
    }

    /// The output of attention or feed-forward layer, made ready to be added.
    fn leave(&self, cx: &Forward<'_>, norm: Option<&Norm>, delta: &Tensor) -> Result<()> {
        norm.map_or(Ok(()), |norm| norm.in_place(cx, delta))?;
        self.scale_residual(cx, delta)
    }

    fn scale_residual(&self, cx: &Forward<'_>, delta: &Tensor) -> Result<()> {
        match self.config.residual_scale {
            1.0 => Ok(()),
            factor => cx.map(delta, Elementwise::Scale(factor)),
        }
    }
}

/// Adds `delta` to the residual; the norm of it, or itself.
fn input(cx: &Forward<'_>, norm: Option<&Norm>, residual: &Tensor, delta: Option<&Tensor>) -> Result<Tensor> {
    match (norm, delta) {
        (Some(norm), Some(delta)) => norm.forward_add(cx, residual, delta),
        (Some(norm), None) => norm.forward(cx, residual),
        (None, Some(delta)) => cx.add(residual, delta).map(|()| residual.clone()),
        (None, None) => Ok(residual.clone()),
    }
}

fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::F32 | DType::I32 => value,
    }
}

fn load_head(
    config: &ModelConfig,
    loader: &mut WeightLoader<'_>,
    embedding: &Tensor,
    embedding_name: &str,
) -> Result<Weight> {
    let name = format!("{}.weight", config.names.head);
    let has_own = !config.tied_embeddings
        || (loader.source().contains(&name) && !loader.source().are_equal(&name, embedding_name)?);
    if has_own {
        let size = config.embedding_size();
        let head = Piece::matrix(name, config.vocab_size, size);
        return if config.unit_head { loader.unit_rows(head, size) } else { loader.matrix(&[head], size) };
    }
    loader.ignore(&name);
    Ok(Weight::Dense(embedding.clone()))
}

fn load_positions(config: &ModelConfig, loader: &mut WeightLoader<'_>, max_seq_len: usize) -> Result<Positions> {
    let style = config.rope_style;
    let lengths: Vec<_> = [Some(max_seq_len), config.rotation_border(max_seq_len)].into_iter().flatten().collect();
    let global = match config.layer_ropes.contains(&LayerRope::Global) {
        true => Some(loader.rope_table(&config.rope, &lengths, style)?),
        false => None,
    };
    let local = config.local_rope.as_ref().map(|rope| loader.rope_table(rope, &lengths[..1], style)).transpose()?;
    let slopes = config.alibi_slopes.as_ref().map(|slopes| loader.constants(slopes)).transpose()?;
    let query_factors = match config.query_growth.filter(|growth| growth.period <= max_seq_len) {
        Some(growth) => Some(loader.constants(&growth.factors(max_seq_len))?.reshaped(max_seq_len, 1)?),
        None => None,
    };
    Ok(Positions { global, local, slopes, query_factors })
}

impl Model for Decoder {
    fn forward(&self, cx: &Forward<'_>) -> Result<Tensor> {
        let residual = self.embed(cx)?;
        let delta = cx.activation(residual.rows(), residual.cols())?;
        for index in 0..self.layers.len() {
            self.layer(cx, index, &residual, &delta)?;
        }
        let delta = (!self.config.norm_behind_sum).then_some(delta);
        let (residual, delta) = (cx.gather_rows(&residual)?, delta.map(|delta| cx.gather_rows(&delta)).transpose()?);
        let mut x = input(cx, self.final_norm.as_ref(), &residual, delta.as_ref())?;
        if let Some((_, out_of)) = &self.projections {
            x = out_of.forward(cx, &x)?;
        }
        let logits = cx.logits(&x, &self.head, self.head_bias.as_ref())?;
        if self.config.logit_scale != 1.0 {
            cx.map(&logits, Elementwise::Scale(self.config.logit_scale))?;
        }
        if let Some(cap) = self.config.logit_softcap {
            cx.map(&logits, Elementwise::Softcap(cap))?;
        }
        Ok(logits)
    }
}

impl Layer {
    fn load(config: &ModelConfig, loader: &mut WeightLoader<'_>, index: usize) -> Result<Self> {
        let prefix = format!("{}.{index}", config.names.layers);
        let norm = |loader: &mut WeightLoader<'_>, name: Option<&str>| {
            name.map(|name| Norm::load(config, loader, &format!("{prefix}.{name}"))).transpose()
        };
        Ok(Self {
            attention_norm: norm(loader, config.names.attention_norm)?,
            attention: Attention::load(config, loader, &prefix, index)?,
            attention_post_norm: norm(loader, config.names.attention_post_norm)?,
            mlp_norm: norm(loader, config.names.mlp_norm)?,
            mlp: Mlp::load(config, loader, &prefix, index)?,
            mlp_post_norm: norm(loader, config.names.mlp_post_norm)?,
        })
    }
}
