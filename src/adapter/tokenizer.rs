//! Tokenizers from a path, which may be that of a GGUF file.

use std::path::Path;

use crate::error::{Result, ResultExt};
use crate::ids::TokenId;
use crate::model::formats::gguf::{GgufVocabulary, VocabularyKind};
use crate::model::formats::gguf_file;
use crate::text::{Tokenizer, TokenizerFiles, Vocabulary};

/// Reads the tokenizer of a folder, or of the GGUF file that `path` is or holds.
///
/// # Errors
/// One sentence with the path and what is wrong there.
pub fn load_tokenizer(path: &Path) -> Result<Tokenizer> {
    match gguf_file(path)? {
        Some(file) if !has_tokenizer_json(path) => {
            from_gguf(&file).context(format!("cannot load the tokenizer of {:?}", file.display().to_string()))
        }
        _ => Tokenizer::load(path),
    }
}

/// The ids of a prompt. A chat that its client rendered begins with BOS already: where the tokenizer adds its own, one of
/// them stays.
///
/// # Errors
/// If the tokenizer cannot represent the text.
pub fn encode_prompt(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>> {
    let mut ids = tokenizer.encode(text, add_special_tokens)?;
    if let Some(bos) = tokenizer.bos().filter(|_| add_special_tokens) {
        let leading = ids.iter().take_while(|&&id| id == bos.id).count();
        ids.drain(..leading.saturating_sub(1));
    }
    Ok(ids)
}

/// Whether a tokenizer lies at `path` itself, as a `tokenizer.json` or in a GGUF file.
pub fn has_tokenizer(path: &Path) -> bool {
    has_tokenizer_json(path) || matches!(gguf_file(path), Ok(Some(_)))
}

fn has_tokenizer_json(path: &Path) -> bool {
    path.join("tokenizer.json").exists()
}

fn from_gguf(file: &Path) -> Result<Tokenizer> {
    let GgufVocabulary { kind, tokenizer_config, config } = GgufVocabulary::read(file)?;
    let tokenizer = match kind {
        VocabularyKind::TokenizerJson(text) => Vocabulary::Json(text),
        VocabularyKind::SentencePiece(bytes) => Vocabulary::SentencePiece { name: "tokenizer.ggml".to_owned(), bytes },
    };
    Tokenizer::new(&TokenizerFiles {
        tokenizer,
        tokenizer_config: Some(tokenizer_config),
        config: Some(config),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_begins_with_bos_has_it_once() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/demo_model/hf");
        let tokenizer = load_tokenizer(&folder).unwrap();
        let Some(bos) = tokenizer.bos().cloned() else { panic!("the demo model has a BOS") };
        let plain = encode_prompt(&tokenizer, "Once", true).unwrap();
        assert_eq!(plain[0], bos.id, "the tokenizer adds it");
        assert_eq!(encode_prompt(&tokenizer, &format!("{}Once", bos.text), true).unwrap(), plain);
        assert_eq!(encode_prompt(&tokenizer, &format!("{0}{0}", bos.text), false).unwrap(), [bos.id; 2]);
    }
}
