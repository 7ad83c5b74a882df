//! Tokenization and detokenization against references made with Hugging Face tokenizers (`ci/make_fixtures.py`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use triton_trtllm::ids::TokenId;
use triton_trtllm::text::{Detokenizer, Tokenizer};

fn fixtures() -> Vec<(PathBuf, Arc<Tokenizer>, Value)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    let load = |name| {
        let dir = root.join(name);
        let cases = fs::read_to_string(dir.join("cases.json")).unwrap();
        let tokenizer = Arc::new(Tokenizer::load(&dir).unwrap());
        (dir, tokenizer, serde_json::from_str(&cases).unwrap())
    };
    ["bytelevel", "metaspace"].map(load).into()
}

fn ids(case: &Value, key: &str) -> Vec<TokenId> {
    serde_json::from_value(case[key].clone()).unwrap()
}

fn stream(tokenizer: &Arc<Tokenizer>, ids: &[TokenId], skip: bool) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
    let chunks: Vec<_> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    chunks.concat() + &detokenizer.finish()
}

#[test]
fn texts_become_the_reference_ids() {
    for (dir, tokenizer, reference) in fixtures() {
        assert_eq!(tokenizer.vocab_size() as u64, reference["vocab_size"].as_u64().unwrap());
        for case in reference["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(case, "ids"), "{dir:?}: {text:?}");
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(case, "ids_with_special"), "{dir:?}: {text:?}");
        }
    }
}

#[test]
fn ids_become_the_reference_text_whole_and_streamed() {
    for (dir, tokenizer, reference) in fixtures() {
        let check = |ids: &[TokenId], skip: bool, text: &Value| {
            assert_eq!(tokenizer.decode(ids, skip), text.as_str().unwrap(), "{dir:?}: {ids:?}");
            assert_eq!(stream(&tokenizer, ids, skip), text.as_str().unwrap(), "{dir:?}: {ids:?}");
        };
        for case in reference["cases"].as_array().unwrap() {
            check(&ids(case, "ids"), true, &case["decoded"]);
            check(&ids(case, "ids_with_special"), false, &case["decoded_with_special"]);
        }
        for case in reference["decode_only"].as_array().unwrap() {
            check(&ids(case, "ids"), true, &case["decoded"]);
        }
    }
}
