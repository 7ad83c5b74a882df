//! The tokenizer and the chat template of a GGUF file, as the files of a Hugging Face folder hold them.

use crate::error::{Error, Result};
use crate::model::Section;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Types of a token in `tokenizer.ggml.token_type`.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// Ways of cutting whose texts begin with BOS where `add_bos_token` is not there; in them, whole words of the vocabulary
/// need no merges.
const BOS_BY_DEFAULT: [&str; 6] = ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"];

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const LATIN_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+";
const CAPITAL_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
const BLANKS: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";

const BLOOM: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";
const DEEPSEEK_CODER: [&str; 5] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\u{d7ff}]+", r"\p{N}"];
const DEEPSEEK_V2: [&str; 6] = [
    r"[\r\n]",
    r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-\u{d7ff}]+",
    r"\p{N}+",
];
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// The parts of the metadata that concern tokens.
#[derive(Clone, Debug)]
pub struct TextMetadata {
    pub bos: Option<usize>,
    /// End of sequence, of a turn, of a message: those that the metadata name, then those that are known by their text.
    pub ends: Vec<usize>,
}

/// Texts of tokens that end a turn, whatever the metadata say: many files name only one of them.
const ENDS: [&str; 12] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
    HARMONY_ENDS[0],
    HARMONY_ENDS[1],
];
/// Where both are there, an answer has several messages, and `<|end|>` ends but one of them.
const HARMONY_ENDS: [&str; 2] = ["<|return|>", "<|call|>"];

impl TextMetadata {
    /// # Errors
    /// Names the key and its value.
    pub fn read(general: &Section) -> Result<Self> {
        let mut ends = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(general.index(&[key])?);
        }
        ends.extend(known_ends(general).into_iter().filter(|id| !ends.contains(id)).collect::<Vec<_>>());
        Ok(Self { bos: general.index(&["tokenizer.ggml.bos_token_id"])?, ends })
    }
}

/// Ids of the special tokens whose text is one of [`ENDS`].
fn known_ends(general: &Section) -> Vec<usize> {
    let list = |key| general.first(&[key]).and_then(|(_, value)| value.as_array()).map_or(&[][..], Vec::as_slice);
    let types = list("tokenizer.ggml.token_type");
    let is_special =
        |id: usize| types.get(id).and_then(Value::as_u64).is_some_and(|kind| kind == CONTROL || kind == USER_DEFINED);
    let tokens = list("tokenizer.ggml.tokens").iter().enumerate();
    let named = tokens.filter_map(|(id, text)| Some((id, text.as_str()?)));
    let found: Vec<_> = named.filter(|(id, text)| ENDS.contains(text) && is_special(*id)).collect();
    let is_harmony = HARMONY_ENDS.iter().all(|end| found.iter().any(|(_, text)| text == end));
    found.into_iter().filter(|(_, text)| !(is_harmony && *text == "<|end|>")).map(|(id, _)| id).collect()
}

/// How the vocabulary is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VocabularyKind {
    /// The contents of a `tokenizer.json`.
    TokenizerJson(String),
    /// The contents of a SentencePiece `tokenizer.model`.
    SentencePiece(Vec<u8>),
}

/// A tokenizer as the files of a Hugging Face folder hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufVocabulary {
    pub kind: VocabularyKind,
    /// `tokenizer_config.json`: special tokens and chat template.
    pub tokenizer_config: String,
    /// `config.json`: ids that end a text.
    pub config: String,
}

impl GgufVocabulary {
    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// Names the key and what is wrong with it; unsupported: a vocabulary that is neither BPE nor SentencePiece.
    pub fn read(path: &Path) -> Result<Self> {
        let (origin, metadata) = super::metadata(path)?;
        let templates = named_templates(&metadata);
        let section = Section::from_value(origin, Value::Object(metadata))?;
        let tokens = Tokens::read(&section)?;
        let model = section.text(&["tokenizer.ggml.model"])?;
        let model = model.ok_or_else(|| section.missing(&["tokenizer.ggml.model"]))?;
        let text = TextMetadata::read(&section)?;
        let kind = match model {
            "gpt2" => VocabularyKind::TokenizerJson(tokens.byte_level_bpe(&section, &text)?),
            "llama" => VocabularyKind::SentencePiece(tokens.sentence_piece(&section)?),
            other => {
                return Err(Error::unsupported(format!(
                    "{}: tokenizer.ggml.model {other:?} is not supported; supported are gpt2 and llama",
                    section.origin()
                )));
            }
        };
        let mut tokenizer_config = tokens.tokenizer_config(&section, model == "llama", &text)?;
        if let Some(templates) = templates {
            tokenizer_config["chat_template"] = templates;
        }
        let tokenizer_config = tokenizer_config.to_string();
        Ok(Self { kind, tokenizer_config, config: json!({"eos_token_id": text.ends}).to_string() })
    }
}

