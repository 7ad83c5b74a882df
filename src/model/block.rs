//! The decoder block that the families share, with its knobs in [`ModelConfig`].

use super::{Model, ModelConfig, VectorKind, WeightLoader};
use crate::device::{RopeStyle, RopeTable, Tensor, Weight};
use crate::error::{Error, Result};
use crate::ops::{Forward, LayerAttention};

/// How a family names its tensors; names of a layer follow `{layers}.{index}.`.
#[derive(Clone, Copy, Debug)]
pub struct TensorNames {
    pub embedding: &'static str,
    pub layers: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    /// Without `.weight` and `.bias`, as all below.
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub output: &'static str,
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

impl TensorNames {
    /// What most families use.
    pub const STANDARD: Self = Self {
        embedding: "model.embed_tokens",
        layers: "model.layers",
        final_norm: "model.norm",
        head: "lm_head",
        attention_norm: "input_layernorm",
        mlp_norm: "post_attention_layernorm",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.o_proj",
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        down: "mlp.down_proj",
    };
}

/// A decoder-only model: pre-norm blocks of grouped-query attention with rotary positions and a gated feed-forward.
pub struct Decoder {
    config: ModelConfig,
    embedding: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    head: Weight,
    rope: RopeTable,
}

struct Layer {
    attention_norm: Tensor,
    qkv: Linear,
    head_norms: Option<HeadNorms>,
    output: Linear,
    mlp_norm: Tensor,
    gate_up: Linear,
    down: Linear,
}

struct HeadNorms {
    query: Tensor,
    key: Tensor,
}

struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Decoder {
    /// Asks the loader for every tensor.
    pub fn load(
        mut config: ModelConfig,
        names: &TensorNames,
        loader: &mut WeightLoader<'_>,
        max_seq_len: usize,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let embedding_name = format!("{}.weight", names.embedding);
        // The file is the truth: configurations forget padding rows and added tokens.
        config.vocab_size = loader.source().rows(&embedding_name)?.unwrap_or(config.vocab_size);
        let embedding = loader.table(&[(embedding_name.clone(), config.vocab_size)], hidden)?;
        let layers = (0..config.num_layers)
            .map(|index| Layer::load(&config, names, &format!("{}.{index}", names.layers), loader))
            .collect::<Result<_>>()?;
        let final_norm = loader.vector(&[(format!("{}.weight", names.final_norm), hidden)], VectorKind::Norm)?;
        let head_name = format!("{}.weight", names.head);
        let has_own_head = !config.tied_embeddings
            || (loader.source().contains(&head_name) && !loader.source().are_equal(&head_name, &embedding_name)?);
        let head = if has_own_head {
            loader.matrix(&[(head_name, config.vocab_size)], hidden)?
        } else {
            loader.ignore(&head_name);
            Weight::Dense(embedding.clone())
        };
        let rope = loader.rope_table(&config.rope, max_seq_len, RopeStyle::HalfSplit)?;
        Ok(Self { config, embedding, layers, final_norm, head, rope })
    }

    /// The configuration with the sizes found in the checkpoint.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn attention(&self, cx: &Forward<'_>, index: usize, x: &Tensor) -> Result<Tensor> {
        let (config, layer) = (&self.config, &self.layers[index]);
        let (query_dim, kv_dim) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let qkv = layer.qkv.forward(cx, x)?;
        let query = qkv.columns(0, query_dim);
        let key = qkv.columns(query_dim, kv_dim);
        let value = qkv.columns(query_dim + kv_dim, kv_dim);
        if let Some(norms) = &layer.head_norms {
            cx.head_rms_norm(&query, &norms.query, config.norm_eps)?;
            cx.head_rms_norm(&key, &norms.key, config.norm_eps)?;
        }
        let args = LayerAttention {
            layer: index,
            num_heads: config.num_heads,
            rope: Some(&self.rope),
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            window: config.windows[index],
            softcap: None,
            sinks: None,
            alibi: None,
        };
        cx.rope_kv_write(&query, &key, &value, &args)?;
        cx.attention(&query, &args)
    }

