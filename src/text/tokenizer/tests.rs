use std::fs;
use std::path::Path;

use super::*;
use crate::error::ErrorKind;
use crate::text::testing;
use serde_json::json;

fn with(tokenizer: &Value, side: impl FnOnce(&mut TokenizerFiles)) -> Result<Tokenizer> {
    let mut files = TokenizerFiles { tokenizer: tokenizer.to_string().into(), ..Default::default() };
    side(&mut files);
    Tokenizer::new(&files)
}

fn load_error(files: &[(&str, &str)]) -> Error {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    Tokenizer::load(dir.path()).err().unwrap()
}

#[test]
fn a_folder_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), testing::byte_level().to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<|end|>"}"#).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("héllo", true).unwrap(), true), "héllo");
    assert_eq!(tokenizer.eos().unwrap().text, "<|end|>");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let tokenizer = with(&testing::byte_level(), |_| {}).unwrap();
    let size = tokenizer.own_size();
    tokenizer.check_vocabulary(size).unwrap();
    tokenizer.check_vocabulary(size + 64).unwrap();
    let error = tokenizer.check_vocabulary(size - 1).unwrap_err();
    let expected = format!("has {size} tokens, but the vocabulary of the model {}", size - 1);
    assert!(error.message().contains(&expected), "{error}");
}

