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
    /// A norm of each query or key head: with weights of their own, each rank has those of its heads.
    QueryNorm,
    KeyNorm,
    /// Rows; without a gate beside it, what it multiplies lies above it on every rank.
    Gate,
    /// That part above the gate.
    AboveGate,
    /// Of compressed queries and keys: the rows of the queries, each rank has all.
    QueryDown,
    /// The rows behind them.
    KeyDown,
    /// Some heads of queries out of compressed ones.
    QueryUp,
    /// The same where queries are not compressed.
    QueryWhole,
    /// Some heads of keys, then of values, out of compressed ones.
    KeyValueUp,
    /// Rows, or as `use_parallel_embedding` and `embedding_sharding_dim` say; padded at the end.
    Embedding,
    /// Rows, padded at the end.
    Head,
}

/// Name of [`ModelConfig::use_standard_names`], name in the rank files, how it is shared. Without `.weight` and `.bias`.
/// Where a name has several places, the first that is there counts.
///
/// [`ModelConfig::use_standard_names`]: crate::model::ModelConfig::use_standard_names
pub type Rule = (&'static str, &'static str, Split);

/// How checkpoints of some architectures are read.
#[derive(Debug)]
pub struct Layout {
    /// `architecture` and, where it matters, `qwen_type`.
    names: &'static [(&'static str, Option<&'static str>)],
    /// `architectures[0]` of the Hugging Face folder.
    pub hugging_face: &'static str,
    /// Behind `model.layers.N.` and `transformer.layers.N.`, beside [`LAYER_RULES`].
    pub own_rules: &'static [&'static [Rule]],
    /// What `position_embedding_type` may be.
    pub positions: &'static [&'static str],
}

/// Outside of the layers.
pub const MODEL_RULES: [Rule; 6] = [
    ("model.embed_tokens", "transformer.vocab_embedding", Split::Embedding),
    ("model.embed_positions", "transformer.position_embedding", Split::Replicated),
    ("model.embed_positions", "transformer.embedding.position_embedding", Split::Replicated),
    ("model.embed_norm", "transformer.ln_embed", Split::Replicated),
    ("model.norm", "transformer.ln_f", Split::Replicated),
    ("lm_head", "lm_head", Split::Head),
];

/// The rules of [`MODEL_RULES`] whose tensors the last pipeline stage has.
pub const LAST_STAGE: [&str; 2] = ["model.norm", "lm_head"];

/// In the layers of all architectures.
pub const LAYER_RULES: &[Rule] = &[
    ("input_layernorm", "input_layernorm", Split::Replicated),
    ("self_attn.q_proj", "attention.qkv", Split::Query),
    ("self_attn.k_proj", "attention.qkv", Split::Key),
    ("self_attn.v_proj", "attention.qkv", Split::Value),
    ("self_attn.o_proj", "attention.dense", Split::Columns),
    ("self_attn.q_norm", "attention.q_layernorm", Split::QueryNorm),
    ("self_attn.k_norm", "attention.k_layernorm", Split::KeyNorm),
    ("mlp.down_proj", "mlp.proj", Split::Columns),
    ("mlp.gate", "mlp.router", Split::Replicated),
    ("mlp.shared_expert.gate_proj", "mlp.shared_expert.fc", Split::Gate),
    ("mlp.shared_expert.up_proj", "mlp.shared_expert.gate", Split::Rows),
    ("mlp.shared_expert.up_proj", "mlp.shared_expert.fc", Split::AboveGate),
    ("mlp.shared_expert.down_proj", "mlp.shared_expert.proj", Split::Columns),
    ("mlp.shared_expert_gate", "mlp.shared_expert_gate", Split::Replicated),
    ("mlp.shared_expert.gate_proj", "shared_expert.fc", Split::Gate),
    ("mlp.shared_expert.up_proj", "shared_expert.gate", Split::Rows),
    ("mlp.shared_expert.up_proj", "shared_expert.fc", Split::AboveGate),
    ("mlp.shared_expert.down_proj", "shared_expert.proj", Split::Columns),
    ("mlp.shared_expert_gate", "shared_expert_gate", Split::Replicated),
];

