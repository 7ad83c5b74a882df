//! Phi-1, 1.5 and 2: parallel blocks off one norm, partial rotation, biases everywhere.

use super::Family;
use crate::error::{Error, Result};
use crate::model::{MlpNames, ModelConfig, NormKind, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "phi", architectures: &["PhiForCausalLM"], model_type: "phi", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section =
        section.with_defaults(json!({"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}));
    if section.flag("qk_layernorm", false)? {
        return Err(Error::unsupported(format!("{}: qk_layernorm is not supported", section.origin())));
    }
    let mut config = ModelConfig::from_section(FAMILY.name, &section)?;
    config.norm = NormKind::Layer { bias: true };
    config.parallel = true;
    config.set_biases(true);
    config.head_bias = true;
    config.names = TensorNames {
        final_norm: Some("model.final_layernorm"),
        mlp_norm: None,
        output: "self_attn.dense",
        mlp: MlpNames::Plain { up: "mlp.fc1", down: "mlp.fc2" },
        ..TensorNames::STANDARD
    };
    Ok(config)
}
