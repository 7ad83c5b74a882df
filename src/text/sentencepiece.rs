//! SentencePiece models (`tokenizer.model`): the protobuf file, read and written again as a `tokenizer.json`.
//!
//! Texts get the ids that Hugging Face gives them with `legacy=False`: those of SentencePiece itself, except that the
//! blank which it puts before a text is not doubled where the text begins with one. With `"legacy": true` in
//! `tokenizer_config.json` they are SentencePiece's own, and each piece of text between special tokens gets a blank.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::text::special::SideFiles;

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// Types of a piece.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

/// Classes that give the pieces of their file other ids.
const RENUMBERING: [&str; 9] = [
    "XLMRobertaTokenizer",
    "CamembertTokenizer",
    "BarthezTokenizer",
    "MBartTokenizer",
    "MBart50Tokenizer",
    "NllbTokenizer",
    "PegasusTokenizer",
    "DebertaV2Tokenizer",
    "XGLMTokenizer",
];

/// What is known of a SentencePiece model. Source: sentencepiece_model.proto.
#[derive(Debug)]
struct Model {
    pieces: Vec<Piece>,
    model_type: u64,
    byte_fallback: bool,
    whitespace_as_suffix: bool,
    /// The begin and end tokens, if they are control pieces.
    bos: String,
    eos: String,
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

#[derive(Debug)]
struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// The `tokenizer.json` of the SentencePiece model `bytes`; what its class adds by default goes to `side`.
pub(super) fn to_json(bytes: &[u8], side: &mut SideFiles) -> Result<String> {
    let model = Model::parse(bytes)?;
    let class = side.class();
    if RENUMBERING.contains(&class) {
        return Err(Error::unsupported(format!(
            "cannot be used alone: a {class} gives other ids to its pieces; convert it to tokenizer.json"
        )));
    }
    model.check()?;
    let setting = |key: &str| side.tokenizer_config.get(key).and_then(Value::as_bool);
    let is_legacy = setting("legacy").unwrap_or(false);
    let has_prefix = setting("add_prefix_space").unwrap_or(model.add_dummy_prefix);
    let json = json!({
        "version": "1.0",
        "added_tokens": model.added_tokens(),
        "normalizer": model.normalizer(is_legacy, has_prefix)?,
        "pre_tokenizer": pre_tokenizer(is_legacy, has_prefix),
        "post_processor": null,
        "decoder": model.decoder(has_prefix),
        "model": model.engine(),
    });
    model.default_tokens(side);
    Ok(json.to_string())
}

impl Model {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            model_type: UNIGRAM,
            byte_fallback: false,
            whitespace_as_suffix: false,
            bos: "<s>".into(),
            eos: "</s>".into(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in fields(bytes) {
            match field? {
                (1, Wire::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Wire::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Wire::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<()> {
        for field in fields(bytes) {
            match field? {
                (3, Wire::Number(model_type)) => self.model_type = model_type,
                (24, Wire::Number(flag)) => self.whitespace_as_suffix = flag != 0,
                (35, Wire::Number(flag)) => self.byte_fallback = flag != 0,
                (46, Wire::Bytes(token)) => self.bos = utf8(token)?,
                (47, Wire::Bytes(token)) => self.eos = utf8(token)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<()> {
        for field in fields(bytes) {
            match field? {
                (2, Wire::Bytes(charsmap)) => self.charsmap = charsmap.to_vec(),
                (3, Wire::Number(flag)) => self.add_dummy_prefix = flag != 0,
                (4, Wire::Number(flag)) => self.remove_extra_whitespaces = flag != 0,
                (5, Wire::Number(flag)) => self.escape_whitespaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.pieces.is_empty() {
            return Err(Error::invalid("is no SentencePiece model: it has no pieces"));
        }
        let mut seen = HashMap::new();
        for (id, piece) in self.pieces.iter().enumerate() {
            let text = &piece.text;
            if text.is_empty() || !piece.score.is_finite() || !(NORMAL..=BYTE).contains(&piece.kind) {
                return Err(Error::invalid(format!("is damaged: piece {id} is {piece:?}")));
            }
            if let Some(other) = seen.insert(text.as_str(), id) {
                return Err(Error::invalid(format!("is damaged: the pieces {other} and {id} are both {text:?}")));
            }
        }
        if self.pieces.iter().filter(|piece| piece.kind == UNKNOWN).count() != 1 {
            return Err(Error::invalid("is damaged: it must have exactly one piece for what is unknown"));
        }
        let lacks = |byte: &u8| !seen.contains_key(format!("<0x{byte:02X}>").as_str());
        if let Some(byte) = (0..=255).find(lacks).filter(|_| self.byte_fallback) {
            return Err(Error::invalid(format!("is damaged: it falls back to bytes, but has no piece <0x{byte:02X}>")));
        }
        let unsupported = [
            (!matches!(self.model_type, UNIGRAM | BPE), "a model that is neither Unigram nor BPE"),
            (self.whitespace_as_suffix, "blanks at the end of words"),
            (!self.escape_whitespaces, "blanks that are not written as \"▁\""),
            (self.pieces.iter().any(|piece| piece.kind == UNUSED), "pieces that are marked as unused"),
        ];
        match unsupported.iter().find(|(is_used, _)| *is_used) {
            Some((_, what)) => Err(Error::unsupported(format!("uses {what}, which is not supported"))),
            None => Ok(()),
        }
    }

    fn unknown_id(&self) -> usize {
        self.pieces.iter().position(|piece| piece.kind == UNKNOWN).unwrap_or(0)
    }

    fn has_control(&self, text: &str) -> bool {
        self.pieces.iter().any(|piece| piece.kind == CONTROL && piece.text == text)
    }

    fn added_tokens(&self) -> Vec<Value> {
        let is_added = |piece: &Piece| matches!(piece.kind, UNKNOWN | CONTROL | USER_DEFINED);
        let pieces = self.pieces.iter().enumerate().filter(|(_, piece)| is_added(piece));
        pieces.map(|(id, piece)| added_token(id, &piece.text, piece.kind != USER_DEFINED)).collect()
    }

    fn normalizer(&self, is_legacy: bool, has_prefix: bool) -> Result<Value> {
        let replace =
            |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            check_charsmap(&self.charsmap)?;
            steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(&self.charsmap)}));
        }
        if self.remove_extra_whitespaces {
            let edges = if has_prefix { " +$" } else { "^ +| +$" };
            steps.push(replace(json!({"Regex": edges}), ""));
            steps.push(replace(json!({"Regex": " {2,}"}), " "));
        }
        if is_legacy && has_prefix && !self.remove_extra_whitespaces {
            steps.push(json!({"type": "Prepend", "prepend": "▁"}));
        }
        steps.push(replace(json!({"String": " "}), "▁"));
        Ok(json!({"type": "Sequence", "normalizers": steps}))
    }

    fn decoder(&self, has_prefix: bool) -> Value {
        let mut steps = vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})];
        if self.byte_fallback {
            steps.push(json!({"type": "ByteFallback"}));
        }
        steps.push(json!({"type": "Fuse"}));
        if has_prefix {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": steps})
    }

    fn engine(&self) -> Value {
        if self.model_type == UNIGRAM {
            let vocab: Vec<Value> =
                self.pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)])).collect();
            return json!({"type": "Unigram", "unk_id": self.unknown_id(), "vocab": vocab,
                          "byte_fallback": self.byte_fallback});
        }
        let vocab: Map<String, Value> =
            self.pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect();
        json!({"type": "BPE", "dropout": null, "unk_token": self.pieces[self.unknown_id()].text,
               "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
               "byte_fallback": self.byte_fallback, "ignore_merges": false, "vocab": vocab, "merges": self.merges()})
    }

