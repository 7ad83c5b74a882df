//! The normalised configuration of any checkpoint.

use super::{Rope, Section, TensorNames};
use crate::device::{Activation, DType, RopeStyle, RoutingRule};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use serde_json::Value;
use std::path::Path;

/// One decoder-only model: sizes, and the knobs of the shared block.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family's name, e.g. `"llama"`.
    pub family: &'static str,
    /// Type of the checkpoint's numbers, where the configuration says it.
    pub dtype: Option<DType>,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    /// Longest sequence the checkpoint was made for.
    pub max_positions: usize,
    pub norm: NormKind,
    pub norm_eps: f32,
    pub activation: Activation,
    /// Attention and feed-forward layer of a block take the same input.
    pub parallel: bool,
    pub rope: Rope,
    pub rope_style: RopeStyle,
    /// Of layers that say [`LayerRope::Local`].
    pub local_rope: Option<Rope>,
    pub layer_ropes: Vec<LayerRope>,
    /// Slopes of linear biases, one for each head.
    pub alibi_slopes: Option<Vec<f32>>,
    /// Rows of the table of learned positions before position 0, where there is such a table.
    pub position_offset: Option<usize>,
    /// Bias of queries, keys and values.
    pub qkv_bias: bool,
    /// Bias of the attention's output.
    pub output_bias: bool,
    /// Bias of the feed-forward layers.
    pub mlp_bias: bool,
    pub head_bias: bool,
    /// Norm of queries and keys before rotation.
    pub head_norm: Option<HeadNorm>,
    /// Queries, keys and values are kept between minus and plus this.
    pub qkv_clip: Option<f32>,
    /// Keys and values are compressed.
    pub latent: Option<Latent>,
    /// Factor of `q·k`.
    pub attention_scale: f32,
    pub attention_softcap: Option<f32>,
    /// Every head has a score without a value.
    pub attention_sinks: bool,
    /// For each layer: a token sees itself and the `window - 1` before it.
    pub windows: Vec<Option<usize>>,
    /// For each layer: the first tokens of a sequence, which are seen beside the window.
    pub sink_tokens: Vec<usize>,
    /// For each layer: a token sees only those of its own chunk of so many positions.
    pub chunks: Vec<Option<usize>>,
    /// Of the queries of layers that do not rotate.
    pub query_growth: Option<QueryGrowth>,
    pub experts: Option<Experts>,
    /// The embeddings' size, where it is not the hidden size.
    pub projected_embedding: Option<usize>,
    /// Norms are those of the sums behind attention and feed-forward layer.
    pub norm_behind_sum: bool,
    pub embedding_scale: f32,
    /// The factor is rounded to the type of the weights.
    pub round_embedding_scale: bool,
    /// Factor of what a layer adds to the residual stream.
    pub residual_scale: f32,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
    /// Whether the head shares the embedding's weights.
    pub tied_embeddings: bool,
    /// The rows of the head are divided by their lengths.
    pub unit_head: bool,
    pub names: TensorNames,
}

/// The norm of hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    Rms,
    /// The weight is stored less 1.
    RmsPlusOne,
    Layer {
        bias: bool,
    },
    /// With a bias; the weight is stored less 1.
    LayerPlusOne,
}

/// The norm of queries and keys, of the kind of the other norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadNorm {
    /// Each head, with the same weights.
    Shared,
    /// Each head, with weights of its own: one matrix.
    PerHead,
    /// Each head, with weights of its own: one tensor for each.
    PerHeadListed,
    /// All heads together.
    FullWidth,
    /// Each head, without weights, in layers that rotate.
    Weightless,
}

/// Sizes of compressed keys and values. The cache holds `rotated_dim + rank` numbers of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// Queries are compressed, too.
    pub query_rank: Option<usize>,
    pub rank: usize,
    /// Elements of a head's query and key that are not rotated.
    pub plain_dim: usize,
    pub rotated_dim: usize,
    pub value_dim: usize,
}

/// Queries grow with their position: the factor is `1 + scale ln(1 + ⌊(position + first) / period⌋)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryGrowth {
    pub period: usize,
    pub scale: f64,
    /// What the first position counts as.
    pub first: usize,
    /// Also in layers that rotate.
    pub rotated: bool,
}

impl QueryGrowth {
    /// Of the first `count` positions.
    pub fn factors(self, count: usize) -> Vec<f32> {
        let factor = |position: usize| 1.0 + self.scale * (((position + self.first) / self.period) as f64).ln_1p();
        (0..count).map(|position| factor(position) as f32).collect()
    }
}

/// Which rotation a layer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerRope {
    None,
    Global,
    Local,
}

