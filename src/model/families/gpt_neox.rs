//! GPT-NeoX and Pythia: parallel blocks with two norms.

use super::Family;
use crate::error::Result;
use crate::model::{MlpNames, ModelConfig, NormKind, QkvNames, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "gpt_neox", architectures: &["GPTNeoXForCausalLM"], model_type: "gpt_neox", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = section.with_defaults(json!({"rotary_pct": 0.25, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}));
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    config.norm = NormKind::Layer { bias: true };
    config.parallel = section.flag("use_parallel_residual", true)?;
    config.set_biases(section.flag("attention_bias", true)?);
    config.mlp_bias = true;
    config.names = TensorNames {
        embedding: "gpt_neox.embed_in",
        layers: "gpt_neox.layers",
        final_norm: Some("gpt_neox.final_layer_norm"),
        head: "embed_out",
        qkv: QkvNames::PerHead("attention.query_key_value"),
        output: "attention.dense",
        mlp: MlpNames::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
        ..TensorNames::STANDARD
    };
    Ok(config)
}