/// A feed-forward layer with a gate: `silu(fc) * gate`.
const GATED: &[Rule] = &[
    ("mlp.gate_proj", "mlp.fc", Split::Gate),
    ("mlp.up_proj", "mlp.gate", Split::Rows),
    ("mlp.up_proj", "mlp.fc", Split::AboveGate),
];
/// One without.
const PLAIN: &[Rule] = &[("mlp.up_proj", "mlp.fc", Split::Rows)];
/// One norm before the feed-forward layer, under one of two names.
const ONE_NORM: &[Rule] = &[
    ("post_attention_layernorm", "mlp_layernorm", Split::Replicated),
    ("post_attention_layernorm", "post_layernorm", Split::Replicated),
];
/// Norms before and behind it, and behind the attention.
const SANDWICH: &[Rule] = &[
    ("post_self_attn_layernorm", "post_layernorm", Split::Replicated),
    ("post_attention_layernorm", "pre_feedforward_layernorm", Split::Replicated),
    ("post_mlp_layernorm", "post_feedforward_layernorm", Split::Replicated),
];

/// Compressed queries, keys and values, and experts beside shared ones.
const LATENT: &[Rule] = &[
    ("self_attn.q_a_proj", "attention.fused_a", Split::QueryDown),
    ("self_attn.kv_a_proj_with_mqa", "attention.fused_a", Split::KeyDown),
    ("self_attn.q_a_layernorm", "attention.q_a_layernorm", Split::Replicated),
    ("self_attn.kv_a_layernorm", "attention.kv_a_layernorm", Split::Replicated),
    ("self_attn.q_b_proj", "attention.q_b_proj", Split::QueryUp),
    ("self_attn.q_proj", "attention.q_b_proj", Split::QueryWhole),
    ("self_attn.kv_b_proj", "attention.kv_b_proj", Split::KeyValueUp),
    ("mlp.shared_experts.gate_proj", "mlp.shared_expert.fc", Split::Gate),
    ("mlp.shared_experts.up_proj", "mlp.shared_expert.gate", Split::Rows),
    ("mlp.shared_experts.up_proj", "mlp.shared_expert.fc", Split::AboveGate),
    ("mlp.shared_experts.down_proj", "mlp.shared_expert.proj", Split::Columns),
];

/// Parameters that are written without the `.weight` of others, with their names as if they were not.
pub const BARE: [(&str, &str); 4] = [
    ("attention.q_b_proj", "attention.q_b_proj.weight"),
    ("attention.kv_b_proj", "attention.kv_b_proj.weight"),
    ("attention.fused_q_proj", "attention.fused_q_proj.weight"),
    ("mlp.e_score_correction_bias", "mlp.router.e_score_correction_bias"),
];

/// Ways of encoding positions.
///
/// Of `mrope` the three positions of a token of text are equal.
const ROTARY: &[&str] = &["rope_gpt_neox", "long_rope", "yarn", "mrope", "deferred"];
const INTERLEAVED: &[&str] = &["rope_gptj", "chatglm", "deferred"];
const LEARNED: &[&str] = &["learned_absolute", "deferred"];
const LINEAR_BIAS: &[&str] = &["alibi", "alibi_with_scale"];
const ROTARY_OR_BIAS: &[&str] = &["rope_gpt_neox", "deferred", "alibi", "alibi_with_scale"];
const LEARNED_OR_BIAS: &[&str] = &["learned_absolute", "alibi"];

/// Norms divided by the root of mean squares, rotated halves, a gate: what most are.
const fn usual(names: &'static [(&'static str, Option<&'static str>)], hugging_face: &'static str) -> Layout {
    Layout { names, hugging_face, own_rules: &[GATED, ONE_NORM], positions: ROTARY }
}

const fn latent(names: &'static [(&'static str, Option<&'static str>)], hugging_face: &'static str) -> Layout {
    Layout { names, hugging_face, own_rules: &[GATED, ONE_NORM, LATENT], positions: ROTARY }
}

const fn ungated(
    names: &'static [(&'static str, Option<&'static str>)],
    hugging_face: &'static str,
    positions: &'static [&'static str],
) -> Layout {
    Layout { names, hugging_face, own_rules: &[PLAIN, ONE_NORM], positions }
}

/// Converters named it both ways.
const MIXTRAL: Layout = usual(&[("MixtralForCausalLM", None)], "MixtralForCausalLM");

