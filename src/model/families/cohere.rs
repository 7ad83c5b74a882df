//! Cohere and Cohere2 (Command R): parallel blocks, layer norms without bias, interleaved rotation, scaled logits.

use super::Family;
use crate::device::RopeStyle;
use crate::error::Result;
use crate::model::{HeadNorm, LayerRope, ModelConfig, NormKind, Section, TensorNames};
use serde_json::json;

pub(super) const COHERE: Family =
    Family { name: "cohere", architectures: &["CohereForCausalLM"], model_type: "cohere", configure: cohere };
pub(super) const COHERE2: Family =
    Family { name: "cohere2", architectures: &["Cohere2ForCausalLM"], model_type: "cohere2", configure: cohere2 };

fn cohere(section: &Section) -> Result<ModelConfig> {
    with_theta(section, 500_000.0)
}

/// The frequencies differ where a configuration does not say them.
fn with_theta(section: &Section, theta: f64) -> Result<ModelConfig> {
    let section =
        section.with_defaults(json!({"tie_word_embeddings": true, "layer_norm_eps": 1e-5, "rope_theta": theta}));
    let mut config = ModelConfig::from_section(COHERE.name, &section)?;
    config.norm = NormKind::Layer { bias: false };
    config.parallel = true;
    config.rope_style = RopeStyle::Interleaved;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.head_norm = section.flag("use_qk_norm", false)?.then_some(HeadNorm::PerHead);
    config.logit_scale = section.positive(&["logit_scale"])?.unwrap_or(0.0625) as f32;
    config.names = TensorNames { mlp_norm: None, ..TensorNames::STANDARD };
    Ok(config)
}

/// Full layers do not rotate.
fn cohere2(section: &Section) -> Result<ModelConfig> {
    let mut config = with_theta(section, 10_000.0)?;
    config.family = COHERE2.name;
    config.head_norm = None;
    let period = section.count(&["sliding_window_pattern", "_sliding_window_pattern"], 4096)?.unwrap_or(4);
    let full = config.full_layers(section, period)?;
    config.set_window_pattern(section, &full)?;
    config.layer_ropes = full.iter().map(|&full| if full { LayerRope::None } else { LayerRope::Global }).collect();
    Ok(config)
}