/// A mixture of experts in the place of a feed-forward layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    pub count: usize,
    pub per_token: usize,
    pub intermediate_size: usize,
    pub rule: RoutingRule,
    pub router: &'static str,
    pub router_bias: bool,
    /// Name of the bias that counts for the choice only.
    pub choice_bias: Option<&'static str>,
    pub weights: ExpertWeights,
    /// The matrices of experts have biases.
    pub biased: bool,
    pub shared: Option<SharedExpert>,
    /// The weight of an expert is a factor of its input.
    pub scale_input: bool,
    /// Which layers have experts.
    pub layers: Vec<bool>,
}

/// How a checkpoint holds the matrices of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertWeights {
    /// `{prefix}.{expert}.{gate}.weight` and so on.
    Listed { prefix: &'static str, gate: &'static str, up: &'static str, down: &'static str },
    /// `[E, 2I, C]` gate then up, and `[E, C, I]`.
    Stacked { gate_up: &'static str, down: &'static str },
    /// `[E, C, 2I]` gate then up, and `[E, I, C]`.
    StackedTransposed { gate_up: &'static str, down: &'static str },
    /// `[E, C, 2I]` gate and up in turn, and `[E, I, C]`, or the same in blocks of 4-bit floats, `{name}_blocks`, with
    /// columns as rows; biases `{name}_bias`.
    Interleaved { gate_up: &'static str, down: &'static str },
    /// Each `[E * I, C]`, the last one transposed.
    Flat { gate: &'static str, up: &'static str, down: &'static str },
}

/// An expert of every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExpert {
    pub prefix: &'static str,
    pub intermediate_size: usize,
    /// Name of the gate: its sigmoid is a factor of the output.
    pub gate: Option<&'static str>,
}

/// Ids with a meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<TokenId>,
    /// Any of these ends a text, from `generation_config.json` and `config.json`.
    pub eos: Vec<TokenId>,
}

