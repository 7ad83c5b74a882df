//! Tokenizers for tests, one per family of decoders, and a source of random numbers.

use serde_json::{Value, json};

use crate::text::{Tokenizer, TokenizerFiles};

/// Text that is hard to cut: emoji with ZWJ and skin tones, CJK, Thai, right-to-left, combining marks, blanks.
pub const HARD_TEXTS: [&str; 8] = [
    "Hello, world!  Don't   stop.\n\nNew line\ttab",
    "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈 end",
    "你好，世界。漢字仮名交じり文",
    "สวัสดีชาวโลก ภาษาไทย",
    "שלום עולם مرحبا بالعالم \u{202E}rtl",
    "e\u{301}a\u{308}\u{323} Z\u{351}\u{36B}",
    "▁▁ literal ▁ marks <0x41> 😀😀",
    "mañana naïve café Übergröße",
];

/// xorshift64*
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

pub fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::new(&TokenizerFiles { tokenizer: json.to_string().into(), ..Default::default() }).unwrap()
}

/// Like GPT-2 and Llama 3: 256 byte tokens, tokens that cut characters anywhere, `<|end|>` special, `<tool>` not.
pub fn byte_level() -> Value {
    let mut tokens: Vec<String> = (0..=255).map(byte_char).map(String::from).collect();
    let mut random = Random(7);
    for text in HARD_TEXTS {
        for _ in 0..40 {
            let start = random.below(text.len());
            let end = (start + 2 + random.below(6)).min(text.len());
            tokens.push(text.as_bytes()[start..end].iter().map(|&byte| byte_char(byte)).collect());
        }
    }
    let mut json = model(bpe(tokens, false), byte_level_part(), &["<|end|>", "<|begin|>"]);
    json["pre_tokenizer"] = byte_level_part();
    json
}

/// Like Llama 2 (`strip`) and Gemma (not): `▁` for blanks, `<0x00>` … `<0xFF>` for what the vocabulary lacks.
pub fn byte_fallback(strip: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let mut json =
        model(bpe(fallback_tokens(), true), json!({"type": "Sequence", "decoders": decoders}), &["<s>", "</s>"]);
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    json
}

/// Byte fallback whose runs are decoded before `▁` is.
pub fn fallback_then_metaspace() -> Value {
    let decoders = json!([{"type": "ByteFallback"}, metaspace_part("always")]);
    model(bpe(fallback_tokens(), true), json!({"type": "Sequence", "decoders": decoders}), &["<s>", "</s>"])
}

/// Like T5: the first token loses its `▁`.
pub fn metaspace(scheme: &str) -> Value {
    let mut json = model(bpe(fallback_tokens(), true), metaspace_part(scheme), &["<s>", "</s>"]);
    json["pre_tokenizer"] = metaspace_part(scheme);
    json
}

/// Like BERT.
pub fn wordpiece(cleanup: bool) -> Value {
    let words = ["[UNK]", "un", "##able", "##s", ".", "'", "n't", "do", "not", "hello", "##你", "好", ",", "'s", "##"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let wordpiece = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab});
    let mut json =
        model(wordpiece, json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup}), &["[CLS]", "[SEP]"]);
    json["pre_tokenizer"] = json!({"type": "BertPreTokenizer"});
    json
}

/// Tokens are joined with blanks.
pub fn without_decoder() -> Value {
    model(bpe(fallback_tokens(), true), Value::Null, &["<s>", "</s>"])
}

/// Every kind of tokenizer above, with a name for messages.
pub fn all_kinds() -> Vec<(&'static str, Value)> {
    let mut byte_level_stripped = byte_level();
    byte_level_stripped["decoder"] = json!({"type": "Sequence", "decoders": [
        byte_level_part(),
        {"type": "Strip", "content": " ", "start": 2, "stop": 0},
        {"type": "Replace", "pattern": {"String": "o"}, "content": "00"},
    ]});
    vec![
        ("byte level", byte_level()),
        ("byte level, then strip", byte_level_stripped),
        ("byte fallback, strip", byte_fallback(true)),
        ("byte fallback", byte_fallback(false)),
        ("byte fallback, then metaspace", fallback_then_metaspace()),
        ("metaspace always", metaspace("always")),
        ("metaspace never", metaspace("never")),
        ("wordpiece", wordpiece(false)),
        ("wordpiece with cleanup", wordpiece(true)),
        ("no decoder", without_decoder()),
    ]
}

fn model(model: Value, decoder: Value, special: &[&str]) -> Value {
    let first = model["vocab"].as_object().unwrap().len();
    let added = |(i, (text, special)): (usize, (&str, bool))| {
        json!({"id": first + i, "content": text, "special": special, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    let tokens = special.iter().map(|&text| (text, true)).chain([("<tool>", false)]);
    json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
           "post_processor": null, "added_tokens": tokens.enumerate().map(added).collect::<Vec<_>>(),
           "decoder": decoder, "model": model})
}

fn bpe(tokens: Vec<String>, byte_fallback: bool) -> Value {
    let mut vocab = serde_json::Map::new();
    for token in tokens {
        let id = vocab.len();
        vocab.entry(token).or_insert(json!(id));
    }
    json!({"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": byte_fallback, "unk_token": "<unk>",
           "fuse_unk": true, "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null})
}

fn byte_level_part() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

fn metaspace_part(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true})
}

fn fallback_tokens() -> Vec<String> {
    let words = ["<unk>", "▁", "▁▁▁", "▁Hello", "▁wor", "ld", ",", ".", "a", "▁a▁b", "é", "▁ม", "你", " ", ""];
    words.iter().map(|word| word.to_string()).chain((0..=255).map(|byte| format!("<0x{byte:02X}>"))).collect()
}

/// GPT-2's printable character for a byte.
pub fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    match printable(byte) {
        true => byte as char,
        false => char::from_u32(0x100 + (0..byte).filter(|&byte| !printable(byte)).count() as u32).unwrap(),
    }
}
