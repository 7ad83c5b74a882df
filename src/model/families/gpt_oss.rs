//! gpt-oss: attention sinks, windows in every other layer, experts with biases and a clamped activation.

use super::Family;
use super::moe::{experts, set_listed, softmax};
use crate::device::Activation;
use crate::error::{Error, Result};
use crate::model::{ExpertWeights, ModelConfig, Section};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "gpt_oss", architectures: &["GptOssForCausalLM"], model_type: "gpt_oss", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = section.with_defaults(json!({"rope_theta": 150_000.0, "rms_norm_eps": 1e-5}));
    let limit = section.positive(&["swiglu_limit"])?.unwrap_or(7.0);
    if limit != 7.0 {
        let origin = section.origin();
        return Err(Error::unsupported(format!("{origin}: swiglu_limit is {limit}; only 7 is supported")));
    }
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    config.activation = Activation::ClampedSwish;
    config.qkv_bias = section.flag("attention_bias", true)?;
    config.output_bias = config.qkv_bias;
    config.attention_sinks = true;
    let full = config.full_layers(&section, 2)?;
    config.set_window_pattern(&section, &full)?;
    let mut experts = experts(&section, &config, softmax(true))?;
    experts.router = "mlp.router";
    experts.router_bias = true;
    experts.biased = true;
    experts.weights = ExpertWeights::Interleaved { gate_up: "mlp.experts.gate_up_proj", down: "mlp.experts.down_proj" };
    set_listed(&mut experts, &section)?;
    config.experts = Some(experts);
    Ok(config)
}