    /// One layer: `residual` and `delta`, whose sum is the hidden state, are replaced by those behind the layer.
    fn layer(&self, cx: &Forward<'_>, index: usize, residual: &Tensor, delta: &Tensor) -> Result<()> {
        let _scope = cx.scope();
        let (eps, layer) = (self.config.norm_eps, &self.layers[index]);
        let x = match index {
            0 => cx.rms_norm(residual, &layer.attention_norm, eps)?,
            _ => cx.add_rms_norm(residual, delta, &layer.attention_norm, eps)?,
        };
        let attended = self.attention(cx, index, &x)?;
        layer.output.forward_reduce(cx, delta, &attended)?;
        let x = cx.add_rms_norm(residual, delta, &layer.mlp_norm, eps)?;
        let gate_up = layer.gate_up.forward(cx, &x)?;
        let activated = cx.gated_activation(&gate_up, self.config.activation)?;
        layer.down.forward_reduce(cx, delta, &activated)
    }
}

impl Model for Decoder {
    fn forward(&self, cx: &Forward<'_>) -> Result<Tensor> {
        let residual = cx.embed(&self.embedding, 1.0)?;
        let delta = cx.activation(residual.rows(), residual.cols())?;
        for index in 0..self.layers.len() {
            self.layer(cx, index, &residual, &delta)?;
        }
        let (residual, delta) = (cx.gather_rows(&residual)?, cx.gather_rows(&delta)?);
        let x = cx.add_rms_norm(&residual, &delta, &self.final_norm, self.config.norm_eps)?;
        cx.logits(&x, &self.head, None)
    }
}

impl Layer {
    fn load(config: &ModelConfig, names: &TensorNames, prefix: &str, loader: &mut WeightLoader<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let size = |heads: usize| {
            let size = heads.checked_mul(config.head_dim);
            size.ok_or_else(|| Error::invalid(format!("{heads} heads of {} elements overflow", config.head_dim)))
        };
        let (query_dim, kv_dim) = (size(config.num_heads)?, size(config.num_kv_heads)?);
        let name = |part: &str| format!("{prefix}.{part}");
        let norm = |loader: &mut WeightLoader<'_>, part: &str, len: usize| {
            loader.vector(&[(format!("{}.weight", name(part)), len)], VectorKind::Norm)
        };
        let attention_norm = norm(loader, names.attention_norm, hidden)?;
        let qkv = [(name(names.query), query_dim), (name(names.key), kv_dim), (name(names.value), kv_dim)];
        let qkv = Linear::load(loader, &qkv, hidden, config.qkv_bias)?;
        let head_norms = match config.head_norm {
            true => Some(HeadNorms {
                query: norm(loader, names.query_norm, config.head_dim)?,
                key: norm(loader, names.key_norm, config.head_dim)?,
            }),
            false => None,
        };
        let output = Linear::load(loader, &[(name(names.output), hidden)], query_dim, config.output_bias)?;
        let mlp_norm = norm(loader, names.mlp_norm, hidden)?;
        let feed_forward = config.intermediate_size;
        let gate_up = [(name(names.gate), feed_forward), (name(names.up), feed_forward)];
        let gate_up = Linear::load(loader, &gate_up, hidden, config.mlp_bias)?;
        let down = Linear::load(loader, &[(name(names.down), hidden)], feed_forward, config.mlp_bias)?;
        Ok(Self { attention_norm, qkv, head_norms, output, mlp_norm, gate_up, down })
    }
}

impl Linear {
    /// `parts`: name without suffix, output features.
    fn load(loader: &mut WeightLoader<'_>, parts: &[(String, usize)], cols: usize, has_bias: bool) -> Result<Self> {
        let with =
            |suffix: &str| -> Vec<_> { parts.iter().map(|(name, rows)| (name.clone() + suffix, *rows)).collect() };
        let weight = loader.matrix(&with(".weight"), cols)?;
        let bias = has_bias.then(|| loader.vector(&with(".bias"), VectorKind::Bias)).transpose()?;
        Ok(Self { weight, bias })
    }

    fn forward(&self, cx: &Forward<'_>, x: &Tensor) -> Result<Tensor> {
        cx.linear(x, &self.weight, self.bias.as_ref())
    }

    fn forward_reduce(&self, cx: &Forward<'_>, out: &Tensor, x: &Tensor) -> Result<()> {
        cx.linear_reduce(out, x, &self.weight, self.bias.as_ref())
    }
}
