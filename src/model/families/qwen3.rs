//! Qwen 3: every query and key head is normalised before rotation.

use super::qwen2::set_qwen_windows;
use super::{Family, load_standard};
use crate::error::Result;
use crate::model::{ModelConfig, Section};

pub(super) const FAMILY: Family =
    Family { name: "qwen3", architectures: &["Qwen3ForCausalLM"], model_type: "qwen3", configure, load: load_standard };

fn configure(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    config.head_norm = true;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    set_qwen_windows(&mut config, section)?;
    Ok(config)
}
