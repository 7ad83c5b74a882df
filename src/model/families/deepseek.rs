//! DeepSeek V2 and V3 (R1, Kimi K2): compressed keys and values, experts in groups beside shared ones.

use super::Family;
use super::glm::{sigmoid_experts, with_shared_experts};
use super::moe::{experts, softmax};
use crate::device::{ExpertGroups, GroupScore, RopeStyle};
use crate::error::{Error, Result};
use crate::model::{Experts, Latent, ModelConfig, RopeScaling, Section};
use serde_json::json;

pub(super) const V2: Family =
    Family { name: "deepseek_v2", architectures: &["DeepseekV2ForCausalLM"], model_type: "deepseek_v2", configure: v2 };
pub(super) const V3: Family =
    Family { name: "deepseek_v3", architectures: &["DeepseekV3ForCausalLM"], model_type: "deepseek_v3", configure: v3 };

fn v2(section: &Section) -> Result<ModelConfig> {
    let mut config = latent(V2.name, section)?;
    config.mlp_bias = section.flag("mlp_bias", false)?;
    let mut experts = experts(section, &config, softmax(section.flag("norm_topk_prob", false)?))?;
    experts.rule.scale = section.positive(&["routed_scaling_factor"])?.unwrap_or(1.0) as f32;
    experts.rule.groups = match section.text(&["topk_method"])?.unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => {
            let count = section.required_count(&["n_group"], experts.count)?;
            let kept = section.required_count(&["topk_group"], count)?;
            Some(ExpertGroups { count, kept, score: GroupScore::Largest })
        }
        other => return Err(unsupported(section, &format!("topk_method \"{other}\""))),
    };
    if experts.rule.renormalize && experts.rule.scale != 1.0 {
        return Err(unsupported(section, "norm_topk_prob with a routed_scaling_factor"));
    }
    with_shared_experts(&mut experts, section)?;
    config.experts = Some(checked(experts, section)?);
    Ok(config)
}

fn v3(section: &Section) -> Result<ModelConfig> {
    let section = &section.with_defaults(json!({"routed_scaling_factor": 2.5}));
    let mut config = latent(V3.name, section)?;
    config.experts = Some(checked(sigmoid_experts(section, &config)?, section)?);
    Ok(config)
}

/// Sizes and rotation of both.
fn latent(name: &'static str, section: &Section) -> Result<ModelConfig> {
    let dim = |key: &'static str| section.required_count(&[key], 1 << 16);
    let query_rank = match section.is_null("q_lora_rank") {
        true => None,
        false => Some(section.count(&["q_lora_rank"], 1 << 20)?.unwrap_or(1536)),
    };
    let sizes = Latent {
        query_rank,
        rank: dim("kv_lora_rank")?,
        plain_dim: dim("qk_nope_head_dim")?,
        rotated_dim: dim("qk_rope_head_dim")?,
        value_dim: dim("v_head_dim")?,
    };
    let with_dim = section.with("head_dim", json!(sizes.rotated_dim)).with("num_key_value_heads", json!(1));
    let mut config = ModelConfig::from_section(name, &with_dim)?;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    if section.flag("rope_interleave", true)? {
        config.rope_style = RopeStyle::Interleaved;
    }
    config.head_dim = sizes.rotated_dim + sizes.rank;
    config.attention_scale = 1.0 / ((sizes.plain_dim + sizes.rotated_dim) as f32).sqrt();
    if let RopeScaling::Yarn(yarn) = &config.rope.scaling {
        config.attention_scale *= (yarn.all_dim_magnitude * yarn.all_dim_magnitude) as f32;
    }
    config.latent = Some(sizes);
    Ok(config)
}

/// `moe_layer_freq`, and groups that the experts fill.
fn checked(mut experts: Experts, section: &Section) -> Result<Experts> {
    let step = section.count(&["moe_layer_freq"], 4096)?.unwrap_or(1);
    experts.layers.iter_mut().enumerate().for_each(|(layer, has)| *has &= layer.is_multiple_of(step));
    Ok(experts)
}

fn unsupported(section: &Section, what: &str) -> Error {
    Error::unsupported(format!("{}: {what} is not supported", section.origin()))
}