/// The chat templates, where there are others (`tokenizer.chat_template.tool_use`) beside the default one.
fn named_templates(metadata: &Map<String, Value>) -> Option<Value> {
    let key = "tokenizer.chat_template";
    let default = metadata.get(key).map(|text| ("default", text));
    let others = metadata.iter().filter_map(|(name, text)| Some((name.strip_prefix(key)?.strip_prefix('.')?, text)));
    let others: Vec<_> = others.filter(|(_, text)| text.is_string()).collect();
    let entry = |(name, text): (&str, &Value)| json!({"name": name, "template": text});
    (!others.is_empty()).then(|| default.into_iter().chain(others).map(entry).collect())
}

struct Tokens<'a> {
    texts: Vec<&'a str>,
    types: Vec<u64>,
}

impl<'a> Tokens<'a> {
    fn read(section: &'a Section) -> Result<Self> {
        let texts = strings(section, "tokenizer.ggml.tokens")?;
        let types = match section.first(&["tokenizer.ggml.token_type"]) {
            None => vec![NORMAL; texts.len()],
            Some((key, value)) => {
                let wanted = format!("a list of {} integers", texts.len());
                let list = value.as_array().filter(|list| list.len() == texts.len());
                let types = list.and_then(|list| list.iter().map(Value::as_u64).collect());
                types.ok_or_else(|| section.error(key, value, &wanted))?
            }
        };
        Ok(Self { texts, types })
    }

