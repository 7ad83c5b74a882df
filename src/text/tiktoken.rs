//! tiktoken files (a token in base64 and its rank per line) and Mistral's `tekken.json`, read and written again as the
//! byte-level BPE of a `tokenizer.json`.
//!
//! Such a file has no list of merges: two neighbours are merged if together they are a token, the one with the lowest
//! rank first. Each pair that makes a token becomes a merge, in the order of the ranks.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::text::sentencepiece::added_token;
use crate::text::special::SideFiles;

/// Beyond this a rank is a broken file.
const MAX_RANK: usize = 1 << 24;

/// How a text is cut into words, unless the class below says otherwise (numbers by three digits).
const PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    r"|\s+(?!\S)|\s+"
);

/// The same for Qwen, whose numbers are single digits.
const QWEN_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    r"|\s+(?!\S)|\s+"
);

/// Special tokens of Qwen, which come after the ranks and in no file, before `<|extra_0|>` … `<|extra_204|>`.
const QWEN_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const QWEN_EXTRA: usize = 205;

/// Special tokens of `tekken.json` files that do not list theirs.
const TEKKEN_TOKENS: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// Whether `bytes` begin like a tiktoken file.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    std::str::from_utf8(line).is_ok_and(|line| rank_line(line.trim_end()).is_some())
}

/// The `tokenizer.json` of a tiktoken file.
pub(super) fn to_json(text: &str, side: &SideFiles) -> Result<String> {
    let mut ranks = Ranks::default();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (token, rank) = rank_line(line.trim_end())
            .ok_or_else(|| Error::invalid(format!("line {} is no token in base64 with its rank", number + 1)))?;
        ranks.add(token, rank).map_err(|error| error.context(format!("line {}", number + 1)))?;
    }
    ranks.check()?;
    let next = ranks.tokens.iter().map(|(_, rank)| rank + 1).max().unwrap_or(0);
    if side.class() != "QWenTokenizer" {
        return Ok(json(&ranks, 0, PATTERN, &[], 0));
    }
    let extra = (0..QWEN_EXTRA).map(|i| format!("<|extra_{i}|>"));
    let special: Vec<String> = QWEN_TOKENS.into_iter().map(str::to_owned).chain(extra).collect();
    Ok(json(&ranks, 0, QWEN_PATTERN, &special, next))
}

/// What is read of a `tekken.json`.
#[derive(Deserialize)]
struct Tekken {
    config: TekkenConfig,
    vocab: Vec<TekkenToken>,
    special_tokens: Option<Vec<TekkenSpecial>>,
}

