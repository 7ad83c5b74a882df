//! How a family names its tensors.

/// Names without `.weight` and `.bias`; those of a layer follow `{layers}.{index}.`. Where a norm is depends on which of
/// the four names there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorNames {
    pub embedding: &'static str,
    /// Table of learned positions.
    pub positions: &'static str,
    pub embedding_norm: Option<&'static str>,
    /// Of embeddings into the hidden size, and out of it.
    pub projections: (&'static str, &'static str),
    pub layers: &'static str,
    pub final_norm: Option<&'static str>,
    pub head: &'static str,
    /// Before the attention.
    pub attention_norm: Option<&'static str>,
    /// Behind the attention, before its output is added.
    pub attention_post_norm: Option<&'static str>,
    /// Before the feed-forward layer. In a parallel block without it, both share the attention's.
    pub mlp_norm: Option<&'static str>,
    pub mlp_post_norm: Option<&'static str>,
    pub qkv: QkvNames,
    pub output: &'static str,
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    /// The whole name.
    pub sinks: &'static str,
    pub mlp: MlpNames,
    /// Matrices of the blocks are stored `[in, out]`.
    pub transposed: bool,
}

/// Queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvNames {
    Separate {
        query: &'static str,
        key: &'static str,
        value: &'static str,
    },
    /// All queries, all keys, all values.
    Concatenated(&'static str),
    /// Query, key and value of each head in turn.
    PerHead(&'static str),
    /// The queries of a kv head, its key and its value in turn.
    PerGroup(&'static str),
}

/// The feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpNames {
    Gated {
        gate: &'static str,
        up: &'static str,
        down: &'static str,
    },
    /// Gate then up in one tensor.
    Fused {
        gate_up: &'static str,
        down: &'static str,
    },
    /// Without a gate.
    Plain {
        up: &'static str,
        down: &'static str,
    },
}

impl TensorNames {
    /// What most families use.
    pub const STANDARD: Self = Self {
        embedding: "model.embed_tokens",
        positions: "",
        embedding_norm: None,
        projections: ("", ""),
        layers: "model.layers",
        final_norm: Some("model.norm"),
        head: "lm_head",
        attention_norm: Some("input_layernorm"),
        attention_post_norm: None,
        mlp_norm: Some("post_attention_layernorm"),
        mlp_post_norm: None,
        qkv: QkvNames::Separate { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
        output: "self_attn.o_proj",
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        sinks: "self_attn.sinks",
        mlp: MlpNames::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
        transposed: false,
    };

    /// The names that formats with names of their own are read under: those of [`TensorNames::STANDARD`] for all that
    /// this family has.
    pub fn standardised(self) -> Self {
        let kept = |name: Option<&'static str>, standard| name.map(|_| standard);
        Self {
            positions: "model.embed_positions",
            embedding_norm: kept(self.embedding_norm, "model.embed_norm"),
            projections: ("model.project_in", "model.project_out"),
            final_norm: kept(self.final_norm, "model.norm"),
            attention_norm: kept(self.attention_norm, "input_layernorm"),
            attention_post_norm: kept(self.attention_post_norm, "post_self_attn_layernorm"),
            mlp_norm: kept(self.mlp_norm, "post_attention_layernorm"),
            mlp_post_norm: kept(self.mlp_post_norm, "post_mlp_layernorm"),
            mlp: match self.mlp {
                MlpNames::Gated { .. } | MlpNames::Fused { .. } => Self::STANDARD.mlp,
                MlpNames::Plain { .. } => MlpNames::Plain { up: "mlp.up_proj", down: "mlp.down_proj" },
            },
            ..Self::STANDARD
        }
    }

    /// The names of GPT-2 and its kin.
    pub const GPT: Self = Self {
        embedding: "transformer.wte",
        positions: "transformer.wpe",
        layers: "transformer.h",
        final_norm: Some("transformer.ln_f"),
        attention_norm: Some("ln_1"),
        mlp_norm: Some("ln_2"),
        qkv: QkvNames::Concatenated("attn.c_attn"),
        output: "attn.c_proj",
        mlp: MlpNames::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
        ..Self::STANDARD
    };
}
