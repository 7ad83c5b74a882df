//! Text to tokens and back, as the model's `tokenizer.json` defines it; other forms are made into one.

use std::borrow::Cow;
use std::panic;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::{PaddingParams, TruncationParams};

use crate::error::{Error, Result, ResultExt};
use crate::ids::TokenId;
use crate::text::decoder::{Piece, Program, State};
use crate::text::special::{SideFiles, SpecialToken, add_missing, apply_bos_eos_flags, check_ids, parse};
use crate::text::{sentencepiece, tiktoken};

/// Ids beyond this bound mean a broken file: the largest vocabularies have less than 2^19 entries.
const MAX_TOKEN_ID: u32 = 1 << 24;

/// How a file begins that stands for one that was not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// The contents of the file that holds the vocabulary.
#[derive(Clone, Debug)]
pub enum Vocabulary {
    /// `tokenizer.json`
    Json(String),
    /// A SentencePiece model (`tokenizer.model`, `spiece.model`), Unigram or BPE.
    SentencePiece { name: String, bytes: Vec<u8> },
    /// A tiktoken file: lines of a token in base64 and its rank.
    Tiktoken { name: String, text: String },
    /// Mistral's `tekken.json`.
    Tekken { name: String, text: String },
}

/// The contents of a model folder's tokenizer files; all but the first may be absent.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`, or what there is instead
    pub tokenizer: Vocabulary,
    /// `tokenizer_config.json`
    pub tokenizer_config: Option<String>,
    /// `special_tokens_map.json`
    pub special_tokens_map: Option<String>,
    /// `generation_config.json`
    pub generation_config: Option<String>,
    /// `config.json`
    pub config: Option<String>,
    /// `added_tokens.json`
    pub added_tokens: Option<String>,
}

/// A tokenizer with its special tokens. Immutable; share it in an `Arc`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    program: Program,
    pieces: Pieces,
    vocab_size: usize,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    pad: Option<SpecialToken>,
    eos_ids: Vec<TokenId>,
}