    /// SentencePiece joins the two neighbours that make the best piece; here each such pair has a rank of its own.
    fn merges(&self) -> Vec<[&str; 2]> {
        let is_text = |piece: &&Piece| matches!(piece.kind, NORMAL | USER_DEFINED);
        let ids: HashMap<&str, usize> = (self.pieces.iter().enumerate())
            .filter(|(_, piece)| is_text(piece))
            .map(|(id, piece)| (piece.text.as_str(), id))
            .collect();
        let mut merges = Vec::new();
        for piece in self.pieces.iter().filter(is_text) {
            let text = piece.text.as_str();
            let first = merges.len();
            for (cut, _) in text.char_indices().skip(1) {
                if let (Some(&left), Some(&right)) = (ids.get(&text[..cut]), ids.get(&text[cut..])) {
                    merges.push((piece.score, left, right));
                }
            }
            merges[first..].sort_by_key(|&(_, left, right)| (left, right));
        }
        let text = |id: usize| self.pieces[id].text.as_str();
        let chars = |id: usize| text(id).chars().count();
        merges.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then_with(|| chars(b.1).cmp(&chars(a.1))).then_with(|| chars(b.2).cmp(&chars(a.2)))
        });
        merges.into_iter().map(|(_, left, right)| [text(left), text(right)]).collect()
    }

    /// What Hugging Face takes for granted where `tokenizer_config.json` is silent: BOS before a text; for models
    /// without one, like T5, EOS behind it.
    fn default_tokens(&self, side: &mut SideFiles) {
        let has_bos = self.has_control(&self.bos);
        for (key, text) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if self.has_control(text) {
                side.default_setting(key, json!(text));
            }
        }
        side.default_setting("unk_token", json!(self.pieces[self.unknown_id()].text));
        side.default_setting("add_bos_token", json!(has_bos));
        side.default_setting("add_eos_token", json!(!has_bos && self.has_control(&self.eos)));
    }
}