#[test]
fn load_errors_say_what_is_wrong_with_which_file() {
    let good = testing::byte_level().to_string();
    let mut no_model = testing::byte_level();
    no_model.as_object_mut().unwrap().remove("model");
    type Case<'a> = (&'a [(&'a str, &'a str)], ErrorKind, &'a str);
    let cases: [Case; 9] = [
        (&[], ErrorKind::NotFound, "tokenizer.json is missing"),
        (&[("vocab.json", "x")], ErrorKind::Unsupported, "only vocab.json was found"),
        (&[("tokenizer.json", "")], ErrorKind::InvalidArg, "tokenizer.json is empty"),
        (&[("tokenizer.json", &good[..good.len() / 2])], ErrorKind::InvalidArg, "tokenizer.json is truncated"),
        (&[("tokenizer.json", "<html>")], ErrorKind::InvalidArg, "tokenizer.json is not valid JSON"),
        (&[("tokenizer.json", &no_model.to_string())], ErrorKind::InvalidArg, "has no \"model\" section"),
        (&[("tokenizer.json", r#"{"model": 3}"#)], ErrorKind::InvalidArg, "does not describe a tokenizer"),
        (
            &[("tokenizer.json", &good), ("tokenizer_config.json", "{")],
            ErrorKind::InvalidArg,
            "tokenizer_config.json is not valid JSON",
        ),
        (
            &[("tokenizer.json", &good), ("generation_config.json", r#"{"eos_token_id": "x"}"#)],
            ErrorKind::InvalidArg,
            "generation_config.json: eos_token_id must be",
        ),
    ];
    for (files, kind, message) in cases {
        let error = load_error(files);
        assert!(error.kind() == kind && error.message().contains(message), "{error}");
    }
    assert_eq!(Tokenizer::load(Path::new("/no/such/folder")).err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    let json = testing::byte_fallback(true).to_string();
    for end in (0..json.len()).step_by(7).filter(|&end| json.is_char_boundary(end)) {
        assert!(load_error(&[("tokenizer.json", &json[..end])]).message().contains("tokenizer.json is "));
    }
}

#[test]
fn a_template_that_contradicts_itself_is_refused_at_load() {
    let mut json = testing::byte_level();
    let parts = json!([{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    json["post_processor"] = json!({"type": "TemplateProcessing", "single": parts, "pair": [], "special_tokens": {}});
    let error = with(&json, |_| {}).err().unwrap();
    assert!(error.message().starts_with("tokenizer.json does not describe a tokenizer"), "{error}");
}

#[test]
fn eos_ids_are_united_and_pad_falls_back_to_eos() {
    let tokenizer = with(&testing::byte_level(), |files| {
        files.tokenizer_config = Some(json!({"eos_token": {"content": "<|end|>"}, "pad_token": null}).to_string());
        files.generation_config = Some(json!({"eos_token_id": [5, 6]}).to_string());
        files.config = Some(json!({"eos_token_id": 6, "text_config": {"eos_token_id": 7}}).to_string());
    })
    .unwrap();
    let end = tokenizer.token_to_id("<|end|>").unwrap();
    assert_eq!(tokenizer.eos_ids(), [end, 5, 6, 7]);
    assert_eq!(tokenizer.pad(), tokenizer.eos());
    assert_eq!(tokenizer.pad().unwrap().id, end);
    assert_eq!(tokenizer.bos(), None);
}

#[test]
fn special_tokens_come_from_the_map_or_the_model_config_if_need_be() {
    let tokenizer = with(&testing::byte_level(), |files| {
        files.special_tokens_map = Some(json!({"bos_token": "<|begin|>"}).to_string());
        files.config = Some(json!({"eos_token_id": 65}).to_string());
    })
    .unwrap();
    assert_eq!(tokenizer.bos().unwrap().text, "<|begin|>");
    assert_eq!(tokenizer.eos(), Some(&SpecialToken { text: "A".into(), id: 65 }));
}

#[test]
fn tokens_that_only_the_config_declares_are_added() {
    let before = testing::tokenizer(&testing::byte_level()).vocab_size();
    let tokenizer = with(&testing::byte_level(), |files| {
        files.tokenizer_config = Some(
            json!({"eos_token": "<|eot|>", "added_tokens_decoder": {
                "1001": {"content": "<b>", "special": false}, "1000": {"content": "<a>", "special": true}}})
            .to_string(),
        );
    })
    .unwrap();
    assert_eq!(tokenizer.vocab_size(), before + 3);
    let ids = tokenizer.encode("<a>x<b><|eot|>", true).unwrap();
    assert_eq!(ids, [before as i32, b'x' as i32, before as i32 + 1, before as i32 + 2]);
    assert_eq!(tokenizer.decode(&ids, true), "x<b>");
    assert_eq!(tokenizer.decode(&ids, false), "<a>x<b><|eot|>");
}

#[test]
fn padding_and_truncation_of_the_training_run_do_not_apply() {
    let mut json = testing::byte_level();
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>"});
    assert_eq!(testing::tokenizer(&json).encode("abcd", true).unwrap().len(), 4);
}

#[test]
fn token_bytes_are_those_in_the_middle_of_a_text() {
    let byte_level = testing::tokenizer(&testing::byte_level());
    assert_eq!(byte_level.token_bytes(0x80), Some(&[0x80][..]));
    let fallback = testing::tokenizer(&testing::byte_fallback(true));
    let bytes = |token: &str| fallback.token_bytes(fallback.token_to_id(token).unwrap()).unwrap().to_vec();
    assert_eq!((bytes("▁Hello"), bytes("<0xE4>")), (b" Hello".to_vec(), vec![0xE4]));
    assert_eq!((fallback.token_bytes(-1), fallback.token_bytes(1 << 20)), (None, None));
}

#[test]
fn special_tokens_are_added_only_when_asked() {
    let mut json = testing::byte_level();
    let begin = testing::tokenizer(&json).token_to_id("<|begin|>").unwrap();
    json["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [begin], "tokens": ["<|begin|>"]}}});
    let tokenizer = testing::tokenizer(&json);
    assert_eq!(tokenizer.encode("a", true).unwrap(), [begin, b'a' as i32]);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [b'a' as i32]);
}

#[test]
fn llama_configs_decide_about_bos_and_eos() {
    let ids = |config: Value| {
        let set = |files: &mut TokenizerFiles| files.tokenizer_config = Some(config.to_string());
        let tokenizer = with(&testing::byte_level(), set).unwrap();
        let ids = tokenizer.encode("a", true).unwrap();
        tokenizer.decode(&ids, false)
    };
    let config = |class: &str, bos: Value, eos: Value| {
        json!({"tokenizer_class": class, "bos_token": "<|begin|>", "eos_token": "<|end|>",
               "add_bos_token": bos, "add_eos_token": eos})
    };
    assert_eq!(ids(config("LlamaTokenizerFast", json!(true), json!(true))), "<|begin|>a<|end|>");
    assert_eq!(ids(config("LlamaTokenizer", json!(false), json!(null))), "a");
    assert_eq!(ids(config("GemmaTokenizer", json!(null), json!(false))), "<|begin|>a");
    assert_eq!(ids(config("Qwen2Tokenizer", json!(true), json!(true))), "a");
}

#[test]
fn it_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
}
