//! SmolLM3: Llama where every fourth layer does not rotate.

use super::Family;
use crate::error::Result;
use crate::model::{LayerRope, ModelConfig, Section};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "smollm3", architectures: &["SmolLM3ForCausalLM"], model_type: "smollm3", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = section.with_defaults(json!({"tie_word_embeddings": true, "rope_theta": 2e6}));
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.mlp_bias = section.flag("mlp_bias", false)?;
    config.layer_ropes = rotating_layers(&section, config.num_layers)?;
    if section.flag("use_sliding_window", false)? {
        config.set_windows(&section, 0)?;
    }
    Ok(config)
}

/// `no_rope_layers` has a 1 for each layer that does rotate; an empty list says nothing.
pub(super) fn rotating_layers(section: &Section, num_layers: usize) -> Result<Vec<LayerRope>> {
    let period = section.count(&["no_rope_layer_interval"], 4096)?.unwrap_or(4);
    let rope = |rotates: bool| if rotates { LayerRope::Global } else { LayerRope::None };
    let listed =
        section.first(&["no_rope_layers"]).filter(|(_, value)| value.as_array().is_none_or(|list| !list.is_empty()));
    let Some((key, value)) = listed else {
        return Ok((1..=num_layers).map(|layer| rope(!layer.is_multiple_of(period))).collect());
    };
    let list = value.as_array().filter(|list| list.len() == num_layers);
    let flags = list.and_then(|list| list.iter().map(|flag| flag.as_u64().filter(|&flag| flag < 2)).collect());
    let flags: Vec<u64> =
        flags.ok_or_else(|| section.error(key, value, &format!("a list of {num_layers} numbers 0 or 1")))?;
    Ok(flags.into_iter().map(|flag| rope(flag == 1)).collect())
}
