//! GGUF files: their tensors, their vocabularies, and what is said of those that cannot be read.

use crate::driver::{fixtures, options};
use crate::formats::{assert_names, copies, failure, folders, formats, report};
use crate::golden::check_folder;
use serde_json::{Value, json};
use std::fs;
use std::panic;
use std::path::Path;
use triton_trtllm::adapter::tokenizer::{has_tokenizer, load_tokenizer};
use triton_trtllm::device::DType;
use triton_trtllm::model::formats::gguf::GgufFile;

#[test]
fn gguf_files_equal_the_reference() {
    let folders = folders("gguf", 51);
    let failed: Vec<_> =
        folders.iter().filter(|folder| panic::catch_unwind(|| check_folder(folder)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn gguf_blocks_are_read_like_the_reference_reads_them() {
    let file = GgufFile::open(&fixtures().join("formats/gguf-blocks.gguf")).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap().unwrap();
        let mut bytes = Vec::new();
        tensor.read(0..tensor.rows(), DType::F32, &mut bytes);
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    };
    let mut checked = 0;
    for name in file.names().filter_map(|name| name.strip_suffix(".blocks")) {
        let (got, expected) = (floats(&format!("{name}.blocks")), floats(&format!("{name}.values")));
        assert_eq!(got.len(), expected.len(), "{name}");
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!((got - expected).abs() <= expected.abs() * 1e-6, "{name}: element {i} is {got}, not {expected}");
        }
        checked += 1;
    }
    assert_eq!(checked, 13);
}

#[test]
fn a_gguf_file_brings_its_tokenizer() {
    let path = formats("gguf").join("llama-gqa");
    assert!(has_tokenizer(&path) && !has_tokenizer(&fixtures().join("models/llama-gqa")));
    for path in [path.clone(), path.join("model.gguf")] {
        let tokenizer = load_tokenizer(&path).unwrap();
        // <bos>, "he", "y", " he"
        assert_eq!(tokenizer.encode("hey he", true).unwrap(), [0, 97, 90, 98]);
        assert_eq!(tokenizer.decode(&[0, 97, 90, 98, 1], true), "hey he");
        assert_eq!(tokenizer.encode("<eos>", false).unwrap(), [1]);
        assert_eq!((tokenizer.eos_ids(), tokenizer.bos().unwrap().id), ([1].as_slice(), 0));
    }
}

#[test]
fn a_sentencepiece_vocabulary_of_a_gguf_file_gives_the_ids_of_the_model() {
    let tokenizer = load_tokenizer(&formats("sentencepiece.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join("tokenizers/sentencepiece/bpe.model"), folder.path().join("tokenizer.model")).unwrap();
    let config = json!({"tokenizer_class": "LlamaTokenizer", "legacy": true});
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let expected = load_tokenizer(folder.path()).unwrap();
    for text in ["Once upon a time", " two  blanks", "caf\u{e9} \u{1f600}", "a</s>b", ""] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids, expected.encode(text, true).unwrap(), "{text:?}");
        assert_eq!(ids[0], 1);
        assert_eq!(tokenizer.decode(&ids, true), expected.decode(&ids, true));
    }
}

#[test]
fn the_tokenizer_of_a_gemma_gguf_file_gives_the_ids_of_its_model() {
    let tokenizer = load_tokenizer(&formats("gemma-tokenizer.gguf")).unwrap();
    let text = fs::read_to_string(formats("gemma-tokenizer.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    for case in reference["cases"].as_array().unwrap() {
        let (text, ids): (_, Vec<i32>) =
            (case["text"].as_str().unwrap(), serde_json::from_value(case["ids"].clone()).unwrap());
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), [&[2], ids.as_slice()].concat(), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true), case["decoded"].as_str().unwrap(), "{text:?}");
    }
}

/// A GGUF file with ten digits, two pairs of them, and the name of a way to cut texts.
fn digits_gguf(path: &Path, pre: &str) {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let (string, array) = (8_u32.to_le_bytes(), 9_u32.to_le_bytes());
    let strings = |key: &str, texts: &[&str]| {
        let mut out =
            [text(key), array.to_vec(), string.to_vec(), (texts.len() as u64).to_le_bytes().to_vec()].concat();
        texts.iter().for_each(|one| out.extend(text(one)));
        out
    };
    let named = |key: &str, value: &str| [text(key), string.to_vec(), text(value)].concat();
    let tokens = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "12", "34"];
    let bytes = [
        b"GGUF".to_vec(),
        3_u32.to_le_bytes().to_vec(),
        0_u64.to_le_bytes().to_vec(),
        6_u64.to_le_bytes().to_vec(),
        named("general.architecture", "llama"),
        [text("tokenizer.ggml.bos_token_id"), 4_u32.to_le_bytes().to_vec(), 9_u32.to_le_bytes().to_vec()].concat(),
        named("tokenizer.ggml.model", "gpt2"),
        named("tokenizer.ggml.pre", pre),
        strings("tokenizer.ggml.tokens", &tokens),
        strings("tokenizer.ggml.merges", &["1 2", "3 4"]),
    ];
    fs::write(path, bytes.concat()).unwrap();
}

