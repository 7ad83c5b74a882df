//! What the models around the LLM compute: plain functions from named tensors to named tensors.

mod bls;
mod model;
mod postprocessing;
mod preprocessing;
mod prompts;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub use bls::{BlsModel, complete as complete_bls, config_template as bls_template};
pub use model::{RoleModel, complete};
pub use postprocessing::Postprocessor;
pub use preprocessing::Preprocessor;
pub use prompts::{complete_prompts, interface, prompts_markdown};

use crate::adapter::tensor::NamedTensor;
use crate::adapter::tokenizer;
use crate::config::is_placeholder;
use crate::error::{Error, Result};
use crate::tensors::Row;
use crate::text::Tokenizer;

/// The parameters of a model: `parameters.<key>.string_value` of its config, by key.
pub type Parameters = BTreeMap<String, String>;

/// The value of a parameter; none if it is missing, empty or still a `${placeholder}`.
fn parameter<'a>(parameters: &'a Parameters, key: &str) -> Option<&'a str> {
    parameters.get(key).map(|value| value.trim()).filter(|value| !value.is_empty() && !value.starts_with("${"))
}

fn load_tokenizer(parameters: &Parameters) -> Result<Arc<Tokenizer>> {
    let dir = parameter(parameters, "tokenizer_dir").ok_or_else(|| {
        let got = parameters.get("tokenizer_dir").map_or("nothing".to_owned(), |value| format!("{value:?}"));
        Error::invalid(format!("parameter `tokenizer_dir` must be a folder with a tokenizer.json, got {got}"))
    })?;
    tokenizer::load_tokenizer(Path::new(dir)).map(Arc::new)
}

/// A yes-or-no parameter, true by default; a word that is neither yes nor no is logged and means true.
fn flag(parameters: &Parameters, key: &str) -> bool {
    let Some(value) = parameters.get(key) else { return true };
    match value.trim().to_lowercase().as_str() {
        "true" | "1" | "t" | "y" | "yes" => true,
        "false" | "0" | "f" | "n" | "no" => false,
        _ => {
            if !is_placeholder(value) {
                tracing::warn!("parameter `{key}` is {value:?}, which is neither true nor false: using true");
            }
            true
        }
    }
}

fn find<'a>(inputs: &'a [NamedTensor], name: &str) -> Option<&'a NamedTensor> {
    inputs.iter().find(|input| input.name == name)
}

fn require<'a>(inputs: &'a [NamedTensor], name: &str) -> Result<&'a NamedTensor> {
    find(inputs, name).ok_or_else(|| Error::invalid(format!("input `{name}` is missing")))
}

fn refuse_unknown<'a>(inputs: &[NamedTensor], known: impl Iterator<Item = &'a Row>) -> Result<()> {
    let known: Vec<_> = known.map(|row| row.0).collect();
    match inputs.iter().find(|input| !known.contains(&input.name.as_str())) {
        Some(input) => Err(Error::invalid(format!("input `{}` is unknown, expected {}", input.name, known.join(", ")))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_take_the_words_of_upstream() {
        let flag_of =
            |word: &str| flag(&Parameters::from([("skip_special_tokens".into(), word.into())]), "skip_special_tokens");
        for word in ["true", "True", "1", "t", "Y", "yes", "${skip_special_tokens}", "", "maybe"] {
            assert!(flag_of(word), "{word}");
        }
        for word in ["false", "FALSE", "0", "f", "n", "No"] {
            assert!(!flag_of(word), "{word}");
        }
        assert!(flag(&Parameters::new(), "skip_special_tokens"));
    }

    #[test]
    fn a_missing_or_unfilled_tokenizer_dir_is_named() {
        for parameters in [Parameters::new(), Parameters::from([("tokenizer_dir".into(), "${tokenizer_dir}".into())])] {
            let error = Postprocessor::new(&parameters).err().unwrap();
            assert!(error.message().starts_with("parameter `tokenizer_dir` must be a folder"), "{error}");
        }
    }
}
