//! A `config.json` from the metadata of a GGUF file.

use super::names::{ARCHITECTURES, Architecture};
use super::particular;
use super::{GgufModel, TextMetadata};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::model::formats::TensorStore;
use crate::model::{Section, SpecialTokens};
use serde_json::{Map, Value, json};

/// Counts: name in the metadata, name in `config.json`.
const COUNTS: [(&str, &str); 11] = [
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("context_length", "max_position_embeddings"),
    ("expert_count", "num_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
];

/// Numbers: name in the metadata, name in `config.json`.
const NUMBERS: [(&str, &str); 10] = [
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("attention.scale", "attention_multiplier"),
    ("logit_scale", "logit_scale"),
    ("expert_weights_scale", "routed_scaling_factor"),
];

/// Keys that no folder has: what a file holds otherwise than the folder of its family.
///
/// Norms with their 1 added.
pub const GGUF_NORMS: &str = "gguf_norms";
/// Matrices `[out, in]`, with queries, keys and values one behind the other.
pub const GGUF_ROWS: &str = "gguf_rows";
/// Gate, up and down of every expert apart.
pub const GGUF_EXPERTS: &str = "gguf_experts";

/// The architecture that the metadata names.
///
/// # Errors
/// Unsupported: names it, and those that are supported.
pub fn architecture(general: &Section) -> Result<&'static Architecture> {
    let name = general.text(&["general.architecture"])?.ok_or_else(|| general.missing(&["general.architecture"]))?;
    ARCHITECTURES.iter().find(|architecture| architecture.name == name).ok_or_else(|| {
        let supported: Vec<_> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        Error::unsupported(format!(
            "{}: general.architecture {name:?} is not supported; supported are {}",
            general.origin(),
            supported.join(", ")
        ))
    })
}

/// The configuration of the model's Hugging Face folder, as far as a decoder needs it.
///
/// # Errors
/// Names the metadata key, its value and the bound.
pub fn config(model: &GgufModel, metadata: &Map<String, Value>) -> Result<Section> {
    let architecture = model.architecture;
    let prefix = format!("{}.", architecture.name);
    let own = metadata.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value.clone())));
    let own = Section::from_value(format!("{}: {}", model.origin, architecture.name), Value::Object(own.collect()))?;
    let mut config = json!({
        "dtype": model.main_dtype().map(dtype_name),
        "tie_word_embeddings": !model.has("output.weight"),
        "attention_bias": model.has("blk.0.attn_q.bias") || model.has("blk.0.attn_qkv.bias"),
        "mlp_bias": model.has("blk.0.ffn_gate.bias"),
    });
    for (key, folder_key) in COUNTS {
        if let Some(count) = uniform_count(&own, key)? {
            config[folder_key] = json!(count);
        }
    }
    // Layers behind the last that guess tokens ahead.
    if let (Some(layers), Some(ahead)) = (config["num_hidden_layers"].as_u64(), own.index(&["nextn_predict_layers"])?) {
        config["num_hidden_layers"] = json!(layers.saturating_sub(ahead as u64));
    }
    let has_experts = own.index(&["expert_count"])?.is_some_and(|count| count > 0);
    let name = architecture.with_experts.filter(|_| has_experts).unwrap_or(architecture.hugging_face);
    config["architectures"] = json!([name]);
    if name == "MixtralForCausalLM" {
        config["num_local_experts"] = config["num_experts"].clone();
    }
    config["vocab_size"] = json!(model.vocab_size(&own)?);
    for (key, folder_key) in NUMBERS {
        if let Some(number) = own.positive(&[key])? {
            config[folder_key] = json!(number);
        }
    }
    if let Some(eps) = own.positive(&["attention.layer_norm_epsilon"])? {
        config["rms_norm_eps"] = json!(eps);
    }
    config["logits_scaling"] = config["logit_scale"].clone();
    [GGUF_NORMS, GGUF_ROWS, GGUF_EXPERTS].into_iter().for_each(|key| config[key] = json!(true));
    particular::complete(model, &own, &mut config)?;
    partial_rotation(&own, &mut config)?;
    config["rope_scaling"] = rope_scaling(model, &own)?;
    Section::from_value(model.origin.clone(), config)
}

/// Ids with a meaning: end of sequence, of a turn and of a message all end a text.
pub fn special_tokens(text: &TextMetadata) -> SpecialTokens {
    let id = |id: Option<usize>| id.and_then(|id| TokenId::try_from(id).ok());
    let mut tokens = SpecialTokens { bos: id(text.bos), eos: Vec::new() };
    for end in text.ends.iter().filter_map(|&end| id(Some(end))) {
        if !tokens.eos.contains(&end) {
            tokens.eos.push(end);
        }
    }
    tokens
}

