//! OPT: learned positions from row 2 on. One variant has projected embeddings and its norms behind the sums (350m).

use super::Family;
use crate::error::{Error, Result};
use crate::model::{MlpNames, ModelConfig, NormKind, QkvNames, Section, TensorNames};
use serde_json::json;

/// Key that no folder has: rows of the table of positions before position 0.
pub const POSITION_OFFSET: &str = "position_offset";

pub(super) const FAMILY: Family =
    Family { name: "opt", architectures: &["OPTForCausalLM"], model_type: "opt", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = &section
        .with_defaults(json!({"tie_word_embeddings": true, "activation_function": "relu"}))
        .with("layer_norm_eps", json!(1e-5));
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    if !section.flag("layer_norm_elementwise_affine", true)? {
        let origin = section.origin();
        return Err(Error::unsupported(format!("{origin}: layer_norm_elementwise_affine false is not supported")));
    }
    let size = section.count(&["word_embed_proj_dim"], 1 << 20)?;
    config.projected_embedding = size.filter(|&size| size != config.hidden_size);
    config.norm_behind_sum = !section.flag("do_layer_norm_before", true)?;
    let has_final_norm = !config.norm_behind_sum && !section.flag("_remove_final_layer_norm", false)?;
    config.norm = NormKind::Layer { bias: true };
    config.set_biases(section.flag("enable_bias", true)?);
    config.without_rope();
    config.position_offset = Some(section.index(&[POSITION_OFFSET])?.unwrap_or(2));
    config.names = TensorNames {
        embedding: "model.decoder.embed_tokens",
        positions: "model.decoder.embed_positions",
        layers: "model.decoder.layers",
        projections: ("model.decoder.project_in", "model.decoder.project_out"),
        final_norm: has_final_norm.then_some("model.decoder.final_layer_norm"),
        attention_norm: Some("self_attn_layer_norm"),
        mlp_norm: Some("final_layer_norm"),
        qkv: QkvNames::Separate { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
        output: "self_attn.out_proj",
        mlp: MlpNames::Plain { up: "fc1", down: "fc2" },
        ..TensorNames::STANDARD
    };
    Ok(config)
}
