//! Qwen 2 and 2.5: biased queries, keys and values.

use super::Family;
use crate::error::Result;
use crate::model::{ModelConfig, Section};

pub(super) const FAMILY: Family =
    Family { name: "qwen2", architectures: &["Qwen2ForCausalLM"], model_type: "qwen2", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    config.qkv_bias = true;
    set_qwen_windows(&mut config, section)?;
    Ok(config)
}

/// The first `max_window_layers` layers see everything; the window of the others is off in all releases.
pub(super) fn set_qwen_windows(config: &mut ModelConfig, section: &Section) -> Result<()> {
    if section.flag("use_sliding_window", false)? {
        let first_layer = section.index(&["max_window_layers"])?.unwrap_or(28);
        config.set_windows(section, first_layer)?;
    }
    Ok(())
}
