//! Falcon in its three layouts: 7B (one kv head), 40B and later (groups), RW (linear biases, no parallel block).

use super::Family;
use crate::error::Result;
use crate::model::formats::gguf::GGUF_ROWS;
use crate::model::{MlpNames, ModelConfig, NormKind, QkvNames, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "falcon", architectures: &["FalconForCausalLM", "RWForCausalLM"], model_type: "falcon", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let grouped = section.flag("new_decoder_architecture", false)?;
    let multi_query = section.flag("multi_query", true)?;
    let heads = section.required_count(&["num_attention_heads", "n_head"], 1 << 16)?;
    let kv_heads = match (grouped, multi_query) {
        (true, _) => section.count(&["num_kv_heads", "n_head_kv"], heads)?.unwrap_or(heads),
        (false, true) => 1,
        (false, false) => heads,
    };
    let section = section.with("num_key_value_heads", json!(kv_heads));
    let hidden = section.required_count(&["hidden_size"], 1 << 20)?;
    let section = section.with_defaults(json!({"max_position_embeddings": 2048, "activation": "gelu",
        "tie_word_embeddings": true, "ffn_hidden_size": 4 * hidden, "layer_norm_epsilon": 1e-5}));
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    config.norm = NormKind::Layer { bias: true };
    config.parallel = grouped || section.flag("parallel_attn", true)?;
    config.set_biases(section.flag("bias", false)?);
    if section.flag("alibi", false)? {
        // Scores are scaled after the biases were added.
        config.set_alibi(8.0, f64::from(config.attention_scale));
    }
    let two_norms = grouped && section.count(&["num_ln_in_parallel_attn"], 2)?.unwrap_or(2) == 2;
    let qkv = "self_attention.query_key_value";
    config.names = TensorNames {
        embedding: "transformer.word_embeddings",
        attention_norm: Some(if two_norms { "ln_attn" } else { "input_layernorm" }),
        mlp_norm: match (two_norms, config.parallel) {
            (true, _) => Some("ln_mlp"),
            (false, true) => None,
            (false, false) => Some("post_attention_layernorm"),
        },
        qkv: if section.flag(GGUF_ROWS, false)? {
            QkvNames::Concatenated(qkv)
        } else if grouped || multi_query {
            QkvNames::PerGroup(qkv)
        } else {
            QkvNames::PerHead(qkv)
        },
        output: "self_attention.dense",
        mlp: MlpNames::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
        ..TensorNames::GPT
    };
    Ok(config)
}
