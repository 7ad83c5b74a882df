//! Gemma 1 to 3: norms of `1 + weight`, scaled embeddings; later ones with norms behind the layers and windows.

use super::Family;
use crate::device::Activation;
use crate::error::{Error, Result};
use crate::model::formats::gguf::GGUF_NORMS;
use crate::model::{HeadNorm, LayerRope, ModelConfig, NormKind, Rope, Section, TensorNames};
use serde_json::{Value, json};

pub(super) const GEMMA: Family =
    Family { name: "gemma", architectures: &["GemmaForCausalLM"], model_type: "gemma", configure: gemma };
pub(super) const GEMMA2: Family =
    Family { name: "gemma2", architectures: &["Gemma2ForCausalLM"], model_type: "gemma2", configure: gemma2 };
pub(super) const GEMMA3: Family = Family {
    name: "gemma3",
    architectures: &["Gemma3ForCausalLM", "Gemma3TextForCausalLM"],
    model_type: "gemma3_text",
    configure: gemma3,
};

/// "gelu" of the first files means the tanh formula too.
fn gemma(section: &Section) -> Result<ModelConfig> {
    let section = section.with_defaults(json!({"tie_word_embeddings": true, "head_dim": 256, "hidden_act": "gelu"}));
    let mut config = ModelConfig::from_section(GEMMA.name, &section)?;
    if config.activation == Activation::Gelu {
        config.activation = Activation::GeluTanh;
    }
    config.norm = if section.flag(GGUF_NORMS, false)? { NormKind::Rms } else { NormKind::RmsPlusOne };
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    config.round_embedding_scale = true;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    Ok(config)
}

/// What Gemma 2 and 3 share.
fn sandwich(section: &Section, name: &'static str) -> Result<ModelConfig> {
    let mut config = gemma(&section.with_defaults(json!({"hidden_activation": "gelu_pytorch_tanh"})))?;
    config.family = name;
    let scalar = section.positive(&["query_pre_attn_scalar"])?.unwrap_or(256.0);
    config.attention_scale = (1.0 / scalar.sqrt()) as f32;
    config.attention_softcap = section.positive(&["attn_logit_softcapping"])?.map(|cap| cap as f32);
    config.logit_softcap = section.positive(&["final_logit_softcapping"])?.map(|cap| cap as f32);
    config.names = TensorNames {
        attention_post_norm: Some("post_attention_layernorm"),
        mlp_norm: Some("pre_feedforward_layernorm"),
        mlp_post_norm: Some("post_feedforward_layernorm"),
        ..TensorNames::STANDARD
    };
    Ok(config)
}

fn gemma2(section: &Section) -> Result<ModelConfig> {
    let mut config = sandwich(section, GEMMA2.name)?;
    let full = config.full_layers(section, 2)?;
    config.set_window_pattern(section, &full)?;
    Ok(config)
}

fn gemma3(section: &Section) -> Result<ModelConfig> {
    let defaults = json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "max_position_embeddings": 131072});
    let section = &section.with_defaults(defaults);
    if section.flag("use_bidirectional_attention", false)? {
        let origin = section.origin();
        return Err(Error::unsupported(format!("{origin}: use_bidirectional_attention is not supported")));
    }
    let period = section.count(&["sliding_window_pattern", "_sliding_window_pattern"], 4096)?.unwrap_or(6);
    let (global, local) = ropes(section)?;
    let mut config = sandwich(&global, GEMMA3.name)?;
    config.local_rope = Some(Rope::from_config(&local, config.head_dim, config.max_positions)?);
    config.head_norm = Some(HeadNorm::Shared);
    let full = config.full_layers(section, period)?;
    config.set_window_pattern(section, &full)?;
    config.layer_ropes = full.iter().map(|&full| if full { LayerRope::Global } else { LayerRope::Local }).collect();
    Ok(config)
}

/// The configuration with the rotary keys of full, and of sliding layers.
fn ropes(section: &Section) -> Result<(Section, Section)> {
    if let Some((global, local)) = section.ropes_by_kind()? {
        return Ok((global, local));
    }
    let theta = section.positive(&["rope_local_base_freq"])?;
    let local = section.with("rope_scaling", Value::Null).with("rope_parameters", Value::Null);
    Ok((section.clone(), local.with("rope_theta", json!(theta))))
}
