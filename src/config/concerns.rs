//! Which parameters are read by which role.

use super::choices::ModelRole;

use ModelRole::{Bls, Llm, LlmApi, Postprocessing, Preprocessing, Vllm};

const ALL: &[ModelRole] = &[Llm, Preprocessing, Postprocessing, Bls, LlmApi, Vllm];
const ENGINE: &[ModelRole] = &[Llm, LlmApi, Vllm];

impl ModelRole {
    /// The word of the parameter `model_role`.
    pub fn word(self) -> &'static str {
        Self::WORDS[ALL.iter().position(|role| *role == self).unwrap_or(0)]
    }

    /// Whether the role reads the parameter of this key.
    pub fn reads(self, key: &str) -> bool {
        readers(key).contains(&self)
    }
}

/// The roles that read a parameter; what is not listed is read by those with an engine.
pub fn readers(key: &str) -> &'static [ModelRole] {
    match key {
        "model_role" => ALL,
        "tokenizer_dir" => &[Llm, Preprocessing, Postprocessing, LlmApi, Vllm],
        "tokenizer_type" => &[Preprocessing, Postprocessing],
        "add_special_tokens" => &[Llm, Preprocessing, LlmApi, Vllm],
        "skip_special_tokens" => &[Llm, Postprocessing, LlmApi, Vllm],
        "multimodal_model_path" | "visual_model_path" | "max_num_images" => &[Preprocessing],
        // Upstream's template gives it to find a multimodal model's sizes.
        "gpt_model_path" => &[Llm, Preprocessing, LlmApi, Vllm],
        "accumulate_tokens"
        | "tensorrt_llm_model_name"
        | "preprocessing_model_name"
        | "postprocessing_model_name"
        | "tensorrt_llm_draft_model_name"
        | "multimodal_encoders_name" => &[Bls],
        _ => ENGINE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PARAMETERS;

    #[test]
    fn every_role_has_its_word() {
        for (role, word) in ALL.iter().zip(ModelRole::WORDS) {
            assert_eq!((role.word(), ModelRole::parse(Some(word))), (*word, Ok(*role)));
        }
    }

    #[test]
    fn every_parameter_has_a_reader() {
        assert!(PARAMETERS.iter().all(|row| !readers(row.key).is_empty()));
        assert!(Bls.reads("accumulate_tokens") && !Llm.reads("accumulate_tokens") && !Bls.reads("max_seq_len"));
    }
}
