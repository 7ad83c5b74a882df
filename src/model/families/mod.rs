//! One file for each family, and the list of them.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use super::{Decoder, ModelConfig, Section, TensorNames, WeightLoader};
use crate::error::{Error, Result};

/// How checkpoints of one kind are read.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    /// `architectures[0]` of `config.json`.
    pub architectures: &'static [&'static str],
    /// `model_type`, where a configuration has no architectures.
    pub model_type: &'static str,
    /// Normalises `config.json`.
    pub configure: fn(&Section) -> Result<ModelConfig>,
    /// Loads the weights for sequences up to a length.
    pub load: fn(ModelConfig, &mut WeightLoader<'_>, usize) -> Result<Decoder>,
}

/// All that can be served.
pub const FAMILIES: &[&Family] = &[&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY];

/// The family of a configuration.
///
/// # Errors
/// Unsupported: names the architecture, and those that are supported.
pub fn detect(section: &Section) -> Result<&'static Family> {
    let architecture = match section.first(&["architectures"]) {
        Some((key, value)) => {
            let first = value.get(0).and_then(|name| name.as_str());
            Some(first.ok_or_else(|| section.error(key, value, "a list with the name of an architecture"))?)
        }
        None => None,
    };
    let model_type = section.text(&["model_type"])?;
    let family = match (architecture, model_type) {
        (Some(name), _) => FAMILIES.iter().find(|family| family.architectures.contains(&name)),
        (None, Some(name)) => FAMILIES.iter().find(|family| family.model_type == name),
        (None, None) => return Err(section.missing(&["architectures", "model_type"])),
    };
    family.copied().ok_or_else(|| {
        let supported: Vec<_> = FAMILIES.iter().flat_map(|family| family.architectures).copied().collect();
        Error::unsupported(format!(
            "{}: architecture {} is not supported; supported are {}",
            section.origin(),
            architecture.or(model_type).unwrap_or_default(),
            supported.join(", ")
        ))
    })
}

/// Loads the shared block with the usual names.
fn load_standard(config: ModelConfig, loader: &mut WeightLoader<'_>, max_seq_len: usize) -> Result<Decoder> {
    Decoder::load(config, &TensorNames::STANDARD, loader, max_seq_len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use serde_json::{Value, json};

    fn detected(value: Value) -> Result<&'static str> {
        detect(&Section::from_value("config.json", value)?).map(|family| family.name)
    }

    #[test]
    fn the_architecture_decides_and_the_model_type_stands_in() {
        assert_eq!(detected(json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "llama"})).unwrap(), "qwen3");
        assert_eq!(detected(json!({"model_type": "mistral"})).unwrap(), "mistral");
    }

    #[test]
    fn unknown_architectures_are_named_with_the_supported_ones() {
        let error = detected(json!({"architectures": ["FooForCausalLM"]})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.message().contains("architecture FooForCausalLM is not supported; supported are LlamaForCausalLM")
        );
        assert!(detected(json!({"architectures": []})).unwrap_err().message().contains("architectures is []"));
        assert!(detected(json!({})).unwrap_err().message().contains("has no architectures or model_type"));
    }
}
