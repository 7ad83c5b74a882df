//! SentencePiece models, tiktoken files and chat templates against references made with sentencepiece, tiktoken and
//! Hugging Face transformers (`ci/make_tokenizer_fixtures.py`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use triton_trtllm::error::{Error, ErrorKind};
use triton_trtllm::ids::TokenId;
use triton_trtllm::text::{ChatOptions, ChatTemplate, Detokenizer, Tokenizer, TokenizerFiles, Vocabulary};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read_json(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join(path)).unwrap()).unwrap()
}

fn tokenizer(name: &str, bytes: Vec<u8>, config: &Value) -> Result<Tokenizer, Error> {
    Tokenizer::new(&TokenizerFiles {
        tokenizer: Vocabulary::recognise(name, bytes)?,
        tokenizer_config: Some(config.to_string()),
        ..Default::default()
    })
}

/// Every tokenizer of the two folders with its reference.
fn references() -> Vec<(String, Arc<Tokenizer>, Value)> {
    let mut all = Vec::new();
    for folder in ["sentencepiece", "tiktoken"] {
        let references = read_json(&format!("tokenizers/{folder}/cases.json"));
        for reference in references["tokenizers"].as_array().unwrap() {
            let file = reference["file"].as_str().unwrap();
            let bytes = fs::read(fixtures().join("tokenizers").join(folder).join(file)).unwrap();
            let built = tokenizer(file, bytes, &reference["tokenizer_config"]).unwrap();
            let name = format!("{file} with {}", reference["tokenizer_config"]);
            all.push((name, Arc::new(built), reference.clone()));
        }
    }
    all
}

fn ids(case: &Value, key: &str) -> Vec<TokenId> {
    serde_json::from_value(case[key].clone()).unwrap()
}

fn stream(tokenizer: &Arc<Tokenizer>, ids: &[TokenId], skip: bool) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
    let chunks: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    chunks.concat() + &detokenizer.finish()
}

#[test]
fn texts_become_the_reference_ids() {
    for (name, tokenizer, reference) in references() {
        assert_eq!(tokenizer.vocab_size() as u64, reference["vocab_size"].as_u64().unwrap(), "{name}");
        for case in reference["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(case, "ids"), "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(case, "ids_with_special"), "{name}: {text:?}");
        }
    }
}

#[test]
fn ids_become_the_reference_text_whole_and_streamed() {
    for (name, tokenizer, reference) in references() {
        for case in reference["cases"].as_array().unwrap().iter().filter(|case| !case["decoded"].is_null()) {
            let (ids, text) = (ids(case, "ids"), case["decoded"].as_str().unwrap());
            assert_eq!(tokenizer.decode(&ids, true), text, "{name}: {ids:?}");
            assert_eq!(stream(&tokenizer, &ids, true), text, "{name}: {ids:?}");
        }
    }
}

#[test]
fn streams_of_any_ids_equal_the_whole_text() {
    for (name, tokenizer, _) in references() {
        let vocab = tokenizer.vocab_size() as u64;
        let mut random = 7u64;
        for _ in 0..1000 {
            let mut next = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % vocab
            };
            let ids: Vec<TokenId> = (0..next() % 24).map(|_| next() as TokenId).collect();
            for skip in [false, true] {
                assert_eq!(stream(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip), "{name}: {ids:?}");
            }
        }
    }
}

