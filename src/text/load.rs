//! The text files of a model folder. The only part of this layer that reads files.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::text::chat::{ChatFiles, ChatTemplate};
use crate::text::tokenizer::{Tokenizer, TokenizerFiles, Vocabulary};

/// Names under which a vocabulary is found, in order of preference. A name `*.x` stands for any file that ends so.
const VOCABULARIES: [&str; 8] = [
    "tokenizer.json",
    "tekken.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer.tiktoken",
    "tiktoken.model",
    "*.tiktoken",
    "*.tekken.json",
];

/// Names of vocabularies that are recognised, but not read.
const OTHERS: [&str; 3] = ["sentencepiece.bpe.model", "vocab.json", "vocab.txt"];

impl Tokenizer {
    /// Reads the tokenizer of a model folder: `tokenizer.json`, else `tekken.json`, a SentencePiece model
    /// (`tokenizer.model`, `spiece.model`) or a tiktoken file (`*.tiktoken`, `tiktoken.model`); with it, where present,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and
    /// `config.json`.
    ///
    /// # Errors
    /// One sentence with the folder, the file and what is wrong with it. Unsupported if the folder has a tokenizer, but
    /// in none of these forms.
    pub fn load(dir: &Path) -> Result<Self> {
        let context = format!("cannot load the tokenizer of {:?}", dir.display().to_string());
        tokenizer_files(dir).and_then(|files| Self::new(&files)).context(context)
    }
}

impl ChatTemplate {
    /// Reads the chat templates of a model folder: `chat_template.jinja` and `additional_chat_templates/*.jinja`, else
    /// the `chat_template` of `tokenizer_config.json`, else that of `chat_template.json`. `None` if there are none.
    ///
    /// # Errors
    /// One sentence with the folder, the file or template and what is wrong with it.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let context = format!("cannot load the chat template of {:?}", dir.display().to_string());
        chat_files(dir).and_then(|files| Self::new(&files)).context(context)
    }
}

fn tokenizer_files(dir: &Path) -> Result<TokenizerFiles> {
    Ok(TokenizerFiles {
        tokenizer: vocabulary(dir)?,
        tokenizer_config: text(dir, "tokenizer_config.json")?,
        special_tokens_map: text(dir, "special_tokens_map.json")?,
        added_tokens: text(dir, "added_tokens.json")?,
        generation_config: text(dir, "generation_config.json")?,
        config: text(dir, "config.json")?,
    })
}

fn chat_files(dir: &Path) -> Result<ChatFiles> {
    let folder = dir.join("additional_chat_templates");
    let mut additional = Vec::new();
    for name in names(&folder)? {
        if let Some(stem) = name.strip_suffix(".jinja") {
            let source = text(&folder, &name)?.unwrap_or_default();
            additional.push((stem.to_owned(), source));
        }
    }
    Ok(ChatFiles {
        jinja: text(dir, "chat_template.jinja")?,
        additional,
        tokenizer_config: text(dir, "tokenizer_config.json")?,
        special_tokens_map: text(dir, "special_tokens_map.json")?,
        json: text(dir, "chat_template.json")?,
    })
}

fn vocabulary(dir: &Path) -> Result<Vocabulary> {
    if !dir.is_dir() {
        return Err(Error::new(ErrorKind::NotFound, "there is no such folder"));
    }
    let files = names(dir)?;
    let matches = |pattern: &str, name: &str| match pattern.strip_prefix('*') {
        Some(end) => name.ends_with(end),
        None => name == pattern,
    };
    let found = VOCABULARIES.iter().find_map(|pattern| files.iter().find(|name| matches(pattern, name)));
    if let Some(name) = found {
        let bytes = fs::read(dir.join(name)).map_err(|error| unreadable(name, &error))?;
        return Vocabulary::recognise(name, bytes);
    }
    match OTHERS.iter().find(|other| files.iter().any(|name| name == *other)) {
        Some(other) => Err(Error::unsupported(format!(
            "only {other} was found, which is not supported: convert it to tokenizer.json (save_pretrained of a fast \
             tokenizer writes it)"
        ))),
        None => Err(Error::not_found("tokenizer.json is missing, and there is no other vocabulary")),
    }
}

/// Names of the files of a folder, sorted; none if there is no such folder.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::invalid(format!("the folder cannot be read: {error}"))),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::invalid(format!("the folder cannot be read: {error}")))?;
        // A name that is no text is none of those that are looked for.
        if let (true, Ok(name)) = (entry.path().is_file(), entry.file_name().into_string()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn text(dir: &Path, name: &str) -> Result<Option<String>> {
    match fs::read_to_string(dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(name, &error)),
    }
}

fn unreadable(name: &str, error: &io::Error) -> Error {
    Error::invalid(format!("{name} cannot be read: {error}"))
}
