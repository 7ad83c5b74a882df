//! What only some architectures have in their metadata.

use super::GgufModel;
use crate::error::{Error, Result};
use crate::model::Section;
use crate::model::families::{GROWTH, STANDARD_NAMES};
use serde_json::{Value, json};

/// Architectures whose layers with windows are not the same in all of their models.
const STATED_PATTERNS: [&str; 2] = ["exaone4", "olmo2"];
/// The DeepSeek models with this many experts and more have them in groups.
const GROUPED_EXPERTS: u64 = 160;
/// Value of `expert_gating_func`.
const SIGMOID: usize = 2;
/// The only Llama 4 without norms of queries and keys has so many experts; the files do not say it.
const EXPERTS_WITHOUT_HEAD_NORM: u64 = 128;
/// Chunks of Llama 4; the files do not say it.
const CHUNK: usize = 8192;
/// Layers of the only Baichuan models that do not rotate.
const BAICHUAN_WITHOUT_ROPE: u64 = 40;

/// Completes `config` by what the architecture of `model` has beside the rest.
///
/// # Errors
/// Names the metadata key that is missing or not supported.
pub(super) fn complete(model: &GgufModel, own: &Section, config: &mut Value) -> Result<()> {
    config[STANDARD_NAMES] = json!(model.architecture.standard_names);
    config["use_qk_norm"] = json!(model.has("blk.0.attn_q_norm.weight"));
    config["use_qkv_bias"] = config["attention_bias"].clone();
    config["use_parallel_residual"] = json!(own.flag("use_parallel_residual", false)?);
    windows(model, own, config)?;
    experts(model, own, config)?;
    let number = |key: &str| config[key].as_u64().filter(|&number| number > 0);
    let (layers, hidden, head_dim) = (number("num_hidden_layers"), number("hidden_size"), number("head_dim"));
    let (heads, kv_heads, experts) =
        (number("num_attention_heads"), number("num_key_value_heads"), number("num_experts"));
    let name = model.architecture.name;
    match name {
        "gemma2" | "gemma3" => {
            // The files do not say it; the largest models divide by the width of a head that they would have without
            // a head size of their own.
            let largest = matches!((name, layers), ("gemma2", Some(46)) | ("gemma3", Some(62)));
            let shared = hidden.zip(heads).map(|(hidden, heads)| hidden / heads);
            let scalar = if largest { shared } else { head_dim };
            config["query_pre_attn_scalar"] = json!(scalar);
        }
        "falcon" => {
            config["multi_query"] = json!(kv_heads == Some(1));
            config["new_decoder_architecture"] = json!(kv_heads != Some(1) && kv_heads != heads);
            config["num_kv_heads"] = json!(kv_heads);
            config["num_ln_in_parallel_attn"] = json!(if model.has("blk.0.attn_norm_2.weight") { 2 } else { 1 });
            config["bias"] = json!(model.has("blk.0.ffn_up.bias"));
        }
        "starcoder" => config["multi_query"] = json!(kv_heads == Some(1)),
        "baichuan" => config["alibi"] = json!(layers == Some(BAICHUAN_WITHOUT_ROPE)),
        "mpt" | "dbrx" => {
            let alibi = own.positive(&["attention.max_alibi_bias"])?;
            config["attn_config"] = json!({"clip_qkv": own.positive(&["attention.clamp_kqv"])?, "alibi": alibi.is_some(),
                "alibi_bias_max": alibi, "qk_ln": model.has("blk.0.attn_q_norm.weight")});
            config["no_bias"] = json!(!model.has("blk.0.ffn_up.bias"));
        }
        "llama4" => {
            config["intermediate_size_mlp"] = config["intermediate_size"].clone();
            config["intermediate_size"] = config["moe_intermediate_size"].clone();
            config["moe_layers"] = layers_with_experts(model, config);
            config["use_qk_norm"] = json!(experts != Some(EXPERTS_WITHOUT_HEAD_NORM));
            config["attention_chunk_size"] = json!(CHUNK);
        }
        "mistral3" => {
            if let Some(growth) = own.positive(&["attention.temperature_scale"])? {
                config["architectures"] = json!(["Ministral3ForCausalLM"]);
                config[GROWTH] = json!(growth);
            }
        }
        "deepseek2" => latent(model, own, config)?,
        _ => {}
    }
    Ok(())
}

fn windows(model: &GgufModel, own: &Section, config: &mut Value) -> Result<()> {
    let Some(window) = own.count(&["attention.sliding_window"], 1 << 30)? else { return Ok(()) };
    config["sliding_window"] = json!(window);
    match own.first(&["attention.sliding_window_pattern"]) {
        Some((_, Value::Array(sliding))) => {
            let kind = |slides: &Value| if *slides == json!(true) { "sliding_attention" } else { "full_attention" };
            config["layer_types"] = sliding.iter().map(kind).collect();
        }
        Some((_, period)) => config["sliding_window_pattern"] = period.clone(),
        None if STATED_PATTERNS.contains(&model.architecture.name) => {
            return Err(Error::invalid(format!(
                "{}: attention.sliding_window is {window}, but attention.sliding_window_pattern, which says the layers \
                 that have it, is not there",
                own.origin()
            )));
        }
        None => {}
    }
    if model.architecture.name == "olmo2" {
        config["architectures"] = json!(["Olmo3ForCausalLM"]);
    }
    Ok(())
}

