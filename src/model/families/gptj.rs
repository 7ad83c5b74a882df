//! GPT-J: parallel blocks off one norm, interleaved rotation, a head with bias.

use super::Family;
use super::gpt2::with_defaults;
use crate::device::RopeStyle;
use crate::error::Result;
use crate::model::{MlpNames, ModelConfig, NormKind, QkvNames, Section, TensorNames};
use serde_json::json;

pub(super) const FAMILY: Family =
    Family { name: "gptj", architectures: &["GPTJForCausalLM"], model_type: "gptj", configure };

fn configure(section: &Section) -> Result<ModelConfig> {
    let section = section.with_defaults(json!({"tie_word_embeddings": false, "rotary_dim": 64}));
    let section = with_defaults(&section, "gelu_new")?;
    let hidden = section.required_count(&["n_embd", "hidden_size"], 1 << 20)?;
    let heads = section.required_count(&["n_head", "num_attention_heads"], 1 << 16)?;
    let rotary_dim = section.required_count(&["rotary_dim"], 1 << 14)?;
    // Half an element more, so that rounding down gives that number again.
    let fraction = (rotary_dim as f64 + 0.5) * heads as f64 / hidden as f64;
    let fraction = if rotary_dim * heads == hidden { 1.0 } else { fraction };
    let mut config = ModelConfig::from_section(FAMILY.name, &section.with("partial_rotary_factor", json!(fraction)))?;
    config.norm = NormKind::Layer { bias: true };
    config.parallel = true;
    config.rope_style = RopeStyle::Interleaved;
    config.mlp_bias = true;
    config.head_bias = true;
    config.names = TensorNames {
        mlp_norm: None,
        qkv: QkvNames::Separate { query: "attn.q_proj", key: "attn.k_proj", value: "attn.v_proj" },
        output: "attn.out_proj",
        mlp: MlpNames::Plain { up: "mlp.fc_in", down: "mlp.fc_out" },
        ..TensorNames::GPT
    };
    Ok(config)
}
