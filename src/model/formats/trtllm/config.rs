//! The `config.json` of a TensorRT-LLM checkpoint in the words of a Hugging Face folder.

use super::layout::{Layout, num_experts};
use crate::error::{Error, Result};
use crate::model::Section;
use crate::model::families::{POSITION_OFFSET, STANDARD_NAMES};
use crate::model::formats::gguf::GGUF_NORMS;
use serde_json::{Value, json};

/// What the tensors say of a model.
pub(super) struct Traits {
    pub has_head: bool,
    pub has_attention_bias: bool,
    pub has_mlp_bias: bool,
    /// A norm before the feed-forward layer.
    pub has_mlp_norm: bool,
    /// Rows of the table of learned positions.
    pub positions: Option<usize>,
    /// Intermediate size of an expert.
    pub expert_size: Option<usize>,
    /// Layers without experts.
    pub dense_layers: Vec<usize>,
}

/// Modes of the weights of experts.
const AS_THEY_ARE: usize = 0;
const RENORMALIZE: usize = 1;
const DEVICE_LIMITED: usize = 3;
const DEVICE_LIMITED_RENORM: usize = 4;
/// Architectures with compressed keys and experts in groups.
const LATENT: [&str; 2] = ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"];
/// Architectures whose weights of experts may stay as they are.
const EITHER_MODE: [&str; 2] = ["Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"];
/// Keys with the names and meanings of the Hugging Face folder.
const SAME: [&str; 24] = [
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "first_k_dense_replace",
    "moe_layer_freq",
    "sliding_window",
    "layer_types",
    "eos_token_id",
    "bos_token_id",
    "embedding_multiplier",
    "residual_multiplier",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "sliding_window_pattern",
    "rope_local_base_freq",
    "do_layer_norm_before",
    "new_decoder_architecture",
    "rotary_dim",
    "use_parallel_residual",
    "original_max_position_embeddings",
    "rope_ratio",
];

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
pub(super) fn folder_config(config: &Section, layout: &Layout, traits: &Traits) -> Result<Section> {
    let architecture = layout.hugging_face;
    let positions = config.text(&["position_embedding_type"])?;
    if let Some(kind) = positions.filter(|kind| !layout.positions.contains(kind)) {
        return Err(Error::unsupported(format!(
            "{}: position_embedding_type {kind} is not supported with {architecture}; supported are {}",
            config.origin(),
            layout.positions.join(", ")
        )));
    }
    let hidden_size = config.required_count(&["hidden_size"], 1 << 20)?;
    let max_positions = config.required_count(&["max_position_embeddings", "seq_length"], 1 << 30)?;
    let mut folder = json!({
        STANDARD_NAMES: true,
        GGUF_NORMS: true,
        "architectures": [architecture],
        "dtype": config.text(&["dtype"])?,
        "hidden_size": hidden_size,
        "num_hidden_layers": config.required_count(&["num_hidden_layers"], 4096)?,
        "num_attention_heads": config.required_count(&["num_attention_heads"], 1 << 16)?,
        "num_key_value_heads": config.count(&["num_key_value_heads"], 1 << 16)?,
        "head_dim": config.count(&["head_size"], 1 << 14)?,
        "intermediate_size": config.count(&["intermediate_size"], 1 << 24)?.unwrap_or(4 * hidden_size),
        "vocab_size": config.required_count(&["vocab_size"], 1 << 26)?,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": config.positive(&["norm_epsilon"])?.unwrap_or(1e-5),
        "hidden_act": hidden_act(config, architecture)?,
        "tie_word_embeddings": !traits.has_head || config.flag("share_embedding_table", false)?,
        "attention_bias": traits.has_attention_bias,
        "qkv_bias": traits.has_attention_bias,
        "use_bias": traits.has_mlp_bias,
        "enable_bias": traits.has_mlp_bias,
        "bias": traits.has_mlp_bias,
        "mlp_bias": traits.has_mlp_bias,
        "rope_theta": config.positive(&["rotary_base", "rotary_emb_base", "rope_theta"])?,
        "rope_scaling": rope_scaling(config)?,
        "partial_rotary_factor": rotary_fraction(config)?,
    });
    for key in SAME {
        if let Some((_, value)) = config.first(&[key]) {
            folder[key] = value.clone();
        }
    }
    if config.is_null("q_lora_rank") {
        folder["q_lora_rank"] = Value::Null;
    }
    if num_experts(config)? > 0 {
        experts(config, architecture, traits, &mut folder)?;
    }
    let is_biased = positions.is_some_and(|kind| kind.starts_with("alibi"));
    particular(config, architecture, (traits, is_biased), &mut folder)?;
    Section::from_value(config.origin(), folder)
}

