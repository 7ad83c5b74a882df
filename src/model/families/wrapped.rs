//! The language model inside one that also takes images: served for text.

use crate::error::Result;
use crate::model::Section;

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
    Ok(inner.with("architectures", serde_json::Value::Null).with("model_type", kind.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
    fn configurations_without_parts_are_read_as_a_whole() {
        let flat = json!({"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"});
        let section = text_part(Section::from_value("config.json", flat).unwrap()).unwrap();
        assert_eq!(section.text(&["model_type"]).unwrap(), Some("qwen2"));
        let plain = json!({"architectures": ["LlamaForCausalLM"], "text_config": 3});
        assert!(text_part(Section::from_value("config.json", plain).unwrap()).is_ok());
    }
}
