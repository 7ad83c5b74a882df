//! OLMo 2 and 3, and Exaone 4: norms behind the layers only, and norms of queries and keys.

use super::Family;
use crate::error::Result;
use crate::model::{HeadNorm, LayerRope, ModelConfig, Rope, Section, TensorNames};
use serde_json::{Value, json};

pub(super) const OLMO2: Family =
    Family { name: "olmo2", architectures: &["Olmo2ForCausalLM"], model_type: "olmo2", configure: olmo2 };
pub(super) const OLMO3: Family =
    Family { name: "olmo3", architectures: &["Olmo3ForCausalLM"], model_type: "olmo3", configure: olmo3 };
pub(super) const EXAONE4: Family =
    Family { name: "exaone4", architectures: &["Exaone4ForCausalLM"], model_type: "exaone4", configure: exaone4 };

const NAMES: TensorNames = TensorNames {
    attention_norm: None,
    attention_post_norm: Some("post_attention_layernorm"),
    mlp_norm: None,
    mlp_post_norm: Some("post_feedforward_layernorm"),
    ..TensorNames::STANDARD
};

fn olmo2(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(OLMO2.name, &section.with_defaults(json!({"rms_norm_eps": 1e-5})))?;
    config.head_norm = Some(HeadNorm::FullWidth);
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.names = NAMES;
    Ok(config)
}

/// Sliding layers are never scaled.
fn olmo3(section: &Section) -> Result<ModelConfig> {
    let section = &section.with_defaults(json!({"rope_theta": 5e5}));
    let by_kind = section.ropes_by_kind()?;
    let plain = || section.with("rope_scaling", Value::Null);
    let (global, local) = by_kind.unwrap_or_else(|| (section.clone(), plain()));
    let mut config = olmo2(&global)?;
    config.family = OLMO3.name;
    let full = config.full_layers(section, 4)?;
    config.set_window_pattern(section, &full)?;
    config.local_rope = Some(Rope::from_config(&local, config.head_dim, config.max_positions)?);
    config.layer_ropes = full.iter().map(|&full| if full { LayerRope::Global } else { LayerRope::Local }).collect();
    Ok(config)
}

/// With windows, full layers do not rotate.
fn exaone4(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(EXAONE4.name, &section.with_defaults(json!({"rms_norm_eps": 1e-5})))?;
    config.head_norm = Some(HeadNorm::Shared);
    config.names = NAMES;
    if section.first(&["sliding_window"]).is_some() {
        // A number, or a text such as "LLLG", whose last letter is the full layer.
        let period = match section.first(&["sliding_window_pattern"]) {
            Some((_, value)) if value.is_string() => value.as_str().map_or(4, str::len).max(1),
            _ => section.count(&["sliding_window_pattern"], 4096)?.unwrap_or(4),
        };
        let full = config.full_layers(section, period)?;
        config.set_window_pattern(section, &full)?;
        let rope = |full: &bool| if *full { LayerRope::None } else { LayerRope::Global };
        config.layer_ropes = full.iter().map(rope).collect();
    }
    Ok(config)
}