#[derive(Deserialize)]
struct TekkenConfig {
    pattern: String,
    default_vocab_size: Option<usize>,
    default_num_special_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct TekkenToken {
    token_bytes: String,
}

#[derive(Deserialize)]
struct TekkenSpecial {
    rank: usize,
    token_str: String,
}

/// The `tokenizer.json` of a `tekken.json`; what its class adds by default goes to `side`. The special tokens have the
/// first ids; the vocabulary is cut to the size that the file states.
pub(super) fn tekken_to_json(text: &str, side: &mut SideFiles) -> Result<String> {
    let tekken: Tekken =
        serde_json::from_str(text).map_err(|error| Error::invalid(format!("is no tekken file: {error}")))?;
    let mut special = match tekken.special_tokens {
        None => TEKKEN_TOKENS.map(str::to_owned).to_vec(),
        Some(mut tokens) => {
            tokens.sort_by_key(|token| token.rank);
            if let Some((i, token)) = tokens.iter().enumerate().find(|(i, token)| token.rank != *i) {
                return Err(Error::invalid(format!("special token {i} is missing: the next rank is {}", token.rank)));
            }
            tokens.into_iter().map(|token| token.token_str).collect()
        }
    };
    let count = tekken.config.default_num_special_tokens.unwrap_or(special.len());
    if count < special.len() || count > MAX_RANK {
        return Err(Error::invalid(format!("states {count} special tokens, but has {}", special.len())));
    }
    special.extend((special.len()..count).map(|id| format!("<SPECIAL_{id}>")));
    let size = tekken.config.default_vocab_size.map_or(usize::MAX, |size| size.saturating_sub(count));
    let mut ranks = Ranks::default();
    for (rank, token) in tekken.vocab.iter().take(size).enumerate() {
        let bytes = base64::decode(&token.token_bytes)
            .map_err(|error| Error::invalid(format!("token {rank} is not in base64: {error}")))?;
        ranks.add(bytes, rank)?;
    }
    ranks.check()?;
    let has = |token: &str| special.iter().any(|other| other == token);
    for (key, token) in [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")] {
        if has(token) {
            side.default_setting(key, json!(token));
        }
    }
    side.default_setting("add_bos_token", json!(has("<s>")));
    side.default_setting("add_eos_token", json!(false));
    Ok(json(&ranks, count, &tekken.config.pattern, &special, 0))
}

fn rank_line(line: &str) -> Option<(Vec<u8>, usize)> {
    let (token, rank) = line.split_once(' ')?;
    Some((base64::decode(token).ok().filter(|token| !token.is_empty())?, rank.parse().ok()?))
}

/// Tokens and their ranks, in the order of the file.
#[derive(Default)]
struct Ranks {
    tokens: Vec<(Vec<u8>, usize)>,
    by_token: HashMap<Vec<u8>, usize>,
    by_rank: HashMap<usize, usize>,
}

impl Ranks {
    fn add(&mut self, token: Vec<u8>, rank: usize) -> Result<()> {
        if rank > MAX_RANK {
            return Err(Error::invalid(format!("rank {rank} is beyond the bound of {MAX_RANK}")));
        }
        if token.is_empty() || self.by_token.insert(token.clone(), rank).is_some() {
            return Err(Error::invalid(format!("the token of rank {rank} is empty or comes twice")));
        }
        if self.by_rank.insert(rank, self.tokens.len()).is_some() {
            return Err(Error::invalid(format!("rank {rank} comes twice")));
        }
        self.tokens.push((token, rank));
        Ok(())
    }

    fn check(&self) -> Result<()> {
        match (0..=255).find(|byte| !self.by_token.contains_key([*byte].as_slice())) {
            Some(byte) => Err(Error::invalid(format!("has no token for the byte 0x{byte:02X}"))),
            None => Ok(()),
        }
    }

    /// Every pair of tokens that makes a token, by the rank of what it makes.
    fn merges(&self) -> Vec<[String; 2]> {
        let mut merges = Vec::new();
        for (token, rank) in &self.tokens {
            for cut in 1..token.len() {
                let (left, right) = token.split_at(cut);
                if let (Some(&left), Some(&right)) = (self.by_token.get(left), self.by_token.get(right)) {
                    merges.push((*rank, left, right));
                }
            }
        }
        merges.sort_unstable();
        let text = |rank: &usize| printable(&self.tokens[self.by_rank[rank]].0);
        merges.iter().map(|(_, left, right)| [text(left), text(right)]).collect()
    }
}

fn json(ranks: &Ranks, offset: usize, pattern: &str, special: &[String], first_special: usize) -> String {
    let special = || special.iter().enumerate().map(|(i, token)| (first_special + i, token));
    let mut vocab: Map<String, Value> =
        ranks.tokens.iter().map(|(token, rank)| (printable(token), json!(rank + offset))).collect();
    vocab.extend(special().map(|(id, token)| (token.clone(), json!(id))));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    json!({
        "version": "1.0",
        "added_tokens": special().map(|(id, token)| added_token(id, token, true)).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": vocab, "merges": ranks.merges()},
    })
    .to_string()
}

/// GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other bytes follow from U+0100 on in order.
fn printable(bytes: &[u8]) -> String {
    let char_of = |&byte: &u8| match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => byte as char,
        0x00..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap_or_default(),
        0x7F..=0xA0 => char::from_u32(0x121 + u32::from(byte) - 0x7F).unwrap_or_default(),
        0xAD => '\u{143}',
    };
    bytes.iter().map(char_of).collect()
}
