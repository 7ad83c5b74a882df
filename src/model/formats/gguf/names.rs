//! Architectures of GGUF files: the names of their tensors, and what differs from the Hugging Face folder.

/// How files of one architecture are read.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`
    pub name: &'static str,
    /// `architectures[0]` of the Hugging Face folder.
    pub hugging_face: &'static str,
    /// With experts (`expert_count`) instead.
    pub with_experts: Option<&'static str>,
    /// Query and key rows have the halves of each head interleaved.
    pub interleaved_heads: bool,
    /// The folder's name for the list of layers.
    pub layers: &'static str,
    /// Of tensors outside the layers, in the file and in the folder.
    pub model_names: &'static [Names],
    /// Of tensors in the layers, where they are not the usual ones.
    pub own_names: &'static [Names],
    /// Name of the feed-forward part for experts.
    pub experts: &'static str,
    pub expert_parts: [&'static str; 3],
    /// Name of the router in that part.
    pub router: &'static str,
    /// The family's names are replaced by the usual ones ([`ModelConfig::use_standard_names`]).
    ///
    /// [`ModelConfig::use_standard_names`]: crate::model::ModelConfig::use_standard_names
    pub standard_names: bool,
}

/// In the file, in the folder.
type Names = (&'static str, &'static str);

const STANDARD: Architecture = Architecture {
    name: "",
    hugging_face: "",
    with_experts: None,
    interleaved_heads: false,
    layers: "model.layers",
    model_names: &[
        ("token_embd", "model.embed_tokens"),
        ("token_embd_norm", "model.embed_norm"),
        ("position_embd", "model.embed_positions"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    own_names: &[],
    experts: "mlp",
    expert_parts: ["gate_proj", "up_proj", "down_proj"],
    router: "gate",
    standard_names: false,
};

/// All that is read.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        with_experts: Some("MixtralForCausalLM"),
        interleaved_heads: true,
        experts: "block_sparse_moe",
        expert_parts: ["w1", "w3", "w2"],
        ..plain("llama", "LlamaForCausalLM")
    },
    Architecture { interleaved_heads: true, ..plain("mistral3", "MistralForCausalLM") },
    plain("qwen2", "Qwen2ForCausalLM"),
    plain("qwen3", "Qwen3ForCausalLM"),
    plain("qwen2moe", "Qwen2MoeForCausalLM"),
    plain("qwen3moe", "Qwen3MoeForCausalLM"),
    named("phi3", "Phi3ForCausalLM", &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")]),
    plain("gemma", "GemmaForCausalLM"),
    named("gemma2", "Gemma2ForCausalLM", SANDWICH),
    named("gemma3", "Gemma3ForCausalLM", SANDWICH),
    Architecture { interleaved_heads: true, ..plain("granite", "GraniteForCausalLM") },
    // The file holds what a Llama holds.
    Architecture { interleaved_heads: true, ..plain("internlm2", "LlamaForCausalLM") },
    named("starcoder2", "Starcoder2ForCausalLM", &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")]),
    plain("stablelm", "StableLmForCausalLM"),
    plain("nemotron", "NemotronForCausalLM"),
    plain("command-r", "CohereForCausalLM"),
    plain("cohere2", "Cohere2ForCausalLM"),
    named("olmo2", "Olmo2ForCausalLM", POST_NORMS),
    named(
        "glm4",
        "Glm4ForCausalLM",
        &[
            ("post_attention_norm", "post_self_attn_layernorm"),
            ("post_ffw_norm", "post_mlp_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
        ],
    ),
    Architecture {
        layers: "transformer.h",
        model_names: &[
            ("token_embd", "transformer.wte"),
            ("position_embd", "transformer.wpe"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        own_names: &[
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ],
        ..plain("gpt2", "GPT2LMHeadModel")
    },
    Architecture {
        layers: "transformer.h",
        model_names: &[
            ("token_embd", "transformer.word_embeddings"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        own_names: &[
            ("attn_norm", "input_layernorm"),
            ("attn_norm", "ln_mlp"),
            ("attn_norm_2", "ln_attn"),
            ("attn_qkv", "self_attention.query_key_value"),
            ("attn_output", "self_attention.dense"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        ..plain("falcon", "FalconForCausalLM")
    },
    Architecture {
        own_names: &[("post_attention_norm", "post_attention_layernorm")],
        router: "router",
        ..plain("gpt-oss", "GptOssForCausalLM")
    },
    Architecture {
        with_experts: Some("DeepseekV2ForCausalLM"),
        ..renamed("deepseek2", "DeepseekV2ForCausalLM", LATENT)
    },
    renamed("glm4moe", "Glm4MoeForCausalLM", &[("post_attention_norm", "post_attention_layernorm")]),
    Architecture { interleaved_heads: true, ..renamed("granitemoe", "GraniteMoeForCausalLM", &[]) },
    renamed("llama4", "Llama4ForCausalLM", &[]),
    renamed("dbrx", "DbrxForCausalLM", &[("attn_output_norm", "post_attention_layernorm")]),
    named("exaone4", "Exaone4ForCausalLM", POST_NORMS),
    Architecture { interleaved_heads: true, ..plain("smollm3", "SmolLM3ForCausalLM") },
    plain("qwen2vl", "Qwen2ForCausalLM"),
    plain("qwen3vl", "Qwen3ForCausalLM"),
    plain("qwen3vlmoe", "Qwen3MoeForCausalLM"),
    renamed("qwen", "QWenLMHeadModel", &[]),
    Architecture { interleaved_heads: true, ..renamed("baichuan", "BaichuanForCausalLM", &[]) },
    // Files of GLM-4 as it came to transformers hold the same.
    named("chatglm", "GlmForCausalLM", &[("ffn_up", "mlp.gate_up_proj")]),
    renamed("phi2", "PhiForCausalLM", &[]),
    renamed("gptneox", "GPTNeoXForCausalLM", &[]),
    renamed("bloom", "BloomForCausalLM", &[]),
    renamed("mpt", "MPTForCausalLM", &[]),
    renamed("starcoder", "GPTBigCodeForCausalLM", &[]),
];

/// Norms before and behind attention and feed-forward layer.
const SANDWICH: &[Names] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
/// Norms behind them only.
const POST_NORMS: &[Names] =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];

/// Compressed keys and values; newer files have the parts of keys and of values apart.
const LATENT: &[Names] = &[
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("attn_k_b", "self_attn.k_b_proj"),
    ("attn_v_b", "self_attn.v_b_proj"),
];

const fn plain(name: &'static str, hugging_face: &'static str) -> Architecture {
    Architecture { name, hugging_face, ..STANDARD }
}

const fn named(name: &'static str, hugging_face: &'static str, own_names: &'static [Names]) -> Architecture {
    Architecture { name, hugging_face, own_names, ..STANDARD }
}

const fn renamed(name: &'static str, hugging_face: &'static str, own_names: &'static [Names]) -> Architecture {
    Architecture { standard_names: true, ..named(name, hugging_face, own_names) }
}

/// Behind `blk.N.` and behind the name of the layer.
const LAYER_NAMES: [Names; 15] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
];

/// Tensors whose names in the folder have no `.weight` or `.bias`.
const WHOLE_NAMES: [Names; 2] =
    [("attn_sinks.weight", "self_attn.sinks"), ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias")];

/// Queries, keys and values below each other.
pub const FUSED: &str = "attn_qkv";
/// The names of its parts.
pub const PARTS: [&str; 3] = ["attn_q", "attn_k", "attn_v"];

/// Where the tensor of a name is.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Name in the file.
    pub name: String,
    /// Which of a stack of experts.
    pub expert: Option<usize>,
    /// Whose heads have their halves interleaved.
    pub heads: Option<Heads>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    Query,
    Key,
}

impl Architecture {
    /// Where the tensor with a name of the folder is; `None`: this architecture has no such tensor.
    pub fn place(&self, name: &str) -> Option<Place> {
        if let Some((layer, part)) = self.layer_of(name)
            && let Some((file, _)) = WHOLE_NAMES.iter().find(|(_, folder)| *folder == part)
        {
            return Some(Place { name: format!("blk.{layer}.{file}"), expert: None, heads: None });
        }
        let (stem, suffix) = name.rsplit_once('.')?;
        let found = |place: String, expert, heads| Some(Place { name: format!("{place}.{suffix}"), expert, heads });
        if let Some((file, _)) = self.model_names.iter().find(|(_, folder)| *folder == stem) {
            return found((*file).to_owned(), None, None);
        }
        let (layer, part) = self.layer_of(stem)?;
        if let Some((file, _)) = self.layer_names().find(|(_, folder)| *folder == part) {
            let heads = match *file {
                "attn_q" if self.interleaved_heads => Some(Heads::Query),
                "attn_k" if self.interleaved_heads => Some(Heads::Key),
                _ => None,
            };
            return found(format!("blk.{layer}.{file}"), None, heads);
        }
        let expert_part = part.strip_prefix(self.experts)?.strip_prefix('.')?;
        if expert_part == self.router {
            return found(format!("blk.{layer}.ffn_gate_inp"), None, None);
        }
        let (expert, part) = expert_part.strip_prefix("experts.")?.split_once('.')?;
        let kind = self.expert_parts.iter().position(|known| *known == part)?;
        let file = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"][kind];
        found(format!("blk.{layer}.{file}"), Some(expert.parse().ok()?), None)
    }

    /// A layer's number, and the name behind it.
    fn layer_of<'a>(&self, name: &'a str) -> Option<(&'a str, &'a str)> {
        let (layer, part) = name.strip_prefix(self.layers)?.strip_prefix('.')?.split_once('.')?;
        layer.parse::<usize>().ok().map(|_| (layer, part))
    }

    /// The usual name of a tensor that has another one here is none.
    fn layer_names(&self) -> impl Iterator<Item = &'static Names> {
        let usual = LAYER_NAMES.iter().filter(|(file, _)| self.own_names.iter().all(|(own, _)| own != file));
        self.own_names.iter().chain(usual)
    }

    /// The folder's names for a tensor of the file, of which a stack of `experts` has as many; none: not known.
    pub fn folder_names(&self, name: &str, experts: usize) -> Vec<String> {
        let Some((stem, suffix)) = name.rsplit_once('.') else { return Vec::new() };
        if let Some((_, folder)) = self.model_names.iter().find(|(file, _)| *file == stem) {
            return vec![format!("{folder}.{suffix}")];
        }
        let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return Vec::new();
        };
        let in_layer = |part: String| format!("{}.{layer}.{part}.{suffix}", self.layers);
        let whole = format!("{part}.{suffix}");
        if let Some((_, folder)) = WHOLE_NAMES.iter().find(|(file, _)| *file == whole) {
            return vec![format!("{}.{layer}.{folder}", self.layers)];
        }
        // One name of the file may stand for different ones of the folder.
        let own: Vec<_> = self.own_names.iter().filter(|(file, _)| *file == part).collect();
        if !own.is_empty() {
            return own.into_iter().map(|(_, folder)| in_layer((*folder).to_owned())).collect();
        }
        if let Some((_, folder)) = LAYER_NAMES.iter().find(|(file, _)| *file == part) {
            return vec![in_layer((*folder).to_owned())];
        }
        if part == FUSED {
            let usual = |part: &str| LAYER_NAMES.iter().find(|(file, _)| *file == part);
            return PARTS.iter().filter_map(|part| usual(part)).map(|(_, folder)| in_layer((*folder).into())).collect();
        }
        if part == "ffn_gate_inp" {
            return vec![in_layer(format!("{}.{}", self.experts, self.router))];
        }
        let kind = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"].iter().position(|known| *known == part);
        let expert_name = |kind: usize, e: usize| format!("{}.experts.{e}.{}", self.experts, self.expert_parts[kind]);
        kind.map_or_else(Vec::new, |kind| (0..experts).map(|e| in_layer(expert_name(kind, e))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_there_and_back() {
        let llama = &ARCHITECTURES[0];
        let place = llama.place("model.layers.3.self_attn.k_proj.bias").unwrap();
        assert_eq!((place.name.as_str(), place.heads), ("blk.3.attn_k.bias", Some(Heads::Key)));
        let place = llama.place("model.layers.0.block_sparse_moe.experts.5.w3.weight").unwrap();
        assert_eq!((place.name.as_str(), place.expert), ("blk.0.ffn_up_exps.weight", Some(5)));
        assert_eq!(llama.place("model.layers.x.input_layernorm.weight"), None);
        for architecture in ARCHITECTURES {
            let names = ["token_embd.weight", "blk.7.ffn_down.weight", "blk.0.ffn_gate_exps.weight", "output.weight"];
            for name in names {
                for folder in architecture.folder_names(name, 2) {
                    assert_eq!(architecture.place(&folder).unwrap().name, name, "{folder}");
                }
            }
        }
        assert_eq!(
            llama.folder_names("blk.0.ffn_gate_exps.weight", 2)[1],
            "model.layers.0.block_sparse_moe.experts.1.w1.weight"
        );
        assert!(llama.folder_names("blk.0.unknown.weight", 2).is_empty());
    }
}
