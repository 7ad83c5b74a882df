//! What a file says must not decide how much memory its reader takes: numbers in headers are lies until the file has
//! as many bytes.

use crate::counting::counted;
use crate::{alone, damaged, fixtures};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use triton_trtllm::adapter::tokenizer::load_tokenizer;
use triton_trtllm::model::formats::{WeightPlaces, open};

/// Far more than any of these files needs, far less than any of the lies.
const ALLOWED_BYTES: usize = 16 << 20;
const LIES: [u64; 5] = [u64::MAX, 1 << 62, 1 << 40, u32::MAX as u64, 1 << 31];

/// Writes lies over all places of the first bytes of a file, and opens it.
fn lie(folder: &str, file: &str, bytes: usize, step: usize, open: impl Fn(&Path)) {
    let root = tempfile::tempdir().unwrap();
    let model = damaged(root.path(), "model", folder, file, |_| {});
    let original = fs::read(model.join(file)).unwrap();
    for at in (0..bytes.min(original.len()) - 8).step_by(step) {
        let lie = LIES[at / step % LIES.len()];
        let mut changed = original.clone();
        changed[at..at + 8].copy_from_slice(&lie.to_le_bytes());
        fs::write(model.join(file), &changed).unwrap();
        let ((), most) = counted(|| open(&model));
        assert!(most < ALLOWED_BYTES, "{folder}/{file} with {lie} at {at}: {most} bytes");
    }
}

fn open_model(path: &Path) {
    drop(open(path, &WeightPlaces::default()));
}

fn open_tokenizer(path: &Path) {
    drop(load_tokenizer(path));
}

#[test]
fn numbers_in_headers_of_weights_do_not_decide_what_is_allocated() {
    let _alone = alone();
    lie("formats/gguf/qwen3", "model.gguf", 6000, 7, open_model);
    lie("formats/gguf/qwen3", "model.gguf", 6000, 31, open_tokenizer);
    lie("models/qwen3", "model.safetensors", 2000, 5, open_model);
    lie("formats/trtllm/llama-gqa-tp2-pp1", "rank1.safetensors", 2000, 11, open_model);
    lie("formats/pickle/llama-gqa", "pytorch_model.bin", 4000, 7, open_model);
    let archive = fs::metadata(fixtures().join("formats/pickle/llama-bf16/pytorch_model-00001-of-00002.bin")).unwrap();
    // The directory of the archive is at its end.
    lie("formats/pickle/llama-bf16", "pytorch_model-00001-of-00002.bin", archive.len() as usize, 61, open_model);
}

#[test]
fn numbers_in_tokenizer_files_do_not_decide_what_is_allocated() {
    let _alone = alone();
    for file in ["bpe.model", "unigram.model"] {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("tokenizer");
        fs::create_dir(&folder).unwrap();
        let original = fs::read(fixtures().join("tokenizers/sentencepiece").join(file)).unwrap();
        for at in (0..original.len() - 10).step_by(17) {
            let mut changed = original.clone();
            // The longest length that the format can write.
            changed[at..at + 10].copy_from_slice(&[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
            fs::write(folder.join("tokenizer.model"), changed).unwrap();
            let ((), most) = counted(|| open_tokenizer(&folder));
            assert!(most < ALLOWED_BYTES, "{file} at {at}: {most} bytes");
        }
    }
}

#[test]
fn ids_and_sizes_in_json_do_not_decide_what_is_allocated() {
    let _alone = alone();
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("tokenizer");
    fs::create_dir(&folder).unwrap();
    let original = fs::read_to_string(fixtures().join("tokenizers/bytelevel/tokenizer.json")).unwrap();
    let changes: [fn(&mut Value); 3] = [
        |tokenizer| tokenizer["model"]["vocab"]["zz"] = json!(u32::MAX),
        |tokenizer| tokenizer["added_tokens"][0]["id"] = json!(u32::MAX - 1),
        |tokenizer| tokenizer["truncation"] = json!({"max_length": u64::MAX, "stride": 0, "strategy": "LongestFirst"}),
    ];
    for change in changes {
        let mut tokenizer: Value = serde_json::from_str(&original).unwrap();
        change(&mut tokenizer);
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let ((), most) = counted(|| open_tokenizer(&folder));
        assert!(most < ALLOWED_BYTES, "{most} bytes");
    }
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let ranks = fs::read_to_string(fixtures().join("tokenizers/tiktoken/test.tiktoken")).unwrap();
    fs::write(folder.join("a.tiktoken"), ranks.replace(" 7\n", " 4294967295\n")).unwrap();
    let ((), most) = counted(|| open_tokenizer(&folder));
    assert!(most < ALLOWED_BYTES, "{most} bytes");
    for key in ["num_hidden_layers", "vocab_size", "num_attention_heads", "max_position_embeddings", "head_dim"] {
        for lie in LIES {
            let model = damaged(root.path(), &format!("{key}{lie}"), "models/qwen3", "config.json", |bytes| {
                let mut config: Value = serde_json::from_slice(bytes).unwrap();
                config[key] = json!(lie);
                *bytes = config.to_string().into_bytes();
            });
            let ((), most) = counted(|| open_model(&model));
            assert!(most < ALLOWED_BYTES, "{key} {lie}: {most} bytes");
        }
    }
}
