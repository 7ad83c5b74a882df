//! StableLM: layer norms, partial rotation; some with norms of heads or parallel blocks.

use super::Family;
use crate::error::Result;
use crate::model::{HeadNorm, ModelConfig, NormKind, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    name: "stablelm",
    architectures: &["StableLmForCausalLM", "StableLMEpochForCausalLM"],
    model_type: "stablelm",
    configure,
};

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = section.with_defaults(json!({"partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5}));
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    config.norm = NormKind::Layer { bias: true };
    config.qkv_bias = section.flag("use_qkv_bias", false)?;
    config.parallel = section.flag("use_parallel_residual", false)?;
    config.head_norm = section.flag("qk_layernorm", false)?.then_some(HeadNorm::PerHeadListed);
    config.names = TensorNames {
        mlp_norm: (!config.parallel).then_some("post_attention_layernorm"),
        query_norm: "self_attn.q_layernorm",
        key_norm: "self_attn.k_layernorm",
        ..TensorNames::STANDARD
    };
    Ok(config)
}
