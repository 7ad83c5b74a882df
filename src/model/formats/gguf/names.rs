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
    /// Name of the feed-forward part for experts.
    pub experts: &'static str,
    pub expert_parts: [&'static str; 3],
}

const STANDARD_PARTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// All that is read.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        hugging_face: "LlamaForCausalLM",
        with_experts: Some("MixtralForCausalLM"),
        interleaved_heads: true,
        experts: "block_sparse_moe",
        expert_parts: ["w1", "w3", "w2"],
    },
    plain("qwen2", "Qwen2ForCausalLM"),
    plain("qwen3", "Qwen3ForCausalLM"),
    plain("qwen2moe", "Qwen2MoeForCausalLM"),
    plain("qwen3moe", "Qwen3MoeForCausalLM"),
];

const fn plain(name: &'static str, hugging_face: &'static str) -> Architecture {
    let expert_parts = STANDARD_PARTS;
    Architecture { name, hugging_face, with_experts: None, interleaved_heads: false, experts: "mlp", expert_parts }
}

/// Name in the file, name in the folder.
const MODEL_NAMES: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Behind `blk.N.` and behind `model.layers.N.`.
const LAYER_NAMES: [(&str, &str); 15] = [
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
        let (stem, suffix) = name.rsplit_once('.')?;
        let found = |place: String, expert, heads| Some(Place { name: format!("{place}.{suffix}"), expert, heads });
        if let Some((file, _)) = MODEL_NAMES.iter().find(|(_, folder)| *folder == stem) {
            return found((*file).to_owned(), None, None);
        }
        let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        layer.parse::<usize>().ok()?;
        if let Some((file, _)) = LAYER_NAMES.iter().find(|(_, folder)| *folder == part) {
            let heads = match *file {
                "attn_q" if self.interleaved_heads => Some(Heads::Query),
                "attn_k" if self.interleaved_heads => Some(Heads::Key),
                _ => None,
            };
            return found(format!("blk.{layer}.{file}"), None, heads);
        }
        let expert_part = part.strip_prefix(self.experts)?.strip_prefix('.')?;
        if expert_part == "gate" {
            return found(format!("blk.{layer}.ffn_gate_inp"), None, None);
        }
        let (expert, part) = expert_part.strip_prefix("experts.")?.split_once('.')?;
        let kind = self.expert_parts.iter().position(|known| *known == part)?;
        let file = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"][kind];
        found(format!("blk.{layer}.{file}"), Some(expert.parse().ok()?), None)
    }

    /// The folder's names for a tensor of the file, of which a stack of `experts` has as many; none: not known.
    pub fn folder_names(&self, name: &str, experts: usize) -> Vec<String> {
        let Some((stem, suffix)) = name.rsplit_once('.') else { return Vec::new() };
        if let Some((_, folder)) = MODEL_NAMES.iter().find(|(file, _)| *file == stem) {
            return vec![format!("{folder}.{suffix}")];
        }
        let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return Vec::new();
        };
        let in_layer = |part: String| format!("model.layers.{layer}.{part}.{suffix}");
        if let Some((_, folder)) = LAYER_NAMES.iter().find(|(file, _)| *file == part) {
            return vec![in_layer((*folder).to_owned())];
        }
        if part == "ffn_gate_inp" {
            return vec![in_layer(format!("{}.gate", self.experts))];
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
