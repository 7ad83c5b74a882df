//! Shapes of well-known models, for runs with made-up weights.

use super::Section;
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// Name, architecture, layers, hidden, feed-forward, heads, kv heads, head size, vocabulary, positions, tied.
type Shape = (&'static str, &'static str, [usize; 8], bool);

const SHAPES: &[Shape] = &[
    ("llama-160m", "LlamaForCausalLM", [12, 768, 3072, 12, 4, 64, 32_000, 2048], false),
    ("tinyllama-1.1b", "LlamaForCausalLM", [22, 2048, 5632, 32, 4, 64, 32_000, 2048], false),
    ("llama-3.2-1b", "LlamaForCausalLM", [16, 2048, 8192, 32, 8, 64, 128_256, 131_072], true),
    ("llama-3.2-3b", "LlamaForCausalLM", [28, 3072, 8192, 24, 8, 128, 128_256, 131_072], true),
    ("llama-3.1-8b", "LlamaForCausalLM", [32, 4096, 14_336, 32, 8, 128, 128_256, 131_072], false),
    ("mistral-7b", "MistralForCausalLM", [32, 4096, 14_336, 32, 8, 128, 32_768, 32_768], false),
    ("qwen2.5-7b", "Qwen2ForCausalLM", [28, 3584, 18_944, 28, 4, 128, 152_064, 32_768], false),
    ("qwen3-8b", "Qwen3ForCausalLM", [36, 4096, 12_288, 32, 8, 128, 151_936, 40_960], false),
];

/// The names that [`preset`] knows.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.0)
}

/// The configuration of a well-known model.
///
/// # Errors
/// Lists the names when there is no such model.
pub fn preset(name: &str) -> Result<Section> {
    Section::from_value(format!("dummy {name}"), preset_config(name)?)
}

/// [`preset`] as the `config.json` of a Hugging Face folder.
///
/// # Errors
/// As for [`preset`].
pub fn preset_config(name: &str) -> Result<Value> {
    let Some(&(_, architecture, sizes, tied)) = SHAPES.iter().find(|shape| shape.0 == name) else {
        let names: Vec<_> = preset_names().collect();
        return Err(Error::invalid(format!("there is no dummy model {name}; there are {}", names.join(", "))));
    };
    let [layers, hidden, feed_forward, heads, kv_heads, head_dim, vocab, positions] = sizes;
    let mut config = json!({
        "architectures": [architecture], "torch_dtype": "bfloat16", "num_hidden_layers": layers, "hidden_size": hidden,
        "intermediate_size": feed_forward, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "vocab_size": vocab, "max_position_embeddings": positions, "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0, "tie_word_embeddings": tied,
    });
    if name.starts_with("llama-3") {
        let factor = if name.starts_with("llama-3.2") { 32.0 } else { 8.0 };
        config["rope_scaling"] = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families;

    #[test]
    fn every_preset_is_a_valid_configuration() {
        for name in preset_names() {
            let section = preset(name).unwrap();
            let config = (families::detect(&section).unwrap().configure)(&section).unwrap();
            assert_eq!(config.num_heads * config.head_dim, config.hidden_size, "{name}");
        }
        assert!(preset("gpt-17").unwrap_err().message().contains("there are llama-160m"));
    }
}