impl ModelConfig {
    /// Sizes and common keys; the family sets its knobs afterwards.
    ///
    /// # Errors
    /// Names the key, its value and the bound.
    pub fn from_section(family: &'static str, section: &Section) -> Result<Self> {
        let hidden_size = section.required_count(&["hidden_size", "n_embd", "d_model"], 1 << 20)?;
        let num_layers = section.required_count(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 4096)?;
        let num_heads = section.required_count(&["num_attention_heads", "n_head", "n_heads", "num_heads"], 1 << 16)?;
        let kv_keys = ["num_key_value_heads", "num_kv_heads", "n_head_kv"];
        let num_kv_heads = section.count(&kv_keys, 1 << 16)?.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(Error::invalid(format!(
                "{}: num_attention_heads is {num_heads}; it must be a multiple of num_key_value_heads, {num_kv_heads}",
                section.origin()
            )));
        }
        let head_dim = head_dim(section, hidden_size, num_heads)?;
        let position_keys = [
            "max_position_embeddings",
            "n_positions",
            "max_seq_len",
            "seq_length",
            "model_max_length",
            "max_sequence_length",
        ];
        let max_positions = section.required_count(&position_keys, 1 << 30)?;
        Ok(Self {
            family,
            dtype: dtype(section)?,
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: section
                .required_count(&["intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff"], 1 << 24)?,
            vocab_size: section.required_count(&["vocab_size", "padded_vocab_size"], 1 << 26)?,
            max_positions,
            norm_eps: norm_eps(section)?,
            norm: NormKind::Rms,
            activation: activation(section)?,
            parallel: false,
            rope: Rope::from_config(section, head_dim, max_positions)?,
            rope_style: RopeStyle::HalfSplit,
            local_rope: None,
            layer_ropes: vec![LayerRope::Global; num_layers],
            alibi_slopes: None,
            position_offset: None,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            head_bias: false,
            head_norm: None,
            qkv_clip: None,
            latent: None,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_softcap: None,
            attention_sinks: false,
            windows: vec![None; num_layers],
            sink_tokens: vec![0; num_layers],
            chunks: vec![None; num_layers],
            query_growth: None,
            experts: None,
            projected_embedding: None,
            norm_behind_sum: false,
            embedding_scale: 1.0,
            round_embedding_scale: false,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
            tied_embeddings: section.flag("tie_word_embeddings", false)?,
            unit_head: false,
            names: TensorNames::STANDARD,
        })
    }

    /// The names that formats with names of their own are read under, whatever the family's folder has.
    pub fn use_standard_names(&mut self) {
        self.names = self.names.standardised();
        let Some(experts) = &mut self.experts else { return };
        experts.router = "mlp.gate";
        experts.choice_bias = experts.choice_bias.map(|_| "mlp.gate.e_score_correction_bias");
        experts.weights =
            ExpertWeights::Listed { prefix: "mlp.experts", gate: "gate_proj", up: "up_proj", down: "down_proj" };
        if let Some(shared) = &mut experts.shared {
            shared.prefix = "mlp.shared_expert";
            shared.gate = shared.gate.map(|_| "mlp.shared_expert_gate");
        }
    }

    /// Bias of every linear layer of the blocks.
    pub fn set_biases(&mut self, bias: bool) {
        (self.qkv_bias, self.output_bias, self.mlp_bias) = (bias, bias, bias);
    }

    /// No layer rotates.
    pub fn without_rope(&mut self) {
        self.layer_ropes.fill(LayerRope::None);
    }

    /// Linear biases with the usual slopes, `2^(-max_bias i / n)`, times `factor`.
    ///
    /// Source: Press et al., "Train short, test long", 2022; numbers of heads between powers of two as in its code.
    pub fn set_alibi(&mut self, max_bias: f64, factor: f64) {
        let power = self.num_heads.next_power_of_two();
        let below = if power == self.num_heads { power } else { power / 2 };
        let slope = |i: usize, n: usize| (2.0_f64.powf(-max_bias * i as f64 / n as f64) * factor) as f32;
        let first = (1..=below).map(|i| slope(i, below));
        let between = (1..=power).step_by(2).map(|i| slope(i, power));
        self.alibi_slopes = Some(first.chain(between).take(self.num_heads).collect());
        self.without_rope();
    }

    /// Names of the kinds of layers in `layer_types`, or for a configuration without it, every `period`-th layer full.
    ///
    /// # Errors
    /// When the list has another length, or holds another kind.
    pub fn full_layers(&self, section: &Section, period: usize) -> Result<Vec<bool>> {
        let Some((key, value)) = section.first(&["layer_types"]) else {
            return Ok((1..=self.num_layers).map(|layer| layer.is_multiple_of(period)).collect());
        };
        let wanted = format!("a list of {} strings, full_attention or sliding_attention", self.num_layers);
        let list = value.as_array().filter(|list| list.len() == self.num_layers);
        let kind = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(false),
            Some("full_attention") => Ok(true),
            _ => Err(section.error(key, value, &wanted)),
        };
        list.ok_or_else(|| section.error(key, value, &wanted))?.iter().map(kind).collect()
    }

    /// A window in all layers but the full ones.
    pub fn set_window_pattern(&mut self, section: &Section, full: &[bool]) -> Result<()> {
        if let Some(window) = section.count(&["sliding_window"], 1 << 30)? {
            let windows = full.iter().map(|&full| (!full).then_some(window));
            self.windows = windows.collect();
        }
        Ok(())
    }

    /// The window of every layer from `first_layer` on, unless `layer_types` says it layer by layer.
    pub fn set_windows(&mut self, section: &Section, first_layer: usize) -> Result<()> {
        let Some(window) = section.count(&["sliding_window"], 1 << 30)? else { return Ok(()) };
        if section.first(&["layer_types"]).is_none() {
            self.windows.iter_mut().skip(first_layer).for_each(|entry| *entry = Some(window));
            return Ok(());
        }
        let full = self.full_layers(section, 1)?;
        self.set_window_pattern(section, &full)
    }

    /// Narrows windows as an operator wants them: `windows` is repeated over the layers, a window takes its `sink_tokens`
    /// first tokens from the beginning of the sequence. A layer whose window is narrow enough keeps it.
    ///
    /// # Errors
    /// `InvalidArg` for a window that holds nothing beside its sinks, and for sinks without a window.
    pub fn narrow_windows(&mut self, windows: &[usize], sink_tokens: usize, max_seq_len: usize) -> Result<()> {
        if windows.is_empty() && sink_tokens > 0 {
            return Err(Error::invalid(format!(
                "sink_token_length is {sink_tokens}, but max_attention_window_size is not set: there is nothing to keep them from"
            )));
        }
        if let Some(window) = windows.iter().find(|&&window| window <= sink_tokens) {
            return Err(Error::invalid(format!(
                "max_attention_window_size has {window}, expected more than the {sink_tokens} tokens of sink_token_length"
            )));
        }
        for (layer, &wanted) in windows.iter().cycle().take(self.num_layers * windows.len().min(1)).enumerate() {
            let reach = self.windows[layer].into_iter().chain(self.chunks[layer]).min().unwrap_or(max_seq_len);
            if wanted < reach.min(max_seq_len) {
                (self.windows[layer], self.sink_tokens[layer]) = (Some(wanted - sink_tokens), sink_tokens);
            }
        }
        Ok(())
    }

    /// How far back each layer sees, and from which first tokens on; `None`: everything.
    pub fn reach(&self, layer: usize) -> Option<(usize, usize)> {
        let reach = self.windows[layer].into_iter().chain(self.chunks[layer]).min()?;
        Some((reach, self.sink_tokens[layer]))
    }

    /// The length up to which sequences are rotated otherwise than longer ones, where both are served: their rows of the
    /// rotary table begin at `max_seq_len`. `None`: all are rotated alike, as where something else counts positions, too.
    pub fn rotation_border(&self, max_seq_len: usize) -> Option<usize> {
        let counts_positions = self.local_rope.is_some()
            || self.query_growth.is_some()
            || self.position_offset.is_some()
            || self.sink_tokens.iter().any(|&sinks| sinks > 0);
        self.rope.border(max_seq_len).filter(|_| !counts_positions)
    }

    /// Elements of an embedding.
    pub fn embedding_size(&self) -> usize {
        self.projected_embedding.unwrap_or(self.hidden_size)
    }

    /// Rows of the cache that a token has in one layer: keys and values, or keys that are both.
    pub fn kv_rows_per_token(&self) -> usize {
        if self.latent.is_some() { self.num_kv_heads } else { 2 * self.num_kv_heads }
    }

    /// Bytes of keys and values of one token, all layers.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> usize {
        self.num_layers * self.kv_rows_per_token() * self.head_dim * dtype.size()
    }
}

