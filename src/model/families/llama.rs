//! Llama 1 to 3, and what follows its layout.

use super::Family;
use crate::error::Result;
use crate::model::{ModelConfig, Section};

pub(super) const FAMILY: Family =
    Family { name: "llama", architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"], model_type: "llama", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.mlp_bias = section.flag("mlp_bias", false)?;
    Ok(config)
}