#[test]
fn vocabularies_of_gguf_files_are_cut_as_their_names_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("digits.gguf");
    let (runs, threes, single): (&[i32], &[i32], &[i32]) = (&[10, 11], &[10, 3, 4], &[1, 2, 3, 4]);
    let expected = [
        ("gpt-2", runs),
        ("exaone4", runs),
        ("bloom", runs),
        ("deepseek-llm", runs),
        ("llama-bpe", threes),
        ("glm4", threes),
        ("dbrx", threes),
        ("falcon", threes),
        ("deepseek-v3", threes),
        ("falcon3", threes),
        ("pixtral", threes),
        ("kimi-k2", threes),
        ("gpt-4o", threes),
        ("qwen2", single),
        ("tekken", single),
        ("smollm", single),
        ("deepseek-coder", single),
        ("viking", single),
    ];
    for (name, ids) in expected {
        digits_gguf(&path, name);
        let tokenizer = load_tokenizer(&path).unwrap();
        assert_eq!(tokenizer.encode("1234", false).unwrap(), ids, "{name}");
        // The file says nothing of it.
        let begins_with_bos = tokenizer.encode("1234", true).unwrap()[0] == 9;
        assert_eq!(begins_with_bos, ["llama-bpe", "falcon3", "pixtral", "tekken"].contains(&name), "{name}");
    }
    digits_gguf(&path, "secret");
    let error = load_tokenizer(&path).err().unwrap();
    assert_names(&error, &["tokenizer.ggml.pre \"secret\" is not supported"]);
}

/// The layers with a window are not guessed.
#[test]
fn a_gguf_file_must_say_which_layers_have_a_window() {
    for (name, architecture) in [("exaone4", "exaone4"), ("olmo3", "olmo2")] {
        let root = copies(&[("model", formats("gguf").join(name))]);
        let path = root.path().join("model/model.gguf");
        let mut bytes = fs::read(&path).unwrap();
        let key = b"sliding_window_pattern";
        let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
        bytes[at..at + 3].copy_from_slice(b"xxx");
        fs::write(&path, bytes).unwrap();
        let parts = ["model.gguf", architecture, "sliding_window is 16", "sliding_window_pattern", "is not there"];
        assert_names(&failure(&path), &parts);
    }
}

#[test]
fn a_folder_with_several_gguf_models_asks_for_one() {
    let root = copies(&[("model", formats("gguf").join("llama-gqa"))]);
    let folder = root.path().join("model");
    fs::copy(folder.join("model.gguf"), folder.join("other.gguf")).unwrap();
    assert_names(&failure(&folder), &["several GGUF models: model.gguf, other.gguf", "gpt_model_path"]);
    fs::rename(folder.join("other.gguf"), folder.join("mmproj-other.gguf")).unwrap();
    report(&options(&folder, 64)).unwrap();
}

#[test]
fn a_missing_part_of_a_split_gguf_model_is_named() {
    let root = copies(&[("model", formats("gguf").join("llama-gqa"))]);
    let folder = root.path().join("model");
    fs::rename(folder.join("model.gguf"), folder.join("m-00001-of-00002.gguf")).unwrap();
    assert_names(&failure(&folder), &["m-00001-of-00002.gguf has 2 parts", "m-00002-of-00002.gguf is the first"]);
}

#[test]
fn a_split_gguf_model_is_read_from_all_its_parts() {
    let root = copies(&[("model", formats("gguf").join("llama-gqa"))]);
    let folder = root.path().join("model");
    let bytes = fs::read(folder.join("model.gguf")).unwrap();
    let (first, second) = (folder.join("m-00001-of-00002.gguf"), folder.join("m-00002-of-00002.gguf"));
    // As they are split by default: the first part has the metadata, and no tensor.
    fs::write(&first, [&bytes[..8], &[0; 8], &bytes[16..]].concat()).unwrap();
    fs::rename(folder.join("model.gguf"), &second).unwrap();
    check_folder(&folder);
    for path in [&folder, &first, &second] {
        assert!(report(&options(path, 64)).unwrap().unused.is_empty() && has_tokenizer(path));
    }
}

#[test]
fn gguf_errors_name_the_file_and_the_field() {
    let root = copies(&[("model", formats("gguf").join("qwen3"))]);
    let path = root.path().join("model/model.gguf");
    let original = fs::read(&path).unwrap();
    let check = |change: &dyn Fn(&mut Vec<u8>), parts: &[&str]| {
        let mut bytes = original.clone();
        change(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let error = failure(&path);
        assert_names(&error, parts);
        assert_names(&error, &["model.gguf"]);
    };
    let replace = |bytes: &mut Vec<u8>, from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes.splice(at..at + from.len(), to.iter().copied());
    };
    check(&|bytes| bytes[0] = b'X', &["is no GGUF file"]);
    check(&|bytes| bytes[4] = 9, &["version is 9"]);
    check(&|bytes| bytes[8..16].fill(255), &["announces 18446744073709551615 elements or bytes for tensor_count"]);
    check(&|bytes| bytes.truncate(200), &["cut off while copying?"]);
    check(&|bytes| bytes.truncate(bytes.len() - 100), &["places the tensor", "cut off"]);
    check(&|bytes| replace(bytes, b"qwen3", b"qwenX"), &["general.architecture \"qwenX\" is not supported", "qwen3"]);
    check(
        &|bytes| replace(bytes, b"qwen3.block_count\x04", b"qwen3.block_count\x63"),
        &["qwen3.block_count the type 99"],
    );
    check(
        &|bytes| replace(bytes, b"block_count\x04\0\0\0\x02", b"block_count\x04\0\0\0\0"),
        &["num_hidden_layers is 0"],
    );
    check(
        &|bytes| replace(bytes, b"ffn_norm", b"ffn_gone"),
        &["lacks 1 tensor: model.layers.0.post_attention_layernorm.weight"],
    );
    let type_of = |name: &[u8], dims: usize| {
        let at = original.windows(name.len()).position(|window| window == name).unwrap();
        at + name.len() + 4 + 8 * dims
    };
    let at = type_of(b"output_norm.weight", 1);
    check(&|bytes| bytes[at] = 22, &["output_norm.weight has type IQ2_S (22)", "supported are F32"]);
}