fn dtype_name(dtype: DType) -> String {
    dtype.to_string()
}

/// A count, which may be given once or for every layer.
fn uniform_count(own: &Section, key: &'static str) -> Result<Option<usize>> {
    let Some((_, value)) = own.first(&[key]) else { return Ok(None) };
    let single = match value {
        Value::Array(list) => match list.split_first() {
            Some((first, rest)) if rest.iter().all(|other| other == first) => first,
            _ => {
                return Err(Error::unsupported(format!(
                    "{}: {key} differs from layer to layer, which is not supported",
                    own.origin()
                )));
            }
        },
        single => single,
    };
    let count = single.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count < 1 << 40);
    count.map(Some).ok_or_else(|| own.error(key, value, "an integer from 0 to 1099511627775"))
}

fn partial_rotation(own: &Section, config: &mut Value) -> Result<()> {
    if config["qk_rope_head_dim"].is_u64() {
        return Ok(());
    }
    let Some(rotary_dim) = own.count(&["rope.dimension_count"], 1 << 14)? else { return Ok(()) };
    let number = |key: &str| config[key].as_u64().map(|number| number as usize);
    let of_heads = || Some(number("hidden_size")? / number("num_attention_heads").filter(|heads| *heads > 0)?);
    if let Some(head_dim) = number("head_dim").or_else(of_heads).filter(|head_dim| *head_dim > 0) {
        // A fraction whose product with head_dim is not rounded down.
        let fraction = if head_dim == rotary_dim { 1.0 } else { (rotary_dim as f64 + 0.25) / head_dim as f64 };
        config["partial_rotary_factor"] = json!(fraction);
    }
    Ok(())
}

/// Factors in tensors (the scaling of Llama 3, longrope) go before types in the metadata.
fn rope_scaling(model: &GgufModel, own: &Section) -> Result<Value> {
    let original = own.positive(&["rope.scaling.original_context_length"])?;
    let attention_factor = own.positive(&["rope.scaling.attn_factor"])?;
    if let Some(factors) = model.numbers("rope_freqs.weight")? {
        // No other scaling divides frequencies by given factors and multiplies nothing.
        let context = original.or(own.positive(&["context_length"])?);
        return Ok(json!({"rope_type": "longrope", "short_factor": factors, "long_factor": factors,
            "short_mscale": 1.0, "long_mscale": 1.0, "original_max_position_embeddings": context}));
    }
    let (short, long) = (model.numbers("rope_factors_short.weight")?, model.numbers("rope_factors_long.weight")?);
    if let (Some(short), Some(long)) = (short, long) {
        return Ok(json!({"rope_type": "longrope", "short_factor": short, "long_factor": long,
            "attention_factor": attention_factor, "original_max_position_embeddings": original}));
    }
    let factor = own.positive(&["rope.scaling.factor", "rope.scale_linear"])?;
    // Of DeepSeek's models: a tenth of what both of their factors are.
    let magnitude = own.positive(&["rope.scaling.yarn_log_multiplier"])?.map(|tenth| 10.0 * tenth);
    Ok(match own.text(&["rope.scaling.type"])? {
        Some("none") | None if factor.is_none_or(|factor| factor == 1.0) => Value::Null,
        Some("linear") | None => json!({"rope_type": "linear", "factor": factor}),
        Some("yarn") => {
            json!({"rope_type": "yarn", "factor": factor, "truncate": model.architecture.name != "gpt-oss", "original_max_position_embeddings": original,
            "mscale": magnitude, "mscale_all_dim": magnitude, "attention_factor": yarn_magnitude(attention_factor, factor), "beta_fast": own.positive(&["rope.scaling.yarn_beta_fast"])?,
            "beta_slow": own.positive(&["rope.scaling.yarn_beta_slow"])?})
        }
        Some(other) => {
            return Err(Error::unsupported(format!(
                "{}: rope.scaling.type {other:?} is not supported; supported are none, linear, yarn",
                own.origin()
            )));
        }
    })
}

/// The metadata's factor comes on top of the magnitude that the scaling implies.
fn yarn_magnitude(attention_factor: Option<f64>, factor: Option<f64>) -> Option<f64> {
    Some(attention_factor? * (0.1 * factor?.max(1.0).ln() + 1.0))
}