/// Where the text begins with a blank already, none is put before it.
fn pre_tokenizer(is_legacy: bool, has_prefix: bool) -> Value {
    let scheme = match (has_prefix, is_legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false})
}

pub(super) fn added_token(id: usize, text: &str, is_special: bool) -> Value {
    json!({"id": id, "content": text, "special": is_special, "normalized": false, "single_word": false,
           "lstrip": false, "rstrip": false})
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: NORMAL };
        for field in fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => piece.text = utf8(text)?,
                (2, Wire::Fixed(bits)) => piece.score = f32::from_bits(bits),
                (3, Wire::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Ok(piece)
    }
}

/// The character map is a double-array trie and the texts that its values point to. The library reads both without
/// looking at their bounds. Layout: trie size in bytes (u32), trie (u32 each), texts that end with 0.
fn check_charsmap(map: &[u8]) -> Result<()> {
    let damaged = || Error::invalid("is damaged: its character map contradicts itself");
    let size = map.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize).ok_or_else(damaged)?;
    let trie = map.get(4..).and_then(|rest| rest.get(..size)).filter(|trie| trie.len() % 4 == 0).ok_or_else(damaged)?;
    let texts = std::str::from_utf8(&map[4 + size..]).map_err(|_| damaged())?;
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let is_sound = |(at, &unit): (usize, &u32)| {
        let is_value = unit >> 31 == 1 && at > 0;
        let target = at ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let is_text = |unit: u32| texts.is_char_boundary((unit & 0x7FFF_FFFF) as usize);
        let has_value = unit & (1 << 8) != 0;
        is_value || target | 0xFF < units.len() && (!has_value || is_text(units[target]))
    };
    if units.is_empty() || !units.iter().enumerate().all(is_sound) {
        return Err(damaged());
    }
    Ok(())
}

/// The value of a protobuf field.
enum Wire<'a> {
    Number(u64),
    Fixed(u32),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message: their numbers and values.
fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>)>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or_else(|| Error::invalid("is truncated or no SentencePiece model")))
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let key = varint(rest)?;
    let mut take = |len: u64| rest.split_off(..usize::try_from(len).ok()?);
    let value = match key & 7 {
        0 => Wire::Number(varint(rest)?),
        1 => {
            take(8)?;
            Wire::Bytes(&[])
        }
        2 => {
            let len = varint(rest)?;
            Wire::Bytes(rest.split_off(..usize::try_from(len).ok()?)?)
        }
        5 => Wire::Fixed(u32::from_le_bytes(take(4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((key >> 3, value)).filter(|(number, _)| *number > 0)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *rest.split_off_first()?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn utf8(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::invalid("is damaged: a piece is not UTF-8"))
}
