//! Granite and GraniteMoE: Llama with multipliers.

use super::Family;
use super::moe::{experts, set_listed, softmax};
use crate::error::Result;
use crate::model::{ExpertWeights, ModelConfig, Section};
use serde_json::json;

pub(super) const GRANITE: Family =
    Family { name: "granite", architectures: &["GraniteForCausalLM"], model_type: "granite", configure: granite };
pub(super) const GRANITE_MOE: Family = Family {
    name: "granitemoe",
    architectures: &["GraniteMoeForCausalLM"],
    model_type: "granitemoe",
    configure: granite_moe,
};

fn granite(section: &Section) -> Result<ModelConfig> {
    let defaults = json!({"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
        "attention_multiplier": 1.0});
    let section = section.with_defaults(defaults);
    let mut config = ModelConfig::from_section(GRANITE.name, &section)?;
    let factor = |key: &'static str| Ok(section.positive(&[key])?.unwrap_or(1.0) as f32);
    config.embedding_scale = factor("embedding_multiplier")?;
    config.residual_scale = factor("residual_multiplier")?;
    config.attention_scale = factor("attention_multiplier")?;
    config.logit_scale = 1.0 / factor("logits_scaling")?;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.mlp_bias = section.flag("mlp_bias", false)?;
    Ok(config)
}

fn granite_moe(section: &Section) -> Result<ModelConfig> {
    let mut config = granite(section)?;
    config.family = GRANITE_MOE.name;
    config.mlp_bias = false;
    let mut experts = experts(section, &config, softmax(true))?;
    experts.router = "block_sparse_moe.router.layer";
    experts.weights =
        ExpertWeights::Stacked { gate_up: "block_sparse_moe.input_linear", down: "block_sparse_moe.output_linear" };
    set_listed(&mut experts, section)?;
    config.experts = Some(experts);
    Ok(config)
}
