//! Phi-3, 3.5 and 4: fused projections, longrope.

use super::Family;
use crate::error::Result;
use crate::model::{MlpNames, ModelConfig, QkvNames, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "phi3", architectures: &["Phi3ForCausalLM"], model_type: "phi3", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = &section.with_defaults(json!({"rms_norm_eps": 1e-5}));
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    config.set_windows(section, 0)?;
    config.names = TensorNames {
        qkv: QkvNames::Concatenated("self_attn.qkv_proj"),
        mlp: MlpNames::Fused { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" },
        ..TensorNames::STANDARD
    };
    Ok(config)
}
