//! Mistral's own folders: `params.json` and `consolidated*.safetensors`, with the names and the rotation of Llama as Meta
//! published it.

use super::safetensors::Files;
use super::{RowOrder, SafetensorsFolder, StoredTensor, TensorStore};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::model::Section;
use serde_json::json;
use std::path::Path;

const PARAMS: &str = "params.json";
const NAMES: Files = Files { single: "consolidated.safetensors", index: "consolidated.safetensors.index.json" };
/// Positions where nothing is said: what the models of this form were trained for at least.
const MAX_POSITIONS: usize = 32_768;
/// Keys for parts that are not served.
const REFUSED: [&str; 4] = ["moe", "quantization", "quantized_param_type", "lora"];

/// In the folder, and in Hugging Face's.
const MODEL_NAMES: [(&str, &str); 3] =
    [("tok_embeddings", "model.embed_tokens"), ("norm", "model.norm"), ("output", "lm_head")];
const LAYER_NAMES: [(&str, &str); 9] = [
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    (QUERY, "self_attn.q_proj"),
    (KEY, "self_attn.k_proj"),
    ("attention.wv", "self_attn.v_proj"),
    ("attention.wo", "self_attn.o_proj"),
    ("feed_forward.w1", "mlp.gate_proj"),
    ("feed_forward.w3", "mlp.up_proj"),
    ("feed_forward.w2", "mlp.down_proj"),
];
const QUERY: &str = "attention.wq";
const KEY: &str = "attention.wk";

/// The tensors of such a folder.
#[derive(Debug)]
pub struct NativeFolder {
    folder: SafetensorsFolder,
    head_dim: usize,
    names: Vec<String>,
}

impl NativeFolder {
    /// Whether a folder has this form, and no `config.json`.
    pub fn is_in(folder: &Path) -> bool {
        let has = |name: &str| folder.join(name).exists();
        !has("config.json") && has(PARAMS) && (has(NAMES.single) || has(NAMES.index))
    }

    /// Maps the files. Returns the configuration in the words of the Hugging Face folder, too.
    ///
    /// # Errors
    /// One sentence that names the file or key and what is wrong with it.
    pub fn open(path: &Path) -> Result<(Self, Section)> {
        let params = Section::read(&path.join(PARAMS))?;
        if let Some((key, _)) = params.first(&REFUSED) {
            return Err(Error::unsupported(format!(
                "{}: {key} is not supported in a folder of this form; use the model's Hugging Face form",
                params.origin()
            )));
        }
        let config = config(&params)?;
        let head_dim = config.required_count(&["head_dim"], 1 << 14)?;
        let folder = SafetensorsFolder::open_named(path, &NAMES)?;
        let names = folder.names().into_iter().map(|name| hugging_face_name(name).unwrap_or(name.to_owned())).collect();
        Ok((Self { folder, head_dim, names }, config))
    }
}

impl TensorStore for NativeFolder {
    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>> {
        let Some(own) = own_name(name) else { return Ok(None) };
        let Some(tensor) = self.folder.tensor(&own)? else { return Ok(None) };
        let is_rotated = [QUERY, KEY].iter().any(|part| own.contains(part));
        if !is_rotated {
            return Ok(Some(tensor));
        }
        let rows = tensor.shape.first().copied().unwrap_or(0);
        if !rows.is_multiple_of(self.head_dim) {
            return Err(Error::invalid(format!(
                "{}: {own} has {rows} rows, which are no multiple of head_dim, {}",
                tensor.file.display(),
                self.head_dim
            )));
        }
        Ok(Some(tensor.with_row_order(RowOrder::InterleavedHalves(self.head_dim))))
    }

    fn main_dtype(&self) -> Option<DType> {
        self.folder.main_dtype()
    }
}

fn hugging_face_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight")?;
    if let Some((_, known)) = MODEL_NAMES.iter().find(|(own, _)| *own == stem) {
        return Some(format!("{known}.weight"));
    }
    let (layer, part) = stem.strip_prefix("layers.")?.split_once('.')?;
    let (_, known) = LAYER_NAMES.iter().find(|(own, _)| *own == part)?;
    Some(format!("model.layers.{layer}.{known}.weight"))
}

fn own_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight")?;
    if let Some((own, _)) = MODEL_NAMES.iter().find(|(_, known)| *known == stem) {
        return Some(format!("{own}.weight"));
    }
    let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let (own, _) = LAYER_NAMES.iter().find(|(_, known)| *known == part)?;
    Some(format!("layers.{layer}.{own}.weight"))
}

fn config(params: &Section) -> Result<Section> {
    let count = |key: &'static str| params.required_count(&[key], 1 << 26);
    let (hidden, heads) = (count("dim")?, count("n_heads")?);
    let value = |key: &'static str| params.first(&[key]).map(|(_, value)| value.clone());
    let growth = params.section("llama_4_scaling")?;
    let yarn = match params.section("yarn")? {
        Some(yarn) => json!({"rope_type": "yarn", "factor": yarn.positive(&["factor"])?,
            "original_max_position_embeddings": yarn.positive(&["original_max_position_embeddings"])?,
            "beta_fast": yarn.positive(&["beta"])?, "beta_slow": yarn.positive(&["alpha"])?,
            "attention_factor": (!yarn.flag("apply_scale", true)?).then_some(1.0),
            "llama_4_scaling_beta": growth.map(|growth| growth.positive(&["beta"])).transpose()?.flatten()}),
        None => json!(null),
    };
    let architecture =
        if yarn["llama_4_scaling_beta"].is_number() { "Ministral3ForCausalLM" } else { "MistralForCausalLM" };
    let config = json!({
        "architectures": [architecture],
        "hidden_size": hidden,
        "num_hidden_layers": params.required_count(&["n_layers"], 4096)?,
        "num_attention_heads": heads,
        "num_key_value_heads": params.count(&["n_kv_heads"], heads)?.unwrap_or(heads),
        "head_dim": params.count(&["head_dim"], 1 << 14)?.unwrap_or((hidden / heads).max(1)),
        "intermediate_size": count("hidden_dim")?,
        "vocab_size": count("vocab_size")?,
        "rms_norm_eps": params.positive(&["norm_eps"])?.unwrap_or(1e-5),
        "rope_theta": params.positive(&["rope_theta"])?.unwrap_or(10_000.0),
        "rope_scaling": yarn,
        "max_position_embeddings":
            params.count(&["max_position_embeddings", "max_seq_len"], 1 << 30)?.unwrap_or(MAX_POSITIONS),
        "sliding_window": value("sliding_window"),
        "tie_word_embeddings": params.flag("tied_embeddings", false)?,
    });
    Section::from_value(params.origin(), config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (own, known) in [
            ("tok_embeddings.weight", "model.embed_tokens.weight"),
            ("layers.7.attention.wq.weight", "model.layers.7.self_attn.q_proj.weight"),
            ("layers.0.feed_forward.w2.weight", "model.layers.0.mlp.down_proj.weight"),
        ] {
            assert_eq!(hugging_face_name(own).as_deref(), Some(known));
            assert_eq!(own_name(known).as_deref(), Some(own));
        }
        assert_eq!(hugging_face_name("vision_encoder.ln_pre.weight"), None);
    }
}
