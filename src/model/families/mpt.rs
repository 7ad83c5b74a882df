//! MPT and DBRX: layer norms without bias, clipped projections; linear biases, or rotation and experts.

use super::Family;
use super::moe::{experts, softmax};
use crate::error::{Error, Result};
use crate::model::{ExpertWeights, MlpNames, ModelConfig, NormKind, QkvNames, Section, TensorNames};
use serde_json::{Value, json};

pub(super) const MPT: Family =
    Family { name: "mpt", architectures: &["MPTForCausalLM", "MptForCausalLM"], model_type: "mpt", configure: mpt };
pub(super) const DBRX: Family =
    Family { name: "dbrx", architectures: &["DbrxForCausalLM"], model_type: "dbrx", configure: dbrx };

fn nested(section: &Section, key: &'static str) -> Result<Section> {
    Ok(match section.section(key)? {
        Some(nested) => nested,
        None => Section::from_value(section.origin(), json!({}))?,
    })
}

fn mpt(section: &Section) -> Result<ModelConfig> {
    let attention = nested(section, "attn_config")?;
    let hidden = section.required_count(&["d_model", "hidden_size"], 1 << 20)?;
    let ratio = section.count(&["expansion_ratio"], 1 << 10)?.unwrap_or(4);
    let kv_heads = attention.count(&["kv_n_heads"], 1 << 16)?;
    let section = section
        .with_defaults(json!({"tie_word_embeddings": true, "intermediate_size": hidden.saturating_mul(ratio),
            "hidden_act": "gelu", "num_key_value_heads": kv_heads}))
        .with("layer_norm_epsilon", json!(1e-5));
    let biased = !section.flag("no_bias", true)?;
    if attention.flag("qk_ln", false)? || attention.flag("prefix_lm", false)? || biased {
        return Err(Error::unsupported(format!("{}: qk_ln, prefix_lm and biases are not supported", section.origin())));
    }
    let mut config = ModelConfig::from_section(MPT.name, &section)?;
    config.norm = NormKind::Layer { bias: false };
    config.qkv_clip = attention.positive(&["clip_qkv"])?.map(|bound| bound as f32);
    if let Some(scale) = attention.positive(&["softmax_scale"])? {
        config.attention_scale = scale as f32;
    }
    if attention.flag("alibi", true)? {
        config.set_alibi(attention.positive(&["alibi_bias_max"])?.unwrap_or(8.0), 1.0);
    } else {
        config.without_rope();
        config.position_offset = Some(0);
    }
    config.names = TensorNames {
        layers: "transformer.blocks",
        final_norm: Some("transformer.norm_f"),
        attention_norm: Some("norm_1"),
        mlp_norm: Some("norm_2"),
        qkv: QkvNames::Concatenated("attn.Wqkv"),
        output: "attn.out_proj",
        mlp: MlpNames::Plain { up: "ffn.up_proj", down: "ffn.down_proj" },
        ..TensorNames::GPT
    };
    Ok(config)
}

fn dbrx(section: &Section) -> Result<ModelConfig> {
    let (attention, ffn) = (nested(section, "attn_config")?, nested(section, "ffn_config")?);
    let mut moved = json!({"tie_word_embeddings": false, "layer_norm_epsilon": 1e-5, "hidden_act": "silu"});
    let keys = [
        (&attention, "kv_n_heads", "num_key_value_heads"),
        (&attention, "rope_theta", "rope_theta"),
        (&ffn, "ffn_hidden_size", "intermediate_size"),
        (&ffn, "moe_num_experts", "num_experts"),
        (&ffn, "moe_top_k", "moe_top_k"),
    ];
    for (from, key, to) in keys {
        moved[to] = from.first(&[key]).map_or(Value::Null, |(_, value)| value.clone());
    }
    let section = section.with_defaults(moved);
    let mut config = ModelConfig::from_section(DBRX.name, &section)?;
    config.norm = NormKind::Layer { bias: false };
    config.qkv_clip = attention.positive(&["clip_qkv"])?.map(|bound| bound as f32);
    let power = ffn.first(&["moe_normalize_expert_weights"]).and_then(|(_, value)| value.as_f64());
    if ![None, Some(1.0)].contains(&power) {
        let origin = section.origin();
        return Err(Error::unsupported(format!("{origin}: moe_normalize_expert_weights must be 1 or absent")));
    }
    let normalize = !ffn.is_null("moe_normalize_expert_weights");
    let mut experts = experts(&section, &config, softmax(normalize))?;
    experts.router = "ffn.router.layer";
    experts.weights =
        ExpertWeights::Flat { gate: "ffn.experts.mlp.w1", up: "ffn.experts.mlp.v1", down: "ffn.experts.mlp.w2" };
    config.experts = Some(experts);
    config.names = TensorNames {
        layers: "transformer.blocks",
        final_norm: Some("transformer.norm_f"),
        attention_norm: Some("norm_attn_norm.norm_1"),
        mlp_norm: Some("norm_attn_norm.norm_2"),
        qkv: QkvNames::Concatenated("norm_attn_norm.attn.Wqkv"),
        output: "norm_attn_norm.attn.out_proj",
        ..TensorNames::GPT
    };
    Ok(config)
}
