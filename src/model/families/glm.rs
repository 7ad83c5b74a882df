//! GLM: glm-4-9b in its three forms, GLM-4 (0414), GLM-4.5 and its mixture of experts.

use super::Family;
use super::moe::experts;
use crate::device::{ExpertGroups, GroupScore, RopeStyle, RoutingRule, Score};
use crate::error::Result;
use crate::model::{Experts, HeadNorm, MlpNames, ModelConfig, QkvNames, Section, SharedExpert, TensorNames};
use serde_json::json;

pub(super) const GLM: Family =
    Family { name: "glm", architectures: &["GlmForCausalLM"], model_type: "glm", configure: glm };
pub(super) const GLM4: Family =
    Family { name: "glm4", architectures: &["Glm4ForCausalLM"], model_type: "glm4", configure: glm4 };
pub(super) const GLM4_MOE: Family =
    Family { name: "glm4_moe", architectures: &["Glm4MoeForCausalLM"], model_type: "glm4_moe", configure: glm4_moe };
pub(super) const CHATGLM: Family = Family {
    name: "chatglm",
    architectures: &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
    model_type: "chatglm",
    configure: chatglm,
};

const FUSED: MlpNames = MlpNames::Fused { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" };

fn glm(section: &Section) -> Result<ModelConfig> {
    let section =
        section.with_defaults(json!({"partial_rotary_factor": 0.5, "attention_bias": true, "rms_norm_eps": 1.5625e-7}));
    let mut config = ModelConfig::from_section(GLM.name, &section)?;
    config.rope_style = RopeStyle::Interleaved;
    config.qkv_bias = section.flag("attention_bias", true)?;
    config.names = TensorNames { mlp: FUSED, ..TensorNames::STANDARD };
    Ok(config)
}

fn glm4(section: &Section) -> Result<ModelConfig> {
    let mut config = glm(section)?;
    config.family = GLM4.name;
    config.names.attention_post_norm = Some("post_self_attn_layernorm");
    config.names.mlp_post_norm = Some("post_mlp_layernorm");
    Ok(config)
}

fn glm4_moe(section: &Section) -> Result<ModelConfig> {
    let section = section.with_defaults(json!({"partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5}));
    let mut config = ModelConfig::from_section(GLM4_MOE.name, &section)?;
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.head_norm = section.flag("use_qk_norm", false)?.then_some(HeadNorm::Shared);
    config.experts = Some(sigmoid_experts(&section, &config)?);
    Ok(config)
}

/// Experts by sigmoid scores with a bias for the choice, in groups, beside shared ones: GLM-4.5 and DeepSeek V3.
pub(super) fn sigmoid_experts(section: &Section, config: &ModelConfig) -> Result<Experts> {
    let count = section.count(&["n_group"], 1 << 16)?.unwrap_or(1);
    let kept = section.count(&["topk_group"], count)?.unwrap_or(count);
    let rule = RoutingRule {
        score: Score::Sigmoid,
        groups: (count > 1).then_some(ExpertGroups { count, kept, score: GroupScore::TopTwo }),
        renormalize: section.flag("norm_topk_prob", true)?,
        scale: section.positive(&["routed_scaling_factor"])?.unwrap_or(1.0) as f32,
    };
    let mut experts = experts(section, config, rule)?;
    experts.choice_bias = Some("mlp.gate.e_score_correction_bias");
    with_shared_experts(&mut experts, section)?;
    Ok(experts)
}

/// `first_k_dense_replace` and `n_shared_experts`.
pub(super) fn with_shared_experts(experts: &mut Experts, section: &Section) -> Result<()> {
    let first = section.index(&["first_k_dense_replace"])?.unwrap_or(0);
    experts.layers.iter_mut().take(first).for_each(|layer| *layer = false);
    experts.shared = section.count(&["n_shared_experts"], 1 << 16)?.map(|shared| SharedExpert {
        prefix: "mlp.shared_experts",
        intermediate_size: experts.intermediate_size * shared,
        gate: None,
    });
    Ok(())
}

/// The names of ChatGLM2, ChatGLM3 and glm-4-9b as they came first.
fn chatglm(section: &Section) -> Result<ModelConfig> {
    let heads = section.required_count(&["num_attention_heads"], 1 << 16)?;
    let grouped = section.flag("multi_query_attention", false)?;
    let groups = section.count(&["multi_query_group_num"], heads)?.filter(|_| grouped).unwrap_or(heads);
    let theta = 10_000.0 * section.positive(&["rope_ratio"])?.unwrap_or(1.0);
    let section = section.with_defaults(json!({"num_key_value_heads": groups, "rope_theta": theta,
        "partial_rotary_factor": 0.5, "layernorm_epsilon": 1e-5}));
    let mut config = ModelConfig::from_section(CHATGLM.name, &section)?;
    config.rope_style = RopeStyle::Interleaved;
    let all = section.flag("add_bias_linear", false)?;
    config.set_biases(all);
    config.qkv_bias = all || section.flag("add_qkv_bias", false)?;
    config.names = TensorNames {
        embedding: "transformer.embedding.word_embeddings",
        layers: "transformer.encoder.layers",
        final_norm: Some("transformer.encoder.final_layernorm"),
        head: "transformer.output_layer",
        qkv: QkvNames::Concatenated("self_attention.query_key_value"),
        output: "self_attention.dense",
        mlp: MlpNames::Fused { gate_up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
        ..TensorNames::STANDARD
    };
    Ok(config)
}
