//! Llama under other names: Baichuan 1 and 2, InternLM 1 to 3, Qwen 1.

use super::Family;
use crate::error::Result;
use crate::model::{MlpNames, ModelConfig, QkvNames, Section, TensorNames};
use serde_json::json;

pub(super) const BAICHUAN: Family = Family {
    name: "baichuan",
    architectures: &["BaichuanForCausalLM", "BaiChuanForCausalLM"],
    model_type: "baichuan",
    configure: baichuan,
};
pub(super) const INTERNLM: Family =
    Family { name: "internlm", architectures: &["InternLMForCausalLM"], model_type: "internlm", configure: internlm };
pub(super) const INTERNLM3: Family = Family {
    name: "internlm3",
    architectures: &["InternLM3ForCausalLM"],
    model_type: "internlm3",
    configure: internlm3,
};
pub(super) const INTERNLM2: Family = Family {
    name: "internlm2",
    architectures: &["InternLM2ForCausalLM"],
    model_type: "internlm2",
    configure: internlm2,
};
pub(super) const QWEN: Family =
    Family { name: "qwen", architectures: &["QWenLMHeadModel"], model_type: "qwen", configure: qwen };

/// Vocabulary of Baichuan 2, the rows of whose head are divided by their lengths.
const BAICHUAN2_VOCABULARY: usize = 125_696;
/// Hidden size of the 7B models, the ones that rotate.
const BAICHUAN_ROTATING: usize = 4096;

fn baichuan(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(BAICHUAN.name, section)?;
    config.unit_head = config.vocab_size == BAICHUAN2_VOCABULARY || section.first(&["z_loss_weight"]).is_some();
    if section.flag("alibi", config.hidden_size > BAICHUAN_ROTATING)? {
        config.set_alibi(8.0, 1.0);
    }
    config.names = TensorNames { qkv: QkvNames::Concatenated("self_attn.W_pack"), ..TensorNames::STANDARD };
    Ok(config)
}

fn internlm(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(INTERNLM.name, section)?;
    config.qkv_bias = section.flag("bias", true)?;
    config.output_bias = config.qkv_bias;
    Ok(config)
}

fn internlm3(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(INTERNLM3.name, section)?;
    config.qkv_bias = section.flag("qkv_bias", false)?;
    config.output_bias = section.flag("bias", false)?;
    config.mlp_bias = config.output_bias;
    Ok(config)
}

fn internlm2(section: &Section) -> Result<ModelConfig> {
    let mut config = ModelConfig::from_section(INTERNLM2.name, section)?;
    config.qkv_bias = section.flag("bias", false)?;
    config.output_bias = config.qkv_bias;
    config.names = TensorNames {
        embedding: "model.tok_embeddings",
        head: "output",
        attention_norm: Some("attention_norm"),
        mlp_norm: Some("ffn_norm"),
        qkv: QkvNames::PerGroup("attention.wqkv"),
        output: "attention.wo",
        mlp: MlpNames::Gated { gate: "feed_forward.w1", up: "feed_forward.w3", down: "feed_forward.w2" },
        ..TensorNames::STANDARD
    };
    Ok(config)
}

/// Longer sequences than it was trained for (`seq_length`) would change rotation and scores; they are refused.
fn qwen(section: &Section) -> Result<ModelConfig> {
    let both = section.required_count(&["intermediate_size"], 1 << 24)?;
    let longest = |key: &'static str| section.count(&[key], 1 << 30);
    let trained = longest("max_position_embeddings")?.into_iter().chain(longest("seq_length")?).min();
    let section = section.with("intermediate_size", json!(both / 2)).with("max_position_embeddings", json!(trained));
    let mut config = ModelConfig::from_section(QWEN.name, &section)?;
    config.qkv_bias = true;
    config.names =
        TensorNames { mlp: MlpNames::Gated { gate: "mlp.w2", up: "mlp.w1", down: "mlp.c_proj" }, ..TensorNames::GPT };
    Ok(config)
}
