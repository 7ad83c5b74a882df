//! StarCoder2: layer norms, biases everywhere, a feed-forward layer without gate.

use super::Family;
use crate::error::Result;
use crate::model::{MlpNames, ModelConfig, NormKind, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "starcoder2", architectures: &["Starcoder2ForCausalLM"], model_type: "starcoder2", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = section
        .with_defaults(json!({"tie_word_embeddings": true, "norm_epsilon": 1e-5, "hidden_act": "gelu_pytorch_tanh"}));
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    config.norm = NormKind::Layer { bias: true };
    config.set_biases(section.flag("use_bias", true)?);
    config.set_windows(&section, 0)?;
    config.names = TensorNames { mlp: MlpNames::Plain { up: "mlp.c_fc", down: "mlp.c_proj" }, ..TensorNames::STANDARD };
    Ok(config)
}