impl Tokenizer {
    /// Builds the tokenizer from the contents of its files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn new(files: &TokenizerFiles) -> Result<Self> {
        let mut side = SideFiles {
            tokenizer_config: parse("tokenizer_config.json", files.tokenizer_config.as_deref())?,
            special_tokens_map: parse("special_tokens_map.json", files.special_tokens_map.as_deref())?,
            generation_config: parse("generation_config.json", files.generation_config.as_deref())?,
            config: parse("config.json", files.config.as_deref())?,
            added_tokens: Value::Null,
        };
        let name = files.tokenizer.name();
        let is_converted = !matches!(files.tokenizer, Vocabulary::Json(_));
        if is_converted {
            side.added_tokens = parse("added_tokens.json", files.added_tokens.as_deref())?;
        }
        let json = files.tokenizer.to_json(&mut side)?;
        let mut inner = parse_tokenizer(name, &json)?;
        // A tokenizer.json may carry the padding and truncation of its training run; they do not apply to prompts.
        inner.with_padding(None::<PaddingParams>);
        inner.with_truncation(None::<TruncationParams>).map_err(|error| Error::internal(error.to_string()))?;
        add_missing(&mut inner, &side)?;
        if is_converted {
            check_ids(&inner, &side).map_err(|error| Error::new(error.kind(), format!("{name} {error}")))?;
        }
        apply_bos_eos_flags(&mut inner, &side, is_converted)?;
        let program = Program::compile(inner.get_decoder()).context(name)?;
        let pieces = Pieces::build(&inner, &program).context(name)?;
        let vocab_size = inner.get_vocab_size(true);
        let mut tokenizer =
            Self { inner, program, pieces, vocab_size, bos: None, eos: None, pad: None, eos_ids: Vec::new() };
        tokenizer.set_special_tokens(&side)?;
        Ok(tokenizer)
    }

    /// The ids of `text`; with `add_special_tokens` also those that the tokenizer puts around a text (BOS …).
    ///
    /// # Errors
    /// If the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|error| Error::invalid(format!("cannot tokenize the text: {error}")))?;
        Ok(encoding.get_ids().iter().map(|&id| id as TokenId).collect())
    }

    /// The ids of a rendered chat: its special tokens are parsed, and nothing is put around it, as in
    /// `apply_chat_template`. Where it begins with BOS twice, because a message repeats what the template writes, one
    /// of them is dropped.
    ///
    /// # Errors
    /// If the tokenizer cannot represent the text.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<TokenId>> {
        let mut ids = self.encode(rendered, false)?;
        if let Some(bos) = &self.bos {
            let leading = ids.iter().take_while(|&&id| id == bos.id).count();
            ids.drain(..leading.saturating_sub(1));
        }
        Ok(ids)
    }

    /// The text of `ids`; with `skip_special_tokens` without the special ones. Ids that are not in the vocabulary
    /// give nothing. The same bytes as Hugging Face's `decode` without clean-up, except that in a run of more than
    /// 32 byte-fallback tokens an invalid byte does not reach back to the beginning of the run.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> String {
        let mut state = self.start();
        let mut text = String::new();
        ids.iter().for_each(|&id| self.step(&mut state, id, skip_special_tokens, &mut text));
        self.finish(&mut state, &mut text);
        text
    }

    /// Number of entries of the vocabulary, added tokens included. Rows of the model's logits may be longer.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Tokens of the vocabulary proper, without those that were added behind it.
    pub fn own_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// Whether it can be that of a model. Tokens added behind a vocabulary may be more than the model has: texts rarely
    /// have them.
    ///
    /// # Errors
    /// `InvalidArg` for that of another model: it gives ids that this one has no embeddings for.
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<()> {
        if self.own_size() > vocab_size {
            return Err(Error::invalid(format!(
                "the tokenizer has {} tokens, but the vocabulary of the model {vocab_size}: it is that of another model \
                 (tokenizer_dir, or the files beside the model)",
                self.own_size()
            )));
        }
        Ok(())
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// The end-of-sequence token.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// The padding token; the end-of-sequence token where there is none.
    pub fn pad(&self) -> Option<&SpecialToken> {
        self.pad.as_ref()
    }

    /// Every id that ends a sequence: the end-of-sequence token first, then those of the generation and model config.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.eos_ids
    }

    /// The id of the vocabulary entry spelled exactly `token`.
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token).map(|id| id as TokenId)
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.pieces.flags(id) & SPECIAL != 0
    }

    /// The bytes that `id` contributes in the middle of a text; `None` if it is not in the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.pieces.piece(id).map(|piece| match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::RunByte(byte) => std::slice::from_ref(byte),
        })
    }

    pub(super) fn start(&self) -> State {
        self.program.start()
    }

    /// Appends to `out` the text that is certain after `id`.
    pub(super) fn step(&self, state: &mut State, id: TokenId, skip_special_tokens: bool, out: &mut String) {
        let Some(piece) = self.pieces.piece(id) else { return };
        if skip_special_tokens && self.is_special(id) {
            return;
        }
        if state.started() || !self.program.first_differs() {
            return state.push(&self.program, piece, out);
        }
        let token = self.inner.id_to_token(id as u32).unwrap_or_default();
        match self.program.piece(&token, true) {
            Ok((bytes, true)) if bytes.len() == 1 => state.push(&self.program, Piece::RunByte(&bytes[0]), out),
            Ok((bytes, _)) => state.push(&self.program, Piece::Bytes(&bytes), out),
            Err(_) => state.push(&self.program, piece, out),
        }
    }

    pub(super) fn finish(&self, state: &mut State, out: &mut String) {
        state.finish(&self.program, out);
    }

    fn set_special_tokens(&mut self, side: &SideFiles) -> Result<()> {
        let eos_ids = side.token_ids("eos_token_id")?;
        self.eos = self.special_token(side.token_text("eos_token"), eos_ids.first())?;
        self.bos = self.special_token(side.token_text("bos_token"), side.token_ids("bos_token_id")?.first())?;
        self.pad = self.special_token(side.token_text("pad_token"), None)?.or_else(|| self.eos.clone());
        self.eos_ids = self.eos.iter().map(|eos| eos.id).collect();
        for id in eos_ids {
            if !self.eos_ids.contains(&id) {
                self.eos_ids.push(id);
            }
        }
        Ok(())
    }

    /// The token spelled `text`, else the one with the id that the model's config names. Its id is the first one
    /// that its text encodes to.
    fn special_token(&self, text: Option<&str>, id: Option<&TokenId>) -> Result<Option<SpecialToken>> {
        let named = || id.and_then(|&id| self.inner.id_to_token(u32::try_from(id).ok()?));
        let Some(text) = text.map(str::to_owned).or_else(named) else { return Ok(None) };
        let id = self.encode(&text, false)?.first().copied();
        Ok(id.map(|id| SpecialToken { text, id }))
    }
}

impl Vocabulary {
    /// The vocabulary in the file `name`: its name says which form it has, for `.model` files their first bytes.
    ///
    /// # Errors
    /// If a file that must be text is not UTF-8.
    pub fn recognise(name: &str, bytes: Vec<u8>) -> Result<Self> {
        let name = name.to_owned();
        if bytes.starts_with(LFS_POINTER) {
            return Err(Error::invalid(format!("{name} is a pointer of Git LFS, not the file itself")));
        }
        let is_json = name.ends_with(".json");
        if !is_json && !name.ends_with(".tiktoken") && !tiktoken::is_tiktoken(&bytes) {
            return Ok(Self::SentencePiece { name, bytes });
        }
        let text = String::from_utf8(bytes).map_err(|_| Error::invalid(format!("{name} is not UTF-8")))?;
        Ok(match is_json {
            true if name.ends_with("tekken.json") => Self::Tekken { name, text },
            true => Self::Json(text),
            false => Self::Tiktoken { name, text },
        })
    }