#[test]
fn folders_without_tokenizer_json_are_loaded() {
    let load = |from: &str, to: &str, config: &str| {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(fixtures().join("tokenizers").join(from), dir.path().join(to)).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        fs::write(dir.path().join("added_tokens.json"), r#"{"<|late|>": 481, "<|new|>": 480}"#).unwrap();
        Tokenizer::load(dir.path())
    };
    let tokenizer = load("sentencepiece/bpe.model", "tokenizer.model", "{}").unwrap();
    assert_eq!((tokenizer.bos().unwrap().id, tokenizer.eos().unwrap().id), (1, 2));
    assert_eq!((tokenizer.token_to_id("<|new|>"), tokenizer.token_to_id("<|late|>")), (Some(480), Some(481)));
    let end = r#"{"added_tokens_decoder": {"520": {"content": "<|end|>", "special": true}}}"#;
    for name in ["qwen.tiktoken", "tokenizer.model", "tiktoken.model"] {
        let tokenizer = load("tiktoken/test.tiktoken", name, end).unwrap();
        assert_eq!(tokenizer.encode("<|end|>", true).unwrap(), [520]);
    }
    let error = load("sentencepiece/normalised.model", "tokenizer.model", "{}").err().unwrap();
    assert!(error.message().contains("it is declared as 48"), "{error}");
    let error = load("sentencepiece/bpe.model", "tokenizer.model", r#"{"tokenizer_class": "XLMRobertaTokenizer"}"#);
    assert_eq!(error.err().unwrap().kind(), ErrorKind::Unsupported);
}

#[test]
fn damaged_files_are_refused_by_name() {
    let bpe = fs::read(fixtures().join("tokenizers/sentencepiece/bpe.model")).unwrap();
    let ranks = fs::read_to_string(fixtures().join("tokenizers/tiktoken/test.tiktoken")).unwrap();
    let tekken = fs::read_to_string(fixtures().join("tokenizers/tiktoken/tekken.json")).unwrap();
    let cases = [
        ("tokenizer.model", Vec::new(), "tokenizer.model is no SentencePiece model"),
        ("tokenizer.model", b"<html>".to_vec(), "tokenizer.model is truncated or no SentencePiece model"),
        ("tokenizer.model", bpe[..bpe.len() / 2].to_vec(), "tokenizer.model is "),
        ("tokenizer.model", b"version https://git-lfs".to_vec(), "tokenizer.model is a pointer of Git LFS"),
        ("a.tiktoken", Vec::new(), "a.tiktoken has no token for the byte 0x00"),
        ("a.tiktoken", b"IQ== 0\nIQ".to_vec(), "a.tiktoken line 2 is no token in base64"),
        ("a.tiktoken", b"IQ== 0\nIQ== 1".to_vec(), "a.tiktoken line 2: the token of rank 1 is empty or comes twice"),
        ("a.tiktoken", ranks.replace(" 7\n", " 8\n").into_bytes(), "rank 8 comes twice"),
        ("a.tiktoken", ranks.replace(" 7\n", " 99999999\n").into_bytes(), "beyond the bound"),
        ("tekken.json", b"{}".to_vec(), "tekken.json is no tekken file: missing field"),
        (
            "tekken.json",
            tekken.replace("\"rank\":4,\"token_str\"", "\"rank\":9,\"token_str\"").into(),
            "special token 4",
        ),
    ];
    for (name, bytes, message) in cases {
        let error = tokenizer(name, bytes, &json!({})).err().unwrap();
        assert!(error.kind() == ErrorKind::InvalidArg && error.message().contains(message), "{error}");
    }
}

/// Bytes changed anywhere: the file is refused, or what it gives can be used.
#[test]
fn no_damage_makes_it_panic() {
    let mut random = 99u64;
    for (path, name) in [
        ("sentencepiece/bpe.model", "tokenizer.model"),
        ("sentencepiece/normalised.model", "tokenizer.model"),
        ("tiktoken/test.tiktoken", "a.tiktoken"),
        ("tiktoken/tekken.json", "tekken.json"),
        ("bytelevel/tokenizer.json", "tokenizer.json"),
        ("metaspace/tokenizer.json", "tokenizer.json"),
    ] {
        let good = fs::read(fixtures().join("tokenizers").join(path)).unwrap();
        let mut refused = 0;
        for _ in 0..60 {
            let mut bytes = good.clone();
            let mut next = |bound: usize| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) as usize % bound
            };
            for _ in 0..=next(3) {
                let at = next(bytes.len());
                bytes[at] = next(256) as u8;
            }
            if next(4) == 0 {
                bytes.truncate(next(good.len()));
            }
            match tokenizer(name, bytes, &json!({})) {
                Ok(tokenizer) => {
                    let ids = tokenizer.encode("The café ａ ﬁ 😀 <s>\n", true).unwrap();
                    tokenizer.decode(&ids, false);
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.message().starts_with(name), "{error}");
                }
            }
        }
        assert!(refused > 0, "{path}");
    }
}

