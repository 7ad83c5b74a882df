//! Bloom: linear biases, a norm behind the embedding.

use super::Family;
use crate::error::{Error, Result};
use crate::model::{MlpNames, ModelConfig, NormKind, QkvNames, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "bloom", architectures: &["BloomForCausalLM"], model_type: "bloom", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let hidden = section.required_count(&["hidden_size", "n_embed"], 1 << 20)?;
    let section = section.with_defaults(json!({"tie_word_embeddings": true, "hidden_size": hidden,
        "intermediate_size": hidden.saturating_mul(4), "seq_length": 2048, "layer_norm_epsilon": 1e-5,
        "hidden_act": "bloom_gelu"}));
    if section.flag("apply_residual_connection_post_layernorm", false)? {
        return Err(Error::unsupported(format!(
            "{}: apply_residual_connection_post_layernorm is not supported",
            section.origin()
        )));
    }
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    config.norm = NormKind::Layer { bias: true };
    config.set_biases(true);
    config.set_alibi(8.0, 1.0);
    config.names = TensorNames {
        embedding: "transformer.word_embeddings",
        embedding_norm: Some("transformer.word_embeddings_layernorm"),
        attention_norm: Some("input_layernorm"),
        mlp_norm: Some("post_attention_layernorm"),
        qkv: QkvNames::PerHead("self_attention.query_key_value"),
        output: "self_attention.dense",
        mlp: MlpNames::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
        ..TensorNames::GPT
    };
    Ok(config)
}
