//! Mixture of experts on the blocks of Mistral and Qwen: Mixtral, Qwen2-MoE, Qwen3-MoE.

use super::qwen2::set_qwen_windows;
use super::{Family, expert_layers};
use crate::device::{RoutingRule, Score};
use crate::error::Result;
use crate::model::formats::gguf::GGUF_EXPERTS;
use crate::model::{ExpertWeights, Experts, HeadNorm, ModelConfig, Section, SharedExpert};
use serde_json::json;

pub(super) const MIXTRAL: Family =
    Family { name: "mixtral", architectures: &["MixtralForCausalLM"], model_type: "mixtral", configure: mixtral };
pub(super) const QWEN2_MOE: Family = Family {
    name: "qwen2_moe",
    architectures: &["Qwen2MoeForCausalLM"],
    model_type: "qwen2_moe",
    configure: qwen2_moe,
};
pub(super) const QWEN3_MOE: Family = Family {
    name: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM"],
    model_type: "qwen3_moe",
    configure: qwen3_moe,
};

/// The softmax of the chosen, or of all.
pub(super) fn softmax(renormalize: bool) -> RoutingRule {
    RoutingRule { score: Score::Softmax, groups: None, renormalize, scale: 1.0 }
}

pub(super) fn experts(section: &Section, config: &ModelConfig, rule: RoutingRule) -> Result<Experts> {
    let count_keys = ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"];
    let chosen_keys =
        ["num_experts_per_tok", "moe_top_k", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token"];
    let count = section.required_count(&count_keys, 1 << 16)?;
    Ok(Experts {
        count,
        per_token: section.required_count(&chosen_keys, count)?,
        intermediate_size: section.count(&["moe_intermediate_size"], 1 << 24)?.unwrap_or(config.intermediate_size),
        rule,
        router: "mlp.gate",
        router_bias: false,
        choice_bias: None,
        biased: false,
        weights: ExpertWeights::Listed { prefix: "mlp.experts", gate: "gate_proj", up: "up_proj", down: "down_proj" },
        shared: None,
        scale_input: false,
        layers: vec![true; config.num_layers],
    })
}

/// GGUF files have the experts' gate, up and down apart, whatever the folder of the family has.
pub(super) fn set_listed(experts: &mut Experts, section: &Section) -> Result<()> {
    if section.flag(GGUF_EXPERTS, false)? {
        experts.weights =
            ExpertWeights::Listed { prefix: "mlp.experts", gate: "gate_proj", up: "up_proj", down: "down_proj" };
    }
    Ok(())
}

fn mixtral(section: &Section) -> Result<ModelConfig> {
    let section = &section.with_defaults(json!({"rope_theta": 1e6, "rms_norm_eps": 1e-5}));
    let mut config = ModelConfig::from_section(MIXTRAL.name, section)?;
    config.set_windows(section, 0)?;
    let mut experts = experts(section, &config, softmax(true))?;
    experts.router = "block_sparse_moe.gate";
    experts.weights = ExpertWeights::Listed { prefix: "block_sparse_moe.experts", gate: "w1", up: "w3", down: "w2" };
    config.experts = Some(experts);
    Ok(config)
}

fn qwen2_moe(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(QWEN2_MOE.name, section)?;
    config.qkv_bias = section.flag("qkv_bias", true)?;
    set_qwen_windows(&mut config, section)?;
    let mut experts = experts(section, &config, softmax(section.flag("norm_topk_prob", false)?))?;
    experts.shared = Some(SharedExpert {
        prefix: "mlp.shared_expert",
        intermediate_size: section.required_count(&["shared_expert_intermediate_size"], 1 << 24)?,
        gate: Some("mlp.shared_expert_gate"),
    });
    experts.layers = expert_layers(section, &config)?;
    config.experts = Some(experts);
    Ok(config)
}

fn qwen3_moe(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(QWEN3_MOE.name, section)?;
    config.head_norm = Some(HeadNorm::Shared);
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    if section.flag("use_sliding_window", false)? {
        config.set_windows(section, 0)?;
    }
    let mut experts = experts(section, &config, softmax(section.flag("norm_topk_prob", false)?))?;
    experts.layers = expert_layers(section, &config)?;
    config.experts = Some(experts);
    Ok(config)
}
