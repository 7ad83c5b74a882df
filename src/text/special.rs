//! The special tokens of a model folder: their strings, ids and all end-of-sequence ids.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{AddedToken, PostProcessorWrapper};

use crate::error::{Error, Result};
use crate::ids::TokenId;

/// A special token: its text and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    pub text: String,
    pub id: TokenId,
}

/// The JSON files beside `tokenizer.json`, parsed; an absent file is `Null`.
#[derive(Clone, Debug, Default)]
pub(super) struct SideFiles {
    pub tokenizer_config: Value,
    pub special_tokens_map: Value,
    pub generation_config: Value,
    pub config: Value,
    pub added_tokens: Value,
}

pub(super) const SPECIAL_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The JSON of the file `name`; an absent one is `Null`.
pub(super) fn parse(name: &str, text: Option<&str>) -> Result<Value> {
    let Some(text) = text else { return Ok(Value::Null) };
    serde_json::from_str(text).map_err(|error| Error::invalid(format!("{name} is not valid JSON: {error}")))
}

impl SideFiles {
    /// The tokenizer's class, without the suffix of its fast variant; empty if none is named.
    pub fn class(&self) -> &str {
        let class = self.tokenizer_config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        class.trim_end_matches("Fast")
    }

    /// Sets `key` of `tokenizer_config.json`, unless that file or `special_tokens_map.json` has it.
    pub fn default_setting(&mut self, key: &str, value: Value) {
        if self.special_tokens_map.get(key).is_some() {
            return;
        }
        if !self.tokenizer_config.is_object() {
            self.tokenizer_config = json!({});
        }
        if let Some(config) = self.tokenizer_config.as_object_mut() {
            config.entry(key).or_insert(value);
        }
    }