impl SpecialTokens {
    /// From `config.json` and, if there is one, `generation_config.json` of `folder`.
    pub fn read(folder: &Path, config: &Section) -> Result<Self> {
        let path = folder.join("generation_config.json");
        let generation = if path.exists() { Some(Section::read(&path)?) } else { None };
        let mut tokens = Self::default();
        for section in generation.iter().chain([config]) {
            for id in token_ids(section, "eos_token_id")? {
                if !tokens.eos.contains(&id) {
                    tokens.eos.push(id);
                }
            }
            tokens.bos = tokens.bos.or(token_ids(section, "bos_token_id")?.first().copied());
        }
        Ok(tokens)
    }
}

fn token_ids(section: &Section, key: &'static str) -> Result<Vec<TokenId>> {
    let Some((_, value)) = section.first(&[key]) else { return Ok(Vec::new()) };
    let id = |value: &Value| value.as_i64().and_then(|id| TokenId::try_from(id).ok());
    let ids = match value {
        Value::Array(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
        single => id(single).map(|id| vec![id]),
    };
    // Some checkpoints write -1 for "none".
    let ids = ids.ok_or_else(|| section.error(key, value, "a token id or a list of token ids"))?;
    Ok(ids.into_iter().filter(|&id| id >= 0).collect())
}

fn head_dim(section: &Section, hidden_size: usize, num_heads: usize) -> Result<usize> {
    if let Some(head_dim) = section.count(&["head_dim", "d_kv", "kv_channels"], 1 << 14)? {
        return Ok(head_dim);
    }
    if !hidden_size.is_multiple_of(num_heads) {
        return Err(Error::invalid(format!(
            "{}: hidden_size is {hidden_size}; without head_dim it must be a multiple of num_attention_heads, {num_heads}",
            section.origin()
        )));
    }
    Ok(hidden_size / num_heads)
}

fn norm_eps(section: &Section) -> Result<f32> {
    let keys =
        ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layernorm_epsilon"];
    Ok(section.positive(&keys)?.unwrap_or(1e-6) as f32)
}

fn activation(section: &Section) -> Result<Activation> {
    let keys = ["hidden_activation", "hidden_act", "activation_function", "activation", "mlp_hidden_act"];
    match section.text(&keys)?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" | "bloom_gelu" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "relu" => Ok(Activation::Relu),
        "relu2" => Ok(Activation::ReluSquared),
        other => Err(Error::unsupported(format!(
            "{}: hidden_act \"{other}\" is not supported; supported are silu, gelu, gelu_pytorch_tanh, relu and relu2",
            section.origin()
        ))),
    }
}

fn dtype(section: &Section) -> Result<Option<DType>> {
    let Some(name) = section.text(&["dtype", "torch_dtype"])? else { return Ok(None) };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" => Ok(Some(DType::F32)),
        "float16" => Ok(Some(DType::F16)),
        "bfloat16" => Ok(Some(DType::BF16)),
        "auto" => Ok(None),
        other => Err(Error::unsupported(format!(
            "{}: dtype \"{other}\" is not supported; supported are float32, float16 and bfloat16",
            section.origin()
        ))),
    }
}

#[cfg(test)]
mod tests;
