//! Tokenizers from a path, which may be that of a GGUF file.

use std::path::Path;

use crate::error::{Result, ResultExt};
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
