//! GPT-2 and GPTBigCode (StarCoder 1, SantaCoder): learned positions, layer norms, no gate.

use super::Family;
use crate::error::{Error, Result};
use crate::model::formats::gguf::GGUF_ROWS;
use crate::model::{ModelConfig, NormKind, QkvNames, Section, TensorNames};
use serde_json::json;

pub(super) const GPT2: Family =
    Family { name: "gpt2", architectures: &["GPT2LMHeadModel"], model_type: "gpt2", configure: gpt2 };
pub(super) const BIG_CODE: Family = Family {
    name: "gpt_bigcode",
    architectures: &["GPTBigCodeForCausalLM"],
    model_type: "gpt_bigcode",
    configure: big_code,
};

/// Keys that are not in every file, with the values of the first releases.
pub(super) fn with_defaults(section: &Section, activation: &str) -> Result<Section> {
    let hidden = section.required_count(&["hidden_size", "n_embd", "d_model"], 1 << 20)?;
    Ok(section.with_defaults(json!({"tie_word_embeddings": true, "n_inner": 4 * hidden, "layer_norm_epsilon": 1e-5,
        "activation_function": activation})))
}

fn gpt2(section: &Section) -> Result<ModelConfig> {
    let section = with_defaults(section, "gelu_new")?;
    for (key, expected) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)] {
        if section.flag(key, expected)? != expected {
            return Err(Error::unsupported(format!("{}: {key} must be {expected}", section.origin())));
        }
    }
    let mut config = ModelConfig::from_section(GPT2.name, &section)?;
    config.norm = NormKind::Layer { bias: true };
    config.set_biases(true);
    config.without_rope();
    config.position_offset = Some(0);
    config.names = TensorNames { transposed: !section.flag(GGUF_ROWS, false)?, ..TensorNames::GPT };
    Ok(config)
}

fn big_code(section: &Section) -> Result<ModelConfig> {
    let multi_query = section.flag("multi_query", true)?;
    let mut section = with_defaults(section, "gelu_pytorch_tanh")?;
    if multi_query {
        section = section.with("num_key_value_heads", json!(1));
    }
    let mut config = ModelConfig::from_section(BIG_CODE.name, &section)?;
    config.norm = NormKind::Layer { bias: true };
    config.set_biases(true);
    config.without_rope();
    config.position_offset = Some(0);
    config.names = TensorNames::GPT;
    if !multi_query {
        config.names.qkv = QkvNames::PerHead("attn.c_attn");
    }
    Ok(config)
}