    fn byte_level_bpe(&self, section: &Section, text: &TextMetadata) -> Result<String> {
        let pre = section.text(&["tokenizer.ggml.pre"])?.unwrap_or("default");
        let (pre_tokenizer, ignores_merges) = pre_tokenizer(pre).ok_or_else(|| {
            Error::unsupported(format!("{}: tokenizer.ggml.pre {pre:?} is not supported", section.origin()))
        })?;
        let vocab: Map<String, Value> =
            self.texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))).collect();
        let merges = strings(section, "tokenizer.ggml.merges")?;
        let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignores_merges,
            "vocab": vocab, "merges": merges});
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": false});
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added_tokens(),
            "normalizer": null, "pre_tokenizer": pre_tokenizer, "decoder": byte_level,
            "post_processor": self.post_processor(section, text, BOS_BY_DEFAULT.contains(&pre))?, "model": model,
        })
        .to_string())
    }

    fn added_tokens(&self) -> Vec<Value> {
        let added = self.texts.iter().zip(&self.types).enumerate();
        let added = added.filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED | UNKNOWN));
        added
            .map(|(id, (text, kind))| {
                json!({"id": id, "content": text, "special": *kind != USER_DEFINED, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false})
            })
            .collect()
    }

    /// The ids that are put around a text.
    fn post_processor(&self, section: &Section, text: &TextMetadata, bos_by_default: bool) -> Result<Value> {
        let bos = self.named(section, text.bos, "bos_token_id")?;
        let eos = self.named(section, text.ends.first().copied(), "eos_token_id")?;
        let (with_bos, with_eos) = (
            section.flag("tokenizer.ggml.add_bos_token", bos_by_default)?,
            section.flag("tokenizer.ggml.add_eos_token", false)?,
        );
        let (bos, eos) = (bos.filter(|_| with_bos), eos.filter(|_| with_eos));
        let special =
            |token: Option<(usize, &str)>| token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": 0}}));
        let sequence = |id: &str, type_id| json!({"Sequence": {"id": id, "type_id": type_id}});
        let single: Vec<_> = special(bos).into_iter().chain([sequence("A", 0)]).chain(special(eos)).collect();
        let described =
            |(id, text): (usize, &str)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
        let tokens: Map<_, _> = bos.into_iter().chain(eos).map(described).collect();
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": [sequence("A", 0), sequence("B", 1)],
            "special_tokens": tokens}))
    }

    /// The vocabulary as a SentencePiece model. Source: sentencepiece_model.proto.
    fn sentence_piece(&self, section: &Section) -> Result<Vec<u8>> {
        let (key, value) =
            (section.first(&["tokenizer.ggml.scores"])).ok_or_else(|| section.missing(&["tokenizer.ggml.scores"]))?;
        let list = value.as_array().filter(|list| list.len() == self.texts.len());
        let scores: Option<Vec<_>> = list.and_then(|list| list.iter().map(Value::as_f64).collect());
        let wanted = format!("a list of {} numbers", self.texts.len());
        let scores = scores.ok_or_else(|| section.error(key, value, &wanted))?;
        let mut out = Vec::new();
        for ((text, kind), score) in self.texts.iter().zip(&self.types).zip(scores) {
            let mut piece = Vec::new();
            write_bytes(&mut piece, 1, text.as_bytes());
            piece.push(2 << 3 | 5);
            piece.extend((score as f32).to_le_bytes());
            write_number(&mut piece, 3, *kind);
            write_bytes(&mut out, 1, &piece);
        }
        let has_bytes = self.types.contains(&BYTE);
        let mut trainer = Vec::new();
        write_number(&mut trainer, 3, 2);
        write_number(&mut trainer, 35, has_bytes.into());
        write_bytes(&mut out, 2, &trainer);
        let prefix = section.flag("tokenizer.ggml.add_space_prefix", true)?;
        let remove_blanks = section.flag("tokenizer.ggml.remove_extra_whitespaces", false)?;
        let mut normalizer = Vec::new();
        write_number(&mut normalizer, 3, prefix.into());
        write_number(&mut normalizer, 4, remove_blanks.into());
        write_bytes(&mut out, 3, &normalizer);
        Ok(out)
    }

    fn tokenizer_config(&self, section: &Section, is_sentence_piece: bool, text: &TextMetadata) -> Result<Value> {
        let mut config = Map::new();
        let mut name = |key: &str, id, what| -> Result<()> {
            if let Some((_, text)) = self.named(section, id, what)? {
                config.insert(key.to_owned(), json!(text));
            }
            Ok(())
        };
        name("bos_token", text.bos, "bos_token_id")?;
        name("eos_token", text.ends.first().copied(), "eos_token_id")?;
        name("pad_token", section.index(&["tokenizer.ggml.padding_token_id"])?, "padding_token_id")?;
        name("unk_token", section.index(&["tokenizer.ggml.unknown_token_id"])?, "unknown_token_id")?;
        if is_sentence_piece {
            config.insert("tokenizer_class".into(), json!("LlamaTokenizer"));
            config.insert("legacy".into(), json!(true));
            config.insert("add_bos_token".into(), section.flag("tokenizer.ggml.add_bos_token", true)?.into());
            config.insert("add_eos_token".into(), section.flag("tokenizer.ggml.add_eos_token", false)?.into());
        }
        if let Some(template) = section.text(&["tokenizer.chat_template"])? {
            config.insert("chat_template".into(), json!(template));
        }
        Ok(Value::Object(config))
    }

    fn named(&self, section: &Section, id: Option<usize>, key: &str) -> Result<Option<(usize, &'a str)>> {
        let Some(id) = id else { return Ok(None) };
        let text = self.texts.get(id).ok_or_else(|| {
            Error::invalid(format!(
                "{}: tokenizer.ggml.{key} is {id}, but there are {} tokens",
                section.origin(),
                self.texts.len()
            ))
        })?;
        Ok(Some((id, text)))
    }
}

fn strings<'a>(section: &'a Section, key: &'static str) -> Result<Vec<&'a str>> {
    let (_, value) = section.first(&[key]).ok_or_else(|| section.missing(&[key]))?;
    let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    texts.ok_or_else(|| section.error(key, value, "a list of strings"))
}

