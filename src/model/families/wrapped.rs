//! The language model inside one that also takes images: served for text.

use crate::error::Result;
use crate::model::Section;
use serde_json::{Value, json};

/// Architectures whose language model is one of the families and computes for text alone what that family does.
const WRAPPERS: &[&str] = &[
    "Gemma3ForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "AyaVisionForConditionalGeneration",
];

/// Kinds of language models that have another name inside a wrapper.
const KINDS: &[(&str, &str)] = &[
    ("qwen2_vl", "qwen2"),
    ("qwen2_vl_text", "qwen2"),
    ("qwen2_5_vl", "qwen2"),
    ("qwen2_5_vl_text", "qwen2"),
    ("qwen3_vl_text", "qwen3"),
    ("gemma3", "gemma3_text"),
    ("llama4", "llama4_text"),
    ("mistral3", "mistral"),
];

/// The language model of a configuration that wraps one; any other as it is. What the outer one says holds where the
/// inner one says nothing.
///
/// # Errors
/// When the part is no object, or does not say what it is.
pub fn text_part(section: Section) -> Result<Section> {
    let architecture = section.first(&["architectures"]).and_then(|(_, value)| value.get(0)?.as_str());
    if !architecture.is_some_and(|name| WRAPPERS.contains(&name)) {
        return Ok(section);
    }
    let mut inner = None;
    for key in ["text_config", "llm_config", "language_config"] {
        inner = if inner.is_none() { section.section(key)? } else { inner };
    }
    // Before there were such parts, their keys were those of the whole.
    let inner = match inner {
        Some(inner) => inner.with_defaults_of(&section, &["architectures", "model_type", "vision_config"]),
        None => section.clone(),
    };
    let kind = inner.text(&["model_type"])?.ok_or_else(|| inner.missing(&["model_type"]))?;
    let kind = KINDS.iter().find(|(name, _)| *name == kind).map_or(kind, |(_, family)| family).to_owned();
    tracing::info!("{}: the language model ({kind}) is served, without images", section.origin());
    let has_window = inner.first(&["sliding_window"]).is_some() || inner.is_null("sliding_window");
    let window = if has_window { Value::Null } else { unsaid_window(&kind) };
    let inner = inner.with_defaults(unsaid(&kind)).with_defaults(json!({"sliding_window": window}));
    Ok(inner.with("architectures", Value::Null).with("model_type", kind.into()))
}

/// What a part does not say where it is so in the first model of its kind: wrappers are saved without it, other folders
/// with all of it. Source: the configuration classes of transformers.
fn unsaid(kind: &str) -> Value {
    match kind {
        "llama" => {
            json!({"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6})
        }
        "mistral" => json!({"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6}),
        "qwen2" | "qwen3" => json!({"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
            "head_dim": if kind == "qwen3" { json!(128) } else { Value::Null }}),
        "gemma3_text" => json!({"vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
            "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6}),
        "cohere2" => json!({"vocab_size": 256_000, "hidden_size": 8192, "intermediate_size": 22_528,
            "num_hidden_layers": 40, "num_attention_heads": 64, "max_position_embeddings": 8192}),
        "llama4_text" => json!({"vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192,
            "intermediate_size_mlp": 16_384, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "num_local_experts": 16, "max_position_embeddings": 131_072}),
        _ => json!({}),
    }
}

/// The window of a part that says none, not even that it has none.
fn unsaid_window(kind: &str) -> Value {
    if ["mistral", "gemma3_text", "cohere2"].contains(&kind) { json!(4096) } else { Value::Null }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inner_model_decides_and_the_outer_one_fills_in() {
        let outer = json!({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": 3,
            "text_config": {"model_type": "gemma3_text", "hidden_size": 8, "eos_token_id": null}});
        let section = text_part(Section::from_value("config.json", outer).unwrap()).unwrap();
        assert_eq!(section.text(&["model_type"]).unwrap(), Some("gemma3_text"));
        assert_eq!(section.count(&["hidden_size"], 10).unwrap(), Some(8));
        assert_eq!(section.count(&["eos_token_id"], 10).unwrap(), Some(3));
        assert!(section.first(&["architectures"]).is_none());
    }

    #[test]
    fn what_a_part_leaves_out_is_as_in_the_first_model_of_its_kind() {
        let part = |text: Value| {
            let outer = json!({"architectures": ["LlavaForConditionalGeneration"], "text_config": text});
            text_part(Section::from_value("config.json", outer).unwrap()).unwrap()
        };
        let plain = part(json!({"model_type": "mistral", "hidden_size": 5120}));
        let count = |key: &'static str| plain.count(&[key], 1 << 20).unwrap();
        assert_eq!((count("hidden_size"), count("num_key_value_heads")), (Some(5120), Some(8)));
        assert_eq!(count("sliding_window"), Some(4096));
        assert!(part(json!({"model_type": "mistral", "sliding_window": null})).first(&["sliding_window"]).is_none());
        assert!(part(json!({"model_type": "llama"})).first(&["sliding_window"]).is_none());
    }

    #[test]
    fn configurations_without_parts_are_read_as_a_whole() {
        let flat = json!({"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"});
        let section = text_part(Section::from_value("config.json", flat).unwrap()).unwrap();
        assert_eq!(section.text(&["model_type"]).unwrap(), Some("qwen2"));
        let plain = json!({"architectures": ["LlamaForCausalLM"], "text_config": 3});
        assert!(text_part(Section::from_value("config.json", plain).unwrap()).is_ok());
    }
}