/// What only some architectures have.
fn particular(
    config: &Section,
    architecture: &str,
    (traits, alibi): (&Traits, bool),
    folder: &mut Value,
) -> Result<()> {
    let kv_heads = folder["num_key_value_heads"].as_u64();
    let scale = config.positive(&["output_multiplier_scale"])?;
    match architecture {
        "GraniteForCausalLM" | "GraniteMoeForCausalLM" => {
            folder["logits_scaling"] = json!(scale.map(|scale| 1.0 / scale));
            // Stored as a factor of what the head size gives.
            let head_dim = match config.count(&["head_size"], 1 << 14)? {
                Some(dim) => dim as f64,
                None => folder["hidden_size"]
                    .as_f64()
                    .zip(folder["num_attention_heads"].as_f64())
                    .map_or(1.0, |(c, h)| c / h),
            };
            let multiplier = config.positive(&["attention_multiplier"])?;
            folder["attention_multiplier"] = json!(multiplier.map(|factor| factor / head_dim.sqrt()));
        }
        "CohereForCausalLM" => {
            folder["logit_scale"] = json!(scale);
            folder["use_qk_norm"] = json!(config.flag("qk_layernorm", false)?);
        }
        "FalconForCausalLM" => {
            folder["multi_query"] = json!(kv_heads == Some(1));
            folder["num_kv_heads"] = json!(kv_heads);
            folder["parallel_attn"] = json!(config.flag("parallel_attention", true)?);
            folder["num_ln_in_parallel_attn"] = json!(if traits.has_mlp_norm { 2 } else { 1 });
            folder["alibi"] = json!(alibi);
        }
        "MPTForCausalLM" | "DbrxForCausalLM" => {
            folder["attn_config"] = json!({"clip_qkv": config.positive(&["clip_qkv"])?, "alibi": alibi,
                "alibi_bias_max": config.positive(&["alibi_bias_max"])?});
            folder["no_bias"] = json!(!traits.has_mlp_bias);
        }
        "GlmForCausalLM" => {
            let version = config.text(&["chatglm_version"])?.unwrap_or("chatglm3");
            if !["chatglm2", "chatglm3", "glm4"].iter().any(|known| version.starts_with(known)) {
                return Err(Error::unsupported(format!(
                    "{}: chatglm_version {version} is not supported; supported are chatglm2, chatglm3 and glm4",
                    config.origin()
                )));
            }
            if config.first(&["rotary_base"]).is_none() {
                folder["rope_theta"] = json!(10_000.0 * config.positive(&["rope_ratio"])?.unwrap_or(1.0));
            }
        }
        "BaichuanForCausalLM" => folder["alibi"] = json!(alibi),
        "GPTBigCodeForCausalLM" => folder["multi_query"] = json!(kv_heads == Some(1)),
        "OPTForCausalLM" => {
            let rows = traits.positions.unwrap_or(0);
            let longest = folder["max_position_embeddings"].as_u64().map_or(rows, |longest| longest as usize);
            folder[POSITION_OFFSET] = json!(rows.saturating_sub(longest));
        }
        _ => {}
    }
    Ok(())
}