    fn name(&self) -> &str {
        match self {
            Self::Json(_) => "tokenizer.json",
            Self::SentencePiece { name, .. } | Self::Tiktoken { name, .. } | Self::Tekken { name, .. } => name,
        }
    }

    /// The vocabulary as a `tokenizer.json`; what its form takes for granted goes to `side`.
    fn to_json(&self, side: &mut SideFiles) -> Result<Cow<'_, str>> {
        let converted = match self {
            Self::Json(text) => return Ok(text.into()),
            Self::SentencePiece { bytes, .. } => sentencepiece::to_json(bytes, side),
            Self::Tiktoken { text, .. } => tiktoken::to_json(text, side),
            Self::Tekken { text, .. } => tiktoken::tekken_to_json(text, side),
        };
        converted.map(Cow::Owned).map_err(|error| Error::new(error.kind(), format!("{} {}", self.name(), error)))
    }
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self::Json(String::new())
    }
}

impl From<String> for Vocabulary {
    /// The contents of a `tokenizer.json`.
    fn from(text: String) -> Self {
        Self::Json(text)
    }
}

/// The bytes of every token of the vocabulary, back to back.
struct Pieces {
    bytes: Vec<u8>,
    /// `entries[id]`: where the bytes of `id` end, and its flags.
    entries: Vec<(u32, u8)>,
}

const PRESENT: u8 = 1;
const SPECIAL: u8 = 2;
const RUN_BYTE: u8 = 4;

impl Pieces {
    fn build(inner: &tokenizers::Tokenizer, program: &Program) -> Result<Self> {
        let max_id = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if max_id > MAX_TOKEN_ID {
            return Err(Error::invalid(format!("token id {max_id} is beyond the bound of {MAX_TOKEN_ID}")));
        }
        let mut pieces = Self { bytes: Vec::new(), entries: Vec::with_capacity(max_id as usize + 1) };
        for id in 0..=max_id {
            let mut flags = 0;
            if let Some(token) = inner.id_to_token(id) {
                let (bytes, is_run_byte) = program.piece(&token, false)?;
                pieces.bytes.extend_from_slice(&bytes);
                let is_special = inner.get_added_vocabulary().is_special_token(&token);
                flags = PRESENT | if is_special { SPECIAL } else { 0 } | if is_run_byte { RUN_BYTE } else { 0 };
            }
            let end = u32::try_from(pieces.bytes.len())
                .map_err(|_| Error::invalid("the texts of its tokens add up to more than 4 GiB"))?;
            pieces.entries.push((end, flags));
        }
        Ok(pieces)
    }

    fn flags(&self, id: TokenId) -> u8 {
        usize::try_from(id).ok().and_then(|id| self.entries.get(id)).map_or(0, |entry| entry.1)
    }

    fn piece(&self, id: TokenId) -> Option<Piece<'_>> {
        let index = usize::try_from(id).ok()?;
        let &(end, flags) = self.entries.get(index).filter(|entry| entry.1 & PRESENT != 0)?;
        let start = if index == 0 { 0 } else { self.entries[index - 1].0 };
        let bytes = &self.bytes[start as usize..end as usize];
        Some(if flags & RUN_BYTE != 0 { Piece::RunByte(&bytes[0]) } else { Piece::Bytes(bytes) })
    }
}

fn parse_tokenizer(name: &str, text: &str) -> Result<tokenizers::Tokenizer> {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        return Err(match error.is_eof() {
            true if text.trim().is_empty() => Error::invalid(format!("{name} is empty")),
            true => Error::invalid(format!("{name} is truncated: {error}")),
            false => Error::invalid(format!("{name} is not valid JSON: {error}")),
        });
    }
    // The library panics on some files that contradict themselves, on a template with an unknown token only when it
    // encodes.
    let parsed = panic::catch_unwind(|| {
        let tokenizer: tokenizers::Tokenizer = text.parse()?;
        tokenizer.encode_fast("", true)?;
        Ok::<_, tokenizers::Error>(tokenizer)
    });
    parsed.unwrap_or_else(|_| Err("it contradicts itself".into())).map_err(|error| explain(name, text, &error))
}

/// Says why a `tokenizer.json` that is valid JSON was refused.
fn explain(name: &str, text: &str, error: &dyn std::fmt::Display) -> Error {
    match serde_json::from_str::<Value>(text) {
        Ok(json) if json.get("model").is_none_or(Value::is_null) => {
            Error::invalid(format!("{name} has no \"model\" section"))
        }
        _ => Error::invalid(format!("{name} does not describe a tokenizer: {error}")),
    }
}

#[cfg(test)]
mod tests;
