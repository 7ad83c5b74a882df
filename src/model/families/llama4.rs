//! Llama 4, the text model: attention within chunks where a layer rotates, queries that grow where it does not, one
//! expert for each token beside a shared one.

use super::Family;
use super::moe::experts;
use super::smollm3::rotating_layers;
use crate::device::{RopeStyle, RoutingRule, Score};
use crate::error::{Error, Result};
use crate::model::{
    ExpertWeights, HeadNorm, LayerRope, MlpNames, ModelConfig, QueryGrowth, Section, SharedExpert, TensorNames,
};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "llama4", architectures: &["Llama4ForCausalLM"], model_type: "llama4_text", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = &section.with_defaults(json!({"rope_theta": 5e5, "rms_norm_eps": 1e-5, "head_dim": 128}));
    let expert_size = section.required_count(&["intermediate_size"], 1 << 24)?;
    let dense_size = section.count(&["intermediate_size_mlp"], 1 << 24)?.unwrap_or(expert_size);
    let mut config = ModelConfig::from_section(FAMILY.name, &section.with("intermediate_size", json!(dense_size)))?;
    config.rope_style = RopeStyle::Interleaved;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.head_norm = section.flag("use_qk_norm", true)?.then_some(HeadNorm::Weightless);
    config.layer_ropes = rotating_layers(section, config.num_layers)?;
    let chunk = match section.is_null("attention_chunk_size") {
        true => None,
        false => Some(section.count(&["attention_chunk_size"], 1 << 30)?.unwrap_or(8192)),
    };
    config.chunks = config.layer_ropes.iter().map(|rope| chunk.filter(|_| *rope != LayerRope::None)).collect();
    if grows_queries(section)? {
        let period = section.count(&["floor_scale"], 1 << 30)?.unwrap_or(8192);
        let scale = section.positive(&["attn_scale"])?.unwrap_or(0.1);
        config.query_growth = Some(QueryGrowth { period, scale, first: 1, rotated: false });
    }
    config.names = TensorNames {
        mlp: MlpNames::Gated {
            gate: "feed_forward.gate_proj",
            up: "feed_forward.up_proj",
            down: "feed_forward.down_proj",
        },
        ..TensorNames::STANDARD
    };
    set_experts(&mut config, section, expert_size)?;
    Ok(config)
}

/// `attn_temperature_tuning` was a number first.
fn grows_queries(section: &Section) -> Result<bool> {
    match section.first(&["attn_temperature_tuning"]).and_then(|(_, value)| value.as_u64()) {
        Some(number) => Ok(number > 0),
        None => section.flag("attn_temperature_tuning", true),
    }
}

fn set_experts(config: &mut ModelConfig, section: &Section, size: usize) -> Result<()> {
    let section = &section.with_defaults(json!({"num_experts_per_tok": 1}));
    let rule = RoutingRule { score: Score::Sigmoid, groups: None, renormalize: false, scale: 1.0 };
    let mut experts = experts(section, config, rule)?;
    if experts.per_token != 1 {
        let (origin, count) = (section.origin(), experts.per_token);
        return Err(Error::unsupported(format!("{origin}: num_experts_per_tok is {count}; only 1 is supported")));
    }
    experts.intermediate_size = size;
    experts.scale_input = true;
    experts.router = "feed_forward.router";
    experts.weights = ExpertWeights::StackedTransposed {
        gate_up: "feed_forward.experts.gate_up_proj",
        down: "feed_forward.experts.down_proj",
    };
    experts.shared = Some(SharedExpert { prefix: "feed_forward.shared_expert", intermediate_size: size, gate: None });
    experts.layers = expert_layers(section, config.num_layers)?;
    config.experts = Some(experts);
    Ok(())
}

/// `moe_layers`, or every `interleave_moe_layer_step`-th.
fn expert_layers(section: &Section, num_layers: usize) -> Result<Vec<bool>> {
    let step = section.count(&["interleave_moe_layer_step"], 4096)?.unwrap_or(1);
    let Some((key, value)) = section.first(&["moe_layers"]) else {
        return Ok((1..=num_layers).map(|layer| layer.is_multiple_of(step)).collect());
    };
    let wanted = || section.error(key, value, "a list of numbers of layers");
    let mut layers = vec![false; num_layers];
    for layer in value.as_array().ok_or_else(wanted)? {
        let layer = layer.as_u64().and_then(|layer| layers.get_mut(usize::try_from(layer).ok()?));
        *layer.ok_or_else(wanted)? = true;
    }
    Ok(layers)
}
