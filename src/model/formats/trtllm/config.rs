//! The `config.json` of a TensorRT-LLM checkpoint in the words of a Hugging Face folder.

use super::layout::num_experts;
use crate::error::{Error, Result};
use crate::model::Section;
use serde_json::{Value, json};

/// What the tensors say of a model.
pub(super) struct Traits {
    pub has_head: bool,
    pub has_attention_bias: bool,
    pub has_mlp_bias: bool,
}

/// Mode of the weights of experts.
const RENORMALIZE: usize = 1;
/// Ways of encoding positions that the rotary table covers.
const ROTARY: [&str; 4] = ["rope_gpt_neox", "long_rope", "yarn", "deferred"];

/// # Errors
/// Unsupported: names the key and the algorithm.
pub(super) fn refuse_quantisation(config: &Section) -> Result<()> {
    let Some(quantization) = config.section("quantization")? else { return Ok(()) };
    match quantization.text(&["quant_algo"])? {
        Some(algorithm) if !["NO_QUANT", "None"].contains(&algorithm) => Err(Error::unsupported(format!(
            "{}: quant_algo is {algorithm}; quantised TensorRT-LLM checkpoints are not supported yet",
            quantization.origin()
        ))),
        _ => Ok(()),
    }
}

/// The configuration with the keys of the Hugging Face folder.
///
/// # Errors
/// Names the key, its value and the bound.
pub(super) fn folder_config(config: &Section, architecture: &str, traits: &Traits) -> Result<Section> {
    if let Some(kind) = config.text(&["position_embedding_type"])?.filter(|kind| !ROTARY.contains(kind)) {
        return Err(Error::unsupported(format!(
            "{}: position_embedding_type {kind} is not supported with {architecture}; supported are {}",
            config.origin(),
            ROTARY.join(", ")
        )));
    }
    let experts = num_experts(config)?;
    if experts > 0 && architecture != "MixtralForCausalLM" {
        return Err(Error::unsupported(format!(
            "{}: {experts} experts; they are read from TensorRT-LLM checkpoints of Mixtral only",
            config.origin()
        )));
    }
    let hidden_size = config.required_count(&["hidden_size"], 1 << 20)?;
    let mut folder = json!({
        "architectures": [architecture],
        "dtype": config.text(&["dtype"])?,
        "hidden_size": hidden_size,
        "num_hidden_layers": config.required_count(&["num_hidden_layers"], 4096)?,
        "num_attention_heads": config.required_count(&["num_attention_heads"], 1 << 16)?,
        "num_key_value_heads": config.count(&["num_key_value_heads"], 1 << 16)?,
        "head_dim": config.count(&["head_size"], 1 << 14)?,
        "intermediate_size": config.count(&["intermediate_size"], 1 << 24)?.unwrap_or(4 * hidden_size),
        "vocab_size": config.required_count(&["vocab_size"], 1 << 26)?,
        "max_position_embeddings": config.required_count(&["max_position_embeddings"], 1 << 30)?,
        "rms_norm_eps": config.positive(&["norm_epsilon"])?.unwrap_or(1e-5),
        "hidden_act": hidden_act(config)?,
        "tie_word_embeddings": !traits.has_head || config.flag("share_embedding_table", false)?,
        "attention_bias": traits.has_attention_bias,
        "mlp_bias": traits.has_mlp_bias,
        "rope_theta": config.positive(&["rotary_base"])?,
        "rope_scaling": rope_scaling(config)?,
        "partial_rotary_factor": config.positive(&["rotary_pct", "partial_rotary_factor", "rotary_fraction"])?,
        "original_max_position_embeddings": config.positive(&["original_max_position_embeddings"])?,
    });
    if experts > 0 {
        folder["num_local_experts"] = json!(experts);
        folder["num_experts_per_tok"] = json!(experts_per_token(config)?);
    }
    for key in ["sliding_window", "layer_types", "eos_token_id", "bos_token_id"] {
        if let Some((_, value)) = config.first(&[key]) {
            folder[key] = value.clone();
        }
    }
    Section::from_value(config.origin(), folder)
}

/// # Errors
/// Unsupported: weights of experts that are not divided by their sum.
fn experts_per_token(config: &Section) -> Result<Option<usize>> {
    let (moe, count, mode) = match config.section("moe")? {
        Some(moe) => (moe, "top_k", "normalization_mode"),
        None => (config.clone(), "moe_top_k", "moe_normalization_mode"),
    };
    match moe.index(&[mode])? {
        None | Some(RENORMALIZE) => moe.count(&[count], 1 << 16),
        Some(other) => {
            let origin = moe.origin();
            Err(Error::unsupported(format!("{origin}: {mode} {other} is not supported; {RENORMALIZE} is")))
        }
    }
}

/// The gated forms have names of their own.
fn hidden_act(config: &Section) -> Result<Option<&str>> {
    Ok(match config.text(&["hidden_act"])? {
        Some("swiglu") => Some("silu"),
        Some("geglu") => Some("gelu_pytorch_tanh"),
        other => other,
    })
}

fn rope_scaling(config: &Section) -> Result<Value> {
    let long = ["longrope_scaling_short_factors", "longrope_scaling_long_factors"];
    if let (Some((_, short)), Some((_, long))) = (config.first(&[long[0]]), config.first(&[long[1]])) {
        return Ok(json!({"rope_type": "longrope", "short_factor": short, "long_factor": long,
            "short_mscale": config.positive(&["longrope_short_mscale"])?,
            "long_mscale": config.positive(&["longrope_long_mscale"])?}));
    }
    let Some((_, value)) = config.first(&["rotary_scaling"]) else { return Ok(Value::Null) };
    let kind = value.get("rope_type").or_else(|| value.get("type")).and_then(Value::as_str);
    Ok(if matches!(kind, Some("none" | "default")) { Value::Null } else { value.clone() })
}
