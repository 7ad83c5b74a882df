//! The normalised configuration of any checkpoint.

use super::{Rope, Section};
use crate::device::{Activation, DType};
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
    pub norm_eps: f32,
    pub activation: Activation,
    pub rope: Rope,
    /// Bias of queries, keys and values.
    pub qkv_bias: bool,
    /// Bias of the attention's output.
    pub output_bias: bool,
    /// Bias of the feed-forward layers.
    pub mlp_bias: bool,
    /// RMS norm of each query and key head before rotation.
    pub head_norm: bool,
    /// For each layer: a token sees itself and the `window - 1` before it.
    pub windows: Vec<Option<usize>>,
    /// Whether the head shares the embedding's weights.
    pub tied_embeddings: bool,
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
        let position_keys = ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"];
        let max_positions = section.required_count(&position_keys, 1 << 30)?;
        Ok(Self {
            family,
            dtype: dtype(section)?,
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: section.required_count(&["intermediate_size", "ffn_dim", "ffn_hidden_size"], 1 << 24)?,
            vocab_size: section.required_count(&["vocab_size", "padded_vocab_size"], 1 << 26)?,
            max_positions,
            norm_eps: norm_eps(section)?,
            activation: activation(section)?,
            rope: Rope::from_config(section, head_dim, max_positions)?,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            head_norm: false,
            windows: vec![None; num_layers],
            tied_embeddings: section.flag("tie_word_embeddings", false)?,
        })
    }

    /// The window of every layer from `first_layer` on, unless `layer_types` says it layer by layer.
    pub fn set_windows(&mut self, section: &Section, first_layer: usize) -> Result<()> {
        let Some(window) = section.count(&["sliding_window"], 1 << 30)? else { return Ok(()) };
        let Some((key, value)) = section.first(&["layer_types"]) else {
            self.windows.iter_mut().skip(first_layer).for_each(|entry| *entry = Some(window));
            return Ok(());
        };
        let wanted = format!("a list of {} strings, full_attention or sliding_attention", self.num_layers);
        let list = value.as_array().filter(|list| list.len() == self.num_layers);
        for (entry, kind) in self.windows.iter_mut().zip(list.ok_or_else(|| section.error(key, value, &wanted))?) {
            *entry = match kind.as_str() {
                Some("sliding_attention") => Some(window),
                Some("full_attention") => None,
                _ => return Err(section.error(key, value, &wanted)),
            };
        }
        Ok(())
    }

    /// Bytes of keys and values of one token, all layers.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> usize {
        self.num_layers * 2 * self.num_kv_heads * self.head_dim * dtype.size()
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
    let keys = ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"];
    Ok(section.positive(&keys)?.unwrap_or(1e-6) as f32)
}

fn activation(section: &Section) -> Result<Activation> {
    let keys = ["hidden_act", "hidden_activation", "activation_function"];
    match section.text(&keys)?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => Err(Error::unsupported(format!(
            "{}: hidden_act \"{other}\" is not supported; supported are silu and gelu_pytorch_tanh",
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
mod tests {
    use super::*;
    use serde_json::json;

    fn config(changes: Value) -> Result<ModelConfig> {
        let mut value = json!({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 10,
            "intermediate_size": 64, "max_position_embeddings": 128});
        for (key, change) in changes.as_object().unwrap() {
            value[key] = change.clone();
        }
        ModelConfig::from_section("llama", &Section::from_value("config.json", value)?)
    }

    fn message(changes: Value) -> String {
        config(changes).unwrap_err().message().to_owned()
    }

    #[test]
    fn defaults_follow_from_the_sizes() {
        let config = config(json!({})).unwrap();
        assert_eq!((config.num_kv_heads, config.head_dim, config.dtype), (4, 8, None));
    }

    #[test]
    fn alternative_keys_are_read_and_the_first_present_wins() {
        let named = config(json!({"hidden_size": null, "n_embd": 64, "head_dim": 16, "torch_dtype": "bfloat16",
            "dtype": "float16"}))
        .unwrap();
        assert_eq!((named.hidden_size, named.head_dim, named.dtype), (64, 16, Some(DType::F16)));
    }

    #[test]
    fn errors_name_key_value_and_bound() {
        assert_eq!(
            message(json!({"num_hidden_layers": 0})),
            "config.json: num_hidden_layers is 0; it must be an integer from 1 to 4096"
        );
        assert!(message(json!({"num_attention_heads": 0})).contains("num_attention_heads is 0"));
        assert!(message(json!({"num_key_value_heads": 3})).contains("multiple of num_key_value_heads, 3"));
        assert!(message(json!({"num_attention_heads": 5})).contains("hidden_size is 32; without head_dim"));
        assert!(message(json!({"vocab_size": 1e30})).contains("vocab_size is 1e+30"));
        assert!(message(json!({"vocab_size": u64::MAX})).contains("vocab_size is 18446744073709551615"));
        assert!(message(json!({"hidden_size": -3})).contains("hidden_size is -3"));
        assert!(message(json!({"hidden_size": null})).contains("has no hidden_size or n_embd or d_model"));
        assert!(message(json!({"hidden_act": "relu"})).contains("hidden_act \"relu\" is not supported"));
        assert!(message(json!({"rms_norm_eps": "small"})).contains("rms_norm_eps is \"small\""));
        assert!(message(json!({"torch_dtype": "float8"})).contains("dtype \"float8\" is not supported"));
        assert!(message(json!({"head_dim": 7})).contains("must be an even number"));
    }

    #[test]
    fn end_ids_are_the_union_of_both_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [5, 7]}"#).unwrap();
        let section = |value| Section::from_value("config.json", value).unwrap();
        let config = section(json!({"eos_token_id": 2, "bos_token_id": 1}));
        let tokens = SpecialTokens::read(folder.path(), &config).unwrap();
        assert_eq!(tokens, SpecialTokens { bos: Some(1), eos: vec![5, 7, 2] });
        let bad = SpecialTokens::read(folder.path(), &section(json!({"eos_token_id": "two"}))).unwrap_err();
        assert!(bad.message().contains("eos_token_id is \"two\""));
    }
}
