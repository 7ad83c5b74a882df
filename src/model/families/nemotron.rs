//! Nemotron-4 and Minitron: layer norms of `1 + weight`, squared ReLU without gate.

use super::Family;
use crate::error::Result;
use crate::model::formats::gguf::GGUF_NORMS;
use crate::model::{MlpNames, ModelConfig, NormKind, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "nemotron", architectures: &["NemotronForCausalLM"], model_type: "nemotron", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = section.with_defaults(json!({"partial_rotary_factor": 0.5, "norm_eps": 1e-5, "hidden_act": "relu2"}));
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    let has_one = section.flag(GGUF_NORMS, false)?;
    config.norm = if has_one { NormKind::Layer { bias: true } } else { NormKind::LayerPlusOne };
    config.qkv_bias = section.flag("attention_bias", false)?;
    config.output_bias = config.qkv_bias;
    config.mlp_bias = section.flag("mlp_bias", false)?;
    config.names =
        TensorNames { mlp: MlpNames::Plain { up: "mlp.up_proj", down: "mlp.down_proj" }, ..TensorNames::STANDARD };
    Ok(config)
}