    /// The added tokens that are declared with their ids.
    fn declared_ids(&self) -> Vec<(&str, u64)> {
        let mut declared = Vec::new();
        if let Some(tokens) = self.tokenizer_config.get("added_tokens_decoder").and_then(Value::as_object) {
            declared.extend(tokens.iter().filter_map(|(id, token)| Some((content(token)?, id.parse().ok()?))));
        } else if let Some(tokens) = self.added_tokens.as_object() {
            declared.extend(tokens.iter().filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?))));
        }
        declared.sort_by_key(|&(_, id)| id);
        declared
    }

    /// The text of the special token called `key` (`"eos_token"`).
    pub fn token_text(&self, key: &str) -> Option<&str> {
        [&self.tokenizer_config, &self.special_tokens_map].into_iter().find_map(|file| content(file.get(key)?))
    }

    /// Every added token that these files declare, in the order in which Hugging Face adds them.
    pub fn added_tokens(&self) -> Vec<AddedToken> {
        let mut tokens = Vec::new();
        if let Some(declared) = self.tokenizer_config.get("added_tokens_decoder").and_then(Value::as_object) {
            let mut by_id: Vec<_> = declared.iter().map(|(id, token)| (id.parse::<u32>().ok(), token)).collect();
            by_id.sort_by_key(|(id, _)| *id);
            tokens.extend(by_id.into_iter().filter_map(|(_, token)| added_token(token)));
        } else {
            let is_special = |text: &str| SPECIAL_KEYS.iter().any(|key| self.token_text(key) == Some(text));
            let declared = self.declared_ids().into_iter().filter(|(text, _)| !text.is_empty());
            tokens.extend(declared.map(|(text, _)| AddedToken::from(text, is_special(text)).normalized(false)));
        }
        for key in SPECIAL_KEYS {
            tokens.extend(self.token_text(key).map(|text| AddedToken::from(text, true)));
        }
        for file in [&self.tokenizer_config, &self.special_tokens_map] {
            if let Some(more) = file.get("additional_special_tokens").and_then(Value::as_array) {
                tokens.extend(more.iter().filter_map(|token| content(token)).map(|text| AddedToken::from(text, true)));
            }
        }
        tokens
    }

    /// The ids under `key` (`"eos_token_id"`, an integer or a list) of `generation_config.json`, then `config.json`.
    pub fn token_ids(&self, key: &str) -> Result<Vec<TokenId>> {
        let text_config = self.config.get("text_config").unwrap_or(&Value::Null);
        let sources = [
            ("generation_config.json", &self.generation_config),
            ("config.json", &self.config),
            ("config.json", text_config),
        ];
        let mut ids = Vec::new();
        for (file, json) in sources {
            for id in ids_of(file, json, key)? {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Ok(ids)
    }
}

/// Adds the tokens that only the side files declare, as Hugging Face does.
pub(super) fn add_missing(inner: &mut tokenizers::Tokenizer, side: &SideFiles) -> Result<()> {
    let mut tokens = side.added_tokens();
    tokens.retain(|token| !inner.get_added_vocabulary().get_vocab().contains_key(&token.content));
    let mut seen = HashSet::new();
    tokens.retain(|token| seen.insert(token.content.clone()));
    if !tokens.is_empty() {
        let added = inner.add_tokens(tokens);
        added.map_err(|error| Error::invalid(format!("cannot add the tokens of tokenizer_config.json: {error}")))?;
    }
    Ok(())
}

/// Holds the ids of added tokens against those that the side files declare.
pub(super) fn check_ids(inner: &tokenizers::Tokenizer, side: &SideFiles) -> Result<()> {
    for (token, id) in side.declared_ids() {
        if let Some(found) = inner.token_to_id(token).filter(|&found| u64::from(found) != id) {
            return Err(Error::invalid(format!(
                "gives the token {token:?} the id {found}, but it is declared as {id}"
            )));
        }
    }
    Ok(())
}

/// Classes whose `add_bos_token` and `add_eos_token` replace what `tokenizer.json` puts around a text.
const FLAG_CLASSES: [&str; 4] = ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"];

/// Applies the `add_bos_token` and `add_eos_token` of `tokenizer_config.json` where Hugging Face does, or `always`.
pub(super) fn apply_bos_eos_flags(inner: &mut tokenizers::Tokenizer, side: &SideFiles, always: bool) -> Result<()> {
    let flags = ["add_bos_token", "add_eos_token"].map(|key| side.tokenizer_config.get(key).and_then(Value::as_bool));
    if flags == [None, None] || !(always || FLAG_CLASSES.contains(&side.class())) {
        return Ok(());
    }
    let token = |flag: bool, key: &str| match side.token_text(key) {
        _ if !flag => Ok(None),
        Some(text) => Ok(inner.token_to_id(text).map(|id| (text, id))),
        None => Err(Error::invalid(format!("tokenizer_config.json asks for {key}, but there is none"))),
    };
    let bos = token(flags[0].unwrap_or(true), "bos_token")?;
    let eos = token(flags[1].unwrap_or(false), "eos_token")?;
    let special =
        |token: Option<(&str, u32)>| token.map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": 0}}));
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = special(bos).into_iter().chain([text.clone()]).chain(special(eos)).collect();
    let tokens: serde_json::Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(text, id)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair = [text, json!({"Sequence": {"id": "B", "type_id": 1}})];
    let template = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens});
    let template = PostProcessorWrapper::deserialize(template).map_err(|error| Error::internal(error.to_string()))?;
    inner.with_post_processor(Some(template));
    Ok(())
}

/// A token is written as a string or as an object with `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str()).filter(|text| !text.is_empty())
}

fn added_token(token: &Value) -> Option<AddedToken> {
    let flag = |key: &str| token.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(
        AddedToken::from(content(token)?, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

fn ids_of(file: &str, json: &Value, key: &str) -> Result<Vec<TokenId>> {
    let id_of = |value: &Value| {
        let id = value.as_i64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| Error::invalid(format!("{file}: {key} must be a token id or a list of them, got {value}")))
    };
    let ids = match json.get(key) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids.iter().map(id_of).collect::<Result<_>>()?,
        Some(id) => vec![id_of(id)?],
    };
    Ok(ids.into_iter().filter(|&id| id >= 0).collect())
}
