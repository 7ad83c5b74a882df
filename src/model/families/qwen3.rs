//! Qwen 3: every query and key head is normalised before rotation.

use super::Family;
use super::qwen2::set_qwen_windows;
use crate::error::Result;
use crate::model::{HeadNorm, ModelConfig, Section};

pub(super) const FAMILY: Family =
    Family { name: "qwen3", architectures: &["Qwen3ForCausalLM"], model_type: "qwen3", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    config.head_norm = Some(HeadNorm::Shared);
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    set_qwen_windows(&mut config, section)?;
    Ok(config)
}