/// How texts are cut before merging, by the name in `tokenizer.ggml.pre`, and whether a whole word that is in the
/// vocabulary needs no merges.
fn pre_tokenizer(name: &str) -> Option<(Value, bool)> {
    let punctuation = r" ?[^\s\p{L}\p{N}]+[\r\n]*";
    let words = r"[^\r\n\p{L}\p{N}]?\p{L}+";
    let pattern = match name {
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => {
            format!(r"{CONTRACTIONS}|{words}|\p{{N}}{{1,3}}|{punctuation}|{BLANKS}")
        }
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "megrez" => {
            format!(r"{CONTRACTIONS}|{words}|\p{{N}}|{punctuation}|{BLANKS}")
        }
        "tekken" => format!(r"{LATIN_WORDS}|{CAPITAL_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}"),
        "gpt-4o" | "llama4" => format!(
            r"{LATIN_WORDS}{CONTRACTIONS}?|{CAPITAL_WORDS}{CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}"
        ),
        "kimi-k2" => format!(
            r"\p{{Han}}+|{}{CONTRACTIONS}?|{}{CONTRACTIONS}?|\p{{N}}{{1,3}}|{punctuation}|{BLANKS}",
            without_han(LATIN_WORDS),
            without_han(CAPITAL_WORDS)
        ),
        "deepseek-v3" => return Some((splits(&DEEPSEEK_V3), false)),
        "deepseek-coder" => return Some((splits(&DEEPSEEK_CODER), false)),
        "deepseek-llm" => return Some((splits(&DEEPSEEK_V2), false)),
        "bloom" | "poro-chat" | "gpt3-finnish" => return Some((splits(&[BLOOM]), false)),
        "viking" => return Some((splits(&[BLOOM, r"\p{N}"]), false)),
        "falcon" => {
            let digits = json!({"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated",
                "invert": false});
            let marks = json!({"type": "Punctuation", "behavior": "Contiguous"});
            return Some((json!({"type": "Sequence", "pretokenizers": [marks, gpt2(true), digits]}), false));
        }
        "default" | "gpt-2" | "phi-2" | "olmo" | "jais" | "mpt" | "exaone4" | "gigachat" | "mellum" | "trillion" => {
            return Some((gpt2(true), false));
        }
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            return Some((json!({"type": "Sequence", "pretokenizers": [digits, gpt2(true)]}), false));
        }
        _ => return None,
    };
    Some((splits(&[&pattern]), BOS_BY_DEFAULT.contains(&name)))
}

/// The same words, which Chinese characters end.
fn without_han(words: &str) -> String {
    words.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]")
}

/// Cut where each pattern matches, one after the other.
fn splits(patterns: &[&str]) -> Value {
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let all: Vec<_> = patterns.iter().map(split).chain([gpt2(false)]).collect();
    json!({"type": "Sequence", "pretokenizers": all})
}

fn gpt2(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// A protobuf field with bytes.
fn write_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    write_varint(out, field << 3 | 2);
    write_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// A protobuf field with a number.
fn write_number(out: &mut Vec<u8>, field: u64, value: u64) {
    write_varint(out, field << 3);
    write_varint(out, value);
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_turns_are_known_by_their_text() {
        let ends = |tokens: Value, types: Value| {
            let general = json!({"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
                "tokenizer.ggml.eos_token_id": 1});
            TextMetadata::read(&Section::from_value("model.gguf", general).unwrap()).unwrap().ends
        };
        // As in the files of Phi-3, which name one of the two.
        assert_eq!(ends(json!(["a", "<|endoftext|>", "<|end|>", "<|user|>"]), json!([1, 3, 3, 3])), [1, 2]);
        // What is no special token is a text like any other.
        assert_eq!(ends(json!(["a", "</s>", "<|end|>"]), json!([1, 3, 1])), [1]);
        // As in gpt-oss.
        let harmony = json!(["<|endoftext|>", "<|return|>", "<|end|>", "<|call|>"]);
        assert_eq!(ends(harmony, json!([3, 3, 3, 3])), [1, 0, 3]);
    }

    #[test]
    fn templates_with_names_stand_beside_the_default_one() {
        let metadata = |value: Value| value.as_object().unwrap().clone();
        assert_eq!(named_templates(&metadata(json!({"tokenizer.chat_template": "a"}))), None);
        let both = metadata(json!({"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b",
            "tokenizer.chat_templates": ["tool_use"]}));
        let expected = json!([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]);
        assert_eq!(named_templates(&both), Some(expected));
    }
}
