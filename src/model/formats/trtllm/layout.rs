//! Architectures of TensorRT-LLM checkpoints: which tensor holds what, and how ranks share it.

use crate::error::{Error, Result};
use crate::model::Section;

/// How the ranks of a pipeline stage share a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Each has all of it.
    Replicated,
    /// Each has some rows.
    Rows,
    /// Each has some columns; a bias is whole.
    Columns,
    /// Each has some heads of queries, then of keys, then of values.
    Query,
    Key,
    Value,
    /// Rows, or as `use_parallel_embedding` and `embedding_sharding_dim` say; padded at the end.
    Embedding,
    /// Rows, padded at the end.
    Head,
}

/// Name in the Hugging Face folder, name in the rank files, how it is shared. Without `.weight` and `.bias`.
pub type Rule = (&'static str, &'static str, Split);

/// How checkpoints of some architectures are read.
#[derive(Debug)]
pub struct Layout {
    /// `architecture` and, where it matters, `qwen_type`.
    names: &'static [(&'static str, Option<&'static str>)],
    /// `architectures[0]` of the Hugging Face folder.
    pub hugging_face: &'static str,
    /// Behind `model.layers.N.` and `transformer.layers.N.`.
    pub layer: &'static [Rule],
    /// The experts' name in the folder, and those of up, gate and down of each.
    pub experts: Option<(&'static str, [&'static str; 3])>,
}

/// Outside of the layers.
pub const MODEL_RULES: [Rule; 3] = [
    ("model.embed_tokens", "transformer.vocab_embedding", Split::Embedding),
    ("model.norm", "transformer.ln_f", Split::Replicated),
    ("lm_head", "lm_head", Split::Head),
];

const GATED: &[Rule] = &[
    ("input_layernorm", "input_layernorm", Split::Replicated),
    ("self_attn.q_proj", "attention.qkv", Split::Query),
    ("self_attn.k_proj", "attention.qkv", Split::Key),
    ("self_attn.v_proj", "attention.qkv", Split::Value),
    ("self_attn.o_proj", "attention.dense", Split::Columns),
    ("self_attn.q_norm", "attention.q_layernorm", Split::Replicated),
    ("self_attn.k_norm", "attention.k_layernorm", Split::Replicated),
    ("post_attention_layernorm", "post_layernorm", Split::Replicated),
    ("mlp.gate_proj", "mlp.fc", Split::Rows),
    ("mlp.up_proj", "mlp.gate", Split::Rows),
    ("mlp.down_proj", "mlp.proj", Split::Columns),
];

const WITH_EXPERTS: &[Rule] = &[
    ("input_layernorm", "input_layernorm", Split::Replicated),
    ("self_attn.q_proj", "attention.qkv", Split::Query),
    ("self_attn.k_proj", "attention.qkv", Split::Key),
    ("self_attn.v_proj", "attention.qkv", Split::Value),
    ("self_attn.o_proj", "attention.dense", Split::Columns),
    ("post_attention_layernorm", "post_layernorm", Split::Replicated),
    ("block_sparse_moe.gate", "mlp.router", Split::Replicated),
];

/// Converters named it both ways.
const MIXTRAL: Layout = Layout {
    names: &[("MixtralForCausalLM", None)],
    hugging_face: "MixtralForCausalLM",
    layer: WITH_EXPERTS,
    experts: Some(("block_sparse_moe.experts", ["w3", "w1", "w2"])),
};

const LAYOUTS: &[Layout] = &[
    MIXTRAL,
    Layout {
        names: &[("LlamaForCausalLM", None), ("LLaMAForCausalLM", None), ("SkyworkForCausalLM", None)],
        hugging_face: "LlamaForCausalLM",
        layer: GATED,
        experts: None,
    },
    Layout { names: &[("MistralForCausalLM", None)], hugging_face: "MistralForCausalLM", layer: GATED, experts: None },
    Layout {
        names: &[("Qwen2ForCausalLM", None), ("QWenForCausalLM", Some("qwen2"))],
        hugging_face: "Qwen2ForCausalLM",
        layer: GATED,
        experts: None,
    },
    Layout {
        names: &[("Qwen3ForCausalLM", None), ("QWenForCausalLM", Some("qwen3"))],
        hugging_face: "Qwen3ForCausalLM",
        layer: GATED,
        experts: None,
    },
];

/// Experts of a layer, as new and old files say it; 0: none.
///
/// # Errors
/// Names the key and its value.
pub fn num_experts(config: &Section) -> Result<usize> {
    let count = match config.section("moe")? {
        Some(moe) => moe.index(&["num_experts"])?,
        None => config.index(&["moe_num_experts"])?,
    };
    Ok(count.unwrap_or(0))
}

/// Beginnings of architectures that are no decoder-only models, and what they are.
const OTHER_KINDS: [(&str, &str); 9] = [
    ("Medusa", "a model with Medusa heads"),
    ("Eagle", "a model with an EAGLE drafter"),
    ("ReDrafter", "a model with a recurrent drafter"),
    ("EncoderModel", "the encoder of an encoder-decoder model"),
    ("DecoderModel", "the decoder of an encoder-decoder model"),
    ("Whisper", "an encoder of speech"),
    ("Bert", "an encoder"),
    ("Roberta", "an encoder"),
    ("MLLaMA", "a decoder with cross attention"),
];

impl Layout {
    /// The layout that `config.json` names.
    ///
    /// # Errors
    /// Unsupported: names the architecture, and those that are supported.
    pub fn detect(config: &Section) -> Result<&'static Self> {
        let name = config.text(&["architecture"])?.ok_or_else(|| config.missing(&["architecture"]))?;
        let qwen_type = config.text(&["qwen_type"])?;
        let fits = |(known, kind): &(&str, Option<&str>)| *known == name && (kind.is_none() || *kind == qwen_type);
        if ["LlamaForCausalLM", "LLaMAForCausalLM"].contains(&name) && num_experts(config)? > 0 {
            return Ok(&MIXTRAL);
        }
        if let Some(layout) = LAYOUTS.iter().find(|layout| layout.names.iter().any(fits)) {
            return Ok(layout);
        }
        let origin = config.origin();
        if let Some((_, kind)) = OTHER_KINDS.iter().find(|(start, _)| name.starts_with(start)) {
            return Err(Error::unsupported(format!(
                "{origin}: architecture {name} is {kind}, which is not served yet"
            )));
        }
        let mut supported: Vec<_> = LAYOUTS.iter().flat_map(|layout| layout.names).map(|(name, _)| *name).collect();
        supported.dedup();
        Err(Error::unsupported(format!(
            "{origin}: architecture {name}{} is not supported as a TensorRT-LLM checkpoint; supported are {}",
            qwen_type.map_or_else(String::new, |kind| format!(" (qwen_type {kind})")),
            supported.join(", ")
        )))
    }
}
