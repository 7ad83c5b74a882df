//! One file for each family, and the list of them.

mod bloom;
mod cohere;
mod deepseek;
mod falcon;
mod gemma;
mod glm;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod llama;
mod llama4;
mod llama_like;
mod mistral;
mod moe;
mod mpt;
mod nemotron;
mod olmo;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;
mod stablelm;
mod starcoder2;
mod wrapped;

pub use mistral::GROWTH;
pub use opt::POSITION_OFFSET;
pub use wrapped::text_part;

use super::{ModelConfig, Section};
use crate::error::{Error, Result};

/// How checkpoints of one kind are read.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    /// `architectures[0]` of `config.json`.
    pub architectures: &'static [&'static str],
    /// `model_type`, where a configuration has no architectures.
    pub model_type: &'static str,
    /// Normalises `config.json`: sizes, knobs of the shared block, names of tensors.
    pub configure: fn(&Section) -> Result<ModelConfig>,
}

/// Key that no folder has: the tensors have the names of [`ModelConfig::use_standard_names`].
pub const STANDARD_NAMES: &str = "standard_names";

impl Family {
    /// The normalised configuration, with the names of the format that `section` comes from.
    ///
    /// # Errors
    /// Names the key, its value and the bound.
    pub fn config(&self, section: &Section) -> Result<ModelConfig> {
        let mut config = (self.configure)(section)?;
        if section.flag(STANDARD_NAMES, false)? {
            config.use_standard_names();
        }
        Ok(config)
    }
}

/// All that can be served.
pub const FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &mistral::MINISTRAL3,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &phi3::FAMILY,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &moe::MIXTRAL,
    &moe::QWEN2_MOE,
    &moe::QWEN3_MOE,
    &granite::GRANITE,
    &granite::GRANITE_MOE,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &smollm3::FAMILY,
    &cohere::COHERE,
    &cohere::COHERE2,
    &starcoder2::FAMILY,
    &glm::GLM,
    &glm::GLM4,
    &glm::GLM4_MOE,
    &glm::CHATGLM,
    &deepseek::V2,
    &deepseek::V3,
    &gpt_oss::FAMILY,
    &llama4::FAMILY,
    &olmo::EXAONE4,
    &nemotron::FAMILY,
    &stablelm::FAMILY,
    &phi::FAMILY,
    &gpt2::GPT2,
    &gptj::FAMILY,
    &gpt_neox::FAMILY,
    &opt::FAMILY,
    &bloom::FAMILY,
    &mpt::MPT,
    &falcon::FAMILY,
    &gpt2::BIG_CODE,
    &llama_like::BAICHUAN,
    &llama_like::INTERNLM,
    &llama_like::INTERNLM2,
    &llama_like::INTERNLM3,
    &llama_like::QWEN,
    &mpt::DBRX,
];

/// Parts of the names of architectures, in small letters, that are no decoder-only models, and what these are.
const OTHER_KINDS: [(&str, &str); 17] = [
    ("eagle", "a drafter of another model (EAGLE)"),
    ("medusa", "a model with Medusa heads"),
    ("mlpspeculator", "a drafter of another model"),
    ("whisper", "a model of speech"),
    ("t5", "an encoder-decoder model"),
    ("bart", "an encoder-decoder model"),
    ("marian", "an encoder-decoder model"),
    ("pegasus", "an encoder-decoder model"),
    ("m2m100", "an encoder-decoder model"),
    ("bert", "an encoder"),
    ("electra", "an encoder"),
    ("mamba", "a model with recurrent layers"),
    ("jamba", "a model with recurrent layers"),
    ("recurrentgemma", "a model with recurrent layers"),
    ("nemotronh", "a model with recurrent layers"),
    ("qwen3next", "a model with recurrent layers"),
    ("rwkv", "a model with recurrent layers"),
];

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
    let name = architecture.or(model_type).unwrap_or_default();
    family.copied().ok_or_else(|| {
        if let Some((_, kind)) = OTHER_KINDS.iter().find(|(part, _)| name.to_lowercase().contains(part)) {
            let origin = section.origin();
            return Error::unsupported(format!("{origin}: architecture {name} is {kind}, which is not served yet"));
        }
        let supported: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        Error::unsupported(format!(
            "{}: architecture {name} is not supported; supported are the families {}",
            section.origin(),
            supported.join(", ")
        ))
    })
}

/// The layers with experts: every `decoder_sparse_step`-th but `mlp_only_layers`.
fn expert_layers(section: &Section, config: &ModelConfig) -> Result<Vec<bool>> {
    let step = section.count(&["decoder_sparse_step"], 4096)?.unwrap_or(1);
    let mut layers: Vec<bool> = (1..=config.num_layers).map(|layer| layer.is_multiple_of(step)).collect();
    if let Some((key, value)) = section.first(&["mlp_only_layers"]) {
        let wanted = "a list of numbers of layers";
        for layer in value.as_array().ok_or_else(|| section.error(key, value, wanted))? {
            let layer = layer.as_u64().and_then(|layer| layers.get_mut(layer as usize));
            *layer.ok_or_else(|| section.error(key, value, wanted))? = false;
        }
    }
    Ok(layers)
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
            error
                .message()
                .contains("architecture FooForCausalLM is not supported; supported are the families llama, ")
        );
        let kind = |name: &str| detected(json!({"architectures": [name]})).unwrap_err().message().to_owned();
        assert!(kind("T5ForConditionalGeneration").ends_with("is an encoder-decoder model, which is not served yet"));
        assert!(kind("LlamaForCausalLMEagle3").contains("LlamaForCausalLMEagle3 is a drafter of another model"));
        assert!(kind("XLMRobertaModel").contains("is an encoder,"));
        assert!(detected(json!({"architectures": []})).unwrap_err().message().contains("architectures is []"));
        assert!(detected(json!({})).unwrap_err().message().contains("has no architectures or model_type"));
    }
}