/// # Errors
/// Unsupported: weights of experts that are neither divided by their sum nor, where the family knows that, left as they
/// are.
fn experts(config: &Section, architecture: &str, traits: &Traits, folder: &mut Value) -> Result<()> {
    let (moe, count, mode) = match config.section("moe")? {
        Some(moe) => (moe, "top_k", "normalization_mode"),
        None => (config.clone(), "moe_top_k", "moe_normalization_mode"),
    };
    let found = moe.index(&[mode])?.unwrap_or(RENORMALIZE);
    if LATENT.contains(&architecture) {
        return grouped_experts(config, &moe, traits, folder);
    }
    if found != RENORMALIZE && !(found == AS_THEY_ARE && EITHER_MODE.contains(&architecture)) {
        let origin = moe.origin();
        return Err(Error::unsupported(format!(
            "{origin}: {mode} {found} is not supported with {architecture}; {RENORMALIZE} is"
        )));
    }
    folder["num_experts"] = json!(num_experts(config)?);
    folder["num_experts_per_tok"] = json!(moe.count(&[count], 1 << 16)?);
    folder["norm_topk_prob"] = json!(found == RENORMALIZE);
    folder["moe_intermediate_size"] = json!(traits.expert_size);
    folder["mlp_only_layers"] = json!(traits.dense_layers);
    let shared = moe.index(&["shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"])?;
    let shared = shared.or(config.index(&["moe_shared_expert_intermediate_size"])?);
    folder["shared_expert_intermediate_size"] = json!(shared.filter(|&size| size > 0));
    Ok(())
}

/// Experts of DeepSeek's models: in groups, beside shared ones.
fn grouped_experts(config: &Section, moe: &Section, traits: &Traits, folder: &mut Value) -> Result<()> {
    let mode = moe.index(&["normalization_mode"])?.unwrap_or(AS_THEY_ARE);
    let method = config.text(&["topk_method"])?;
    let is_limited = mode == DEVICE_LIMITED || mode == DEVICE_LIMITED_RENORM;
    folder["num_experts"] = json!(num_experts(config)?);
    folder["num_experts_per_tok"] = json!(moe.count(&["top_k"], 1 << 16)?);
    folder["topk_method"] = json!(method.unwrap_or(if is_limited { "group_limited_greedy" } else { "greedy" }));
    folder["n_group"] = json!(moe.index(&["device_limited_n_group"])?.filter(|&groups| groups > 0));
    folder["topk_group"] = json!(moe.index(&["device_limited_topk_group"])?.filter(|&groups| groups > 0));
    folder["routed_scaling_factor"] = json!(moe.positive(&["device_limited_routed_scaling_factor"])?);
    // The experts of V3 are always divided by their sum, whatever was written.
    folder["norm_topk_prob"] =
        json!(method == Some("noaux_tc") || mode == RENORMALIZE || mode == DEVICE_LIMITED_RENORM);
    folder["moe_intermediate_size"] = json!(traits.expert_size);
    folder["mlp_only_layers"] = json!(traits.dense_layers);
    let shared = moe.index(&["shared_expert_intermediate_size"])?.unwrap_or(0);
    let size = traits.expert_size.unwrap_or(1).max(1);
    if !shared.is_multiple_of(size) {
        return Err(Error::invalid(format!(
            "{}: shared_expert_intermediate_size is {shared}; it must be a multiple of the size of an expert, {size}",
            moe.origin()
        )));
    }
    folder["n_shared_experts"] = json!(Some(shared / size).filter(|&count| count > 0));
    Ok(())
}

/// The gated forms have names of their own. Of models that only know the formula with tanh, it is called plainly gelu.
fn hidden_act<'a>(config: &'a Section, architecture: &str) -> Result<Option<&'a str>> {
    let tanh = ["BloomForCausalLM", "Starcoder2ForCausalLM"].contains(&architecture);
    Ok(match config.text(&["hidden_act"])? {
        Some("swiglu") => Some("silu"),
        Some("geglu") => Some("gelu_pytorch_tanh"),
        Some("squared-relu") => Some("relu2"),
        Some("gelu") if tanh => Some("gelu_pytorch_tanh"),
        other => other,
    })
}

fn rotary_fraction(config: &Section) -> Result<Option<f64>> {
    config.positive(&["rotary_pct", "partial_rotary_factor", "rotary_fraction"])
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
