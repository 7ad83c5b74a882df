//! Mistral: Llama with a sliding window in every layer; Ministral 3, whose queries grow with their position.

use super::Family;
use crate::error::Result;
use crate::model::{ModelConfig, QueryGrowth, Section};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "mistral", architectures: &["MistralForCausalLM"], model_type: "mistral", configure };
pub(super) const MINISTRAL3: Family = Family {
    name: "ministral3",
    architectures: &["Ministral3ForCausalLM"],
    model_type: "ministral3",
    configure: ministral3,
};

/// Key that no folder has outside of its rotation: how fast queries grow.
pub const GROWTH: &str = "llama_4_scaling_beta";

fn configure(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(FAMILY.name, section)?;
    config.set_windows(section, 0)?;
    Ok(config)
}

fn ministral3(section: &Section) -> Result<ModelConfig> {
    let section = &section.with_defaults(json!({"rms_norm_eps": 1e-5}));
    let mut config = configure(section)?;
    config.family = MINISTRAL3.name;
    let rope = match section.section("rope_parameters")? {
        Some(rope) => Some(rope),
        None => section.section("rope_scaling")?,
    };
    let Some(rope) = rope else { return Ok(config) };
    let scale = rope.positive(&[GROWTH])?.or(section.positive(&[GROWTH])?);
    if let Some(scale) = scale {
        let keys = ["original_max_position_embeddings"];
        let period = rope.positive(&keys)?.ok_or_else(|| rope.missing(&keys))? as usize;
        config.query_growth = Some(QueryGrowth { period: period.max(1), scale, first: 0, rotated: true });
    }
    Ok(config)
}