fn experts(model: &GgufModel, own: &Section, config: &mut Value) -> Result<()> {
    if config["num_experts"].as_u64().is_none_or(|count| count == 0) {
        return Ok(());
    }
    let with = layers_with_experts(model, config);
    let layers = 0..config["num_hidden_layers"].as_u64().unwrap_or(0);
    let has = |layer: &u64| with.as_array().is_some_and(|with| with.contains(&json!(layer)));
    config["mlp_only_layers"] = layers.filter(|layer| !has(layer)).collect();
    let normalised = matches!(model.architecture.name, "qwen3moe" | "qwen3vlmoe");
    config["norm_topk_prob"] = json!(own.flag("expert_weights_norm", normalised)?);
    config["n_shared_experts"] = json!(own.index(&["expert_shared_count"])?.filter(|&count| count > 0));
    config["first_k_dense_replace"] = json!(own.index(&["leading_dense_block_count"])?);
    config["n_group"] = json!(own.index(&["expert_group_count"])?.filter(|&count| count > 0));
    config["topk_group"] = json!(own.index(&["expert_group_used_count"])?.filter(|&count| count > 0));
    let shared = own.index(&["expert_shared_feed_forward_length"])?.unwrap_or(0);
    if model.architecture.name == "granitemoe" && shared > 0 {
        return Err(Error::unsupported(format!(
            "{}: expert_shared_feed_forward_length is {shared}; shared experts of this architecture are not supported",
            own.origin()
        )));
    }
    Ok(())
}

fn layers_with_experts(model: &GgufModel, config: &Value) -> Value {
    let layers = 0..config["num_hidden_layers"].as_u64().unwrap_or(0).min(4096);
    layers.filter(|layer| model.has(&format!("blk.{layer}.ffn_gate_inp.weight"))).collect()
}

/// Sizes of compressed keys and values: in newer files the plain keys are those of the cache.
fn latent(model: &GgufModel, own: &Section, config: &mut Value) -> Result<()> {
    let size = |keys: &[&'static str]| own.required_count(keys, 1 << 16);
    let rotated = size(&["rope.dimension_count"])?;
    let head = size(&["attention.key_length_mla", "attention.key_length"])?;
    let Some(plain) = head.checked_sub(rotated).filter(|&plain| plain > 0) else {
        return Err(Error::invalid(format!(
            "{}: rope.dimension_count is {rotated}; it must be less than the length of a key, {head}",
            own.origin()
        )));
    };
    config["qk_rope_head_dim"] = json!(rotated);
    config["qk_nope_head_dim"] = json!(plain);
    config["v_head_dim"] = json!(size(&["attention.value_length_mla", "attention.value_length"])?);
    config["kv_lora_rank"] = json!(size(&["attention.kv_lora_rank"])?);
    config["q_lora_rank"] = json!(own.count(&["attention.q_lora_rank"], 1 << 20)?);
    config["attention_bias"] = json!(model.has("blk.0.attn_kv_a_mqa.bias"));
    if own.index(&["expert_gating_func"])? == Some(SIGMOID) {
        config["architectures"] = json!(["DeepseekV3ForCausalLM"]);
    } else if config["n_group"].as_u64().is_some_and(|groups| groups > 1) {
        config["topk_method"] = json!("group_limited_greedy");
    }
    warn_of_groups(own, config)
}

/// Older files leave the groups of experts out, and the choice differs with them.
fn warn_of_groups(own: &Section, config: &Value) -> Result<()> {
    let count = config["num_experts"].as_u64().unwrap_or(0);
    if count >= GROUPED_EXPERTS && own.first(&["expert_group_count"]).is_none() {
        tracing::warn!(
            "{}: expert_group_count is not there; the {count} experts are chosen as one group, which is not what \
             DeepSeek-V2 and V3 do: convert the model with a newer converter",
            own.origin()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What the log says of a file with these groups and experts.
    fn logged(own: Value, experts: usize) -> String {
        let (log, own) = (Log::default(), Section::from_value("model.gguf: deepseek2", own).unwrap());
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(Mutex::new(writer)).finish();
        tracing::subscriber::with_default(subscriber, || {
            warn_of_groups(&own, &json!({"num_experts": experts})).unwrap()
        });
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn many_experts_without_their_groups_are_warned_of() {
        assert!(
            logged(json!({}), 256).contains("model.gguf: deepseek2: expert_group_count is not there; the 256 experts")
        );
        assert_eq!(logged(json!({"expert_group_count": 8}), 256), "");
        assert_eq!(logged(json!({}), 64), "");
    }
}
