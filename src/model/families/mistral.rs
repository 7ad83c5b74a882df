//! Mistral: Llama with a sliding window in every layer.

use super::Family;
use crate::error::Result;
use crate::model::{ModelConfig, Section};

pub(super) const FAMILY: Family =
    Family { name: "mistral", architectures: &["MistralForCausalLM"], model_type: "mistral", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    config.set_windows(section, 0)?;
    Ok(config)
}