#[test]
fn chats_become_the_reference_text_and_ids() {
    let reference = read_json("chat/cases.json");
    let tokenizer = Tokenizer::new(&TokenizerFiles {
        tokenizer: fs::read_to_string(fixtures().join("tokenizers/bytelevel/tokenizer.json")).unwrap().into(),
        ..Default::default()
    })
    .unwrap();
    let tokens = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"});
    for case in reference["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let source = fs::read_to_string(fixtures().join("chat").join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::compile(vec![("default".into(), source)], tokens.as_object().unwrap().clone());
        let mut variables = case["options"].as_object().unwrap().clone();
        let mut take = |key: &str| variables.shift_remove(key);
        let options = ChatOptions {
            add_generation_prompt: take("add_generation_prompt").unwrap().as_bool().unwrap(),
            tools: take("tools"),
            documents: take("documents"),
            now_s: reference["now_s"].as_i64().unwrap(),
            variables,
            template: None,
        };
        let text = template.unwrap().render(&case["messages"], &options);
        match case.get("error") {
            None => {
                let text = text.unwrap_or_else(|error| panic!("{case}: {error}"));
                assert_eq!(text, case["text"].as_str().unwrap(), "{case}");
                if case.get("ids").is_some() {
                    assert_eq!(tokenizer.encode_chat(&text).unwrap(), ids(case, "ids"), "{case}");
                }
            }
            Some(reason) if reason.as_str().unwrap().starts_with("'") => assert!(text.is_err(), "{case}"),
            Some(reason) => assert!(text.unwrap_err().message().ends_with(reason.as_str().unwrap()), "{case}"),
        }
    }
}

#[test]
fn a_chat_never_begins_with_two_bos() {
    let bytes = fs::read(fixtures().join("tokenizers/sentencepiece/bpe.model")).unwrap();
    let tokenizer = tokenizer("tokenizer.model", bytes, &json!({})).unwrap();
    let bos = tokenizer.bos().unwrap().id;
    let one = tokenizer.encode_chat("<s>[INST] the dog [/INST]").unwrap();
    assert_eq!(one.iter().filter(|&&id| id == bos).count(), 1);
    assert_eq!(tokenizer.encode_chat("<s><s>[INST] the dog [/INST]").unwrap(), one);
    assert_eq!(tokenizer.encode_chat("[INST] the dog").unwrap(), tokenizer.encode("[INST] the dog", false).unwrap());
    assert!(tokenizer.encode_chat("").unwrap().is_empty());
}

#[test]
fn no_kind_of_tokenizer_puts_two_bos_before_a_chat() {
    let mut all: Vec<_> = references().into_iter().map(|(name, tokenizer, _)| (name, tokenizer)).collect();
    for name in ["bytelevel", "metaspace"] {
        let bytes = fs::read(fixtures().join(format!("tokenizers/{name}/tokenizer.json"))).unwrap();
        let bos = if name == "bytelevel" { "<|begin_of_text|>" } else { "<s>" };
        let config = json!({"bos_token": bos});
        all.push((name.to_owned(), Arc::new(tokenizer("tokenizer.json", bytes, &config).unwrap())));
    }
    let mut checked = 0;
    for (name, tokenizer) in all {
        let Some(bos) = tokenizer.bos() else { continue };
        let plain = tokenizer.encode("the dog", false).unwrap();
        for count in [1, 2] {
            let ids = tokenizer.encode_chat(&(bos.text.repeat(count) + "the dog")).unwrap();
            assert_eq!(ids.iter().filter(|&&id| id == bos.id).count(), 1, "{name}: {ids:?}");
            assert_eq!(ids[0], bos.id, "{name}");
        }
        assert!(!tokenizer.encode_chat("the dog").unwrap().contains(&bos.id), "{name}: {plain:?}");
        checked += 1;
    }
    assert!(checked >= 5, "{checked} tokenizers have a BOS");
}
