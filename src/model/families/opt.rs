//! OPT: learned positions from row 2 on. Without the variant that has its norms behind the layers (350m).

use super::Family;
use crate::error::{Error, Result};
use crate::model::{MlpNames, ModelConfig, NormKind, QkvNames, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "opt", architectures: &["OPTForCausalLM"], model_type: "opt", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = &section
        .with_defaults(json!({"tie_word_embeddings": true, "activation_function": "relu"}))
        .with("layer_norm_eps", json!(1e-5));
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    let projected = section.count(&["word_embed_proj_dim"], 1 << 20)?.is_some_and(|dim| dim != config.hidden_size);
    let plain = section.flag("do_layer_norm_before", true)? && section.flag("layer_norm_elementwise_affine", true)?;
    if projected || !plain || section.flag("_remove_final_layer_norm", false)? {
        return Err(Error::unsupported(format!(
            "{}: an OPT with projected embeddings, or norms behind its layers, is not supported",
            section.origin()
        )));
    }
    config.norm = NormKind::Layer { bias: true };
    config.set_biases(section.flag("enable_bias", true)?);
    config.without_rope();
    config.position_offset = Some(2);
    config.names = TensorNames {
        embedding: "model.decoder.embed_tokens",
        positions: "model.decoder.embed_positions",
        layers: "model.decoder.layers",
        final_norm: "model.decoder.final_layer_norm",
        attention_norm: Some("self_attn_layer_norm"),
        mlp_norm: Some("final_layer_norm"),
        qkv: QkvNames::Separate { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
        output: "self_attn.out_proj",
        mlp: MlpNames::Plain { up: "fc1", down: "fc2" },
        ..TensorNames::STANDARD
    };
    Ok(config)
}