const LAYOUTS: &[Layout] = &[
    MIXTRAL,
    usual(
        &[
            ("LlamaForCausalLM", None),
            ("LLaMAForCausalLM", None),
            ("SkyworkForCausalLM", None),
            ("InternLMForCausalLM", None),
            ("InternLM2ForCausalLM", None),
            ("LlavaLlamaModel", None),
        ],
        "LlamaForCausalLM",
    ),
    usual(&[("MistralForCausalLM", None)], "MistralForCausalLM"),
    usual(&[("GraniteForCausalLM", None)], "GraniteForCausalLM"),
    usual(&[("GraniteMoeForCausalLM", None)], "GraniteMoeForCausalLM"),
    usual(&[("QWenLMHeadModel", None), ("QWenForCausalLM", Some("qwen"))], "QWenLMHeadModel"),
    usual(
        &[
            ("Qwen2ForCausalLM", None),
            ("QWenForCausalLM", Some("qwen2")),
            ("Qwen2VLForConditionalGeneration", None),
            ("Qwen2VLModel", None),
        ],
        "Qwen2ForCausalLM",
    ),
    usual(&[("Qwen2MoeForCausalLM", None), ("QWenForCausalLM", Some("qwen2_moe"))], "Qwen2MoeForCausalLM"),
    usual(&[("Qwen3ForCausalLM", None), ("QWenForCausalLM", Some("qwen3"))], "Qwen3ForCausalLM"),
    usual(&[("Qwen3MoeForCausalLM", None), ("QWenForCausalLM", Some("qwen3_moe"))], "Qwen3MoeForCausalLM"),
    usual(&[("GemmaForCausalLM", None)], "GemmaForCausalLM"),
    Layout { own_rules: &[GATED, SANDWICH], ..usual(&[("Gemma2ForCausalLM", None)], "Gemma2ForCausalLM") },
    Layout { own_rules: &[GATED, SANDWICH], ..usual(&[("Gemma3ForCausalLM", None)], "Gemma3ForCausalLM") },
    usual(&[("Phi3ForCausalLM", None)], "Phi3ForCausalLM"),
    usual(&[("DbrxForCausalLM", None)], "DbrxForCausalLM"),
    latent(&[("DeepseekV2ForCausalLM", None)], "DeepseekV2ForCausalLM"),
    latent(&[("DeepseekV3ForCausalLM", None)], "DeepseekV3ForCausalLM"),
    Layout {
        positions: ROTARY_OR_BIAS,
        ..usual(&[("BaichuanForCausalLM", None), ("BaiChuanForCausalLM", None)], "BaichuanForCausalLM")
    },
    Layout { positions: INTERLEAVED, ..usual(&[("CohereForCausalLM", None)], "CohereForCausalLM") },
    Layout {
        positions: INTERLEAVED,
        ..usual(
            &[("ChatGLMForCausalLM", None), ("ChatGLMModel", None), ("ChatGLMForConditionalGeneration", None)],
            "GlmForCausalLM",
        )
    },
    ungated(
        &[("GPT2LMHeadModel", None), ("GPT2LMHeadCustomModel", None), ("GPTForCausalLM", None)],
        "GPT2LMHeadModel",
        LEARNED,
    ),
    ungated(&[("GPTBigCodeForCausalLM", None)], "GPTBigCodeForCausalLM", LEARNED),
    ungated(&[("Starcoder2ForCausalLM", None)], "Starcoder2ForCausalLM", ROTARY),
    ungated(&[("NemotronForCausalLM", None)], "NemotronForCausalLM", ROTARY),
    ungated(&[("PhiForCausalLM", None)], "PhiForCausalLM", ROTARY),
    ungated(&[("GPTNeoXForCausalLM", None)], "GPTNeoXForCausalLM", ROTARY),
    ungated(&[("GPTJForCausalLM", None)], "GPTJForCausalLM", INTERLEAVED),
    ungated(&[("OPTForCausalLM", None)], "OPTForCausalLM", LEARNED),
    ungated(&[("BloomForCausalLM", None)], "BloomForCausalLM", LINEAR_BIAS),
    ungated(&[("MPTForCausalLM", None), ("MptForCausalLM", None)], "MPTForCausalLM", LEARNED_OR_BIAS),
    ungated(&[("FalconForCausalLM", None), ("RWForCausalLM", None)], "FalconForCausalLM", ROTARY_OR_BIAS),
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
    /// The rules of a layer.
    pub fn layer_rules(&self) -> impl Iterator<Item = &'static Rule> {
        LAYER_RULES.iter().chain(self.own_rules.iter().copied().flatten())
    }

    /// Those whose tensor has this name in the rank files: the architecture's own, if it has some.
    pub fn rules_of(&self, rank_name: &str) -> Vec<&'static Rule> {
        let of = |rules: &'static [Rule]| rules.iter().filter(|rule| rule.1 == rank_name).collect::<Vec<_>>();
        let own: Vec<_> = self.own_rules.iter().copied().flat_map(of).collect();
        if own.is_empty() { of(LAYER_RULES) } else { own }
    }

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
