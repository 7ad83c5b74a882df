//! Checkpoints that must not load: one sentence that names the file and the field.

use crate::driver::{device, fixtures, options};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use triton_trtllm::error::{Error, ErrorKind};
use triton_trtllm::runner::{LoadedModel, ModelOptions, ModelSource, load_on};

pub fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join("models").join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

pub fn failure(folder: &Path) -> Error {
    failure_with(&options(folder, 64))
}

fn failure_with(options: &ModelOptions) -> Error {
    match load_on(&device(), options) {
        Err(error) => error,
        Ok(LoadedModel { report, .. }) => panic!("loaded\n{report}"),
    }
}

pub fn assert_names(error: &Error, parts: &[&str]) {
    let message = error.message();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
    assert!(!message.contains('\n'), "{message:?} is not one sentence");
}

pub fn change_config(folder: &Path, key: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// Rewrites the JSON header of `model.safetensors`, data unchanged.
pub fn change_header(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    change(&mut header);
    let header = header.to_string().into_bytes();
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header);
    changed.extend(&bytes[8 + len..]);
    fs::write(path, changed).unwrap();
}

#[test]
fn a_folder_that_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    assert_names(&failure(folder.path()), &["no config.json", "it is empty"]);
    fs::write(folder.path().join("notes.txt"), "x").unwrap();
    let error = failure(folder.path());
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_names(&error, &["no config.json", "found: notes.txt"]);
    assert_names(&failure(&folder.path().join("absent")), &["absent does not exist"]);
    assert_names(&failure(&folder.path().join("notes.txt")), &["notes.txt is a file"]);
    fs::write(folder.path().join("model.nemo"), "x").unwrap();
    assert_names(
        &failure(&folder.path().join("model.nemo")),
        &["model.nemo is a NeMo archive, which is not served yet"],
    );
    let folder = copy_of("qwen3");
    let parts = ["model.safetensors is a file of the model in", "a folder with a config.json"];
    assert_names(&failure(&folder.path().join("model.safetensors")), &parts);
}

#[test]
fn a_config_that_is_not_json_or_not_an_object() {
    let folder = copy_of("qwen3");
    fs::write(folder.path().join("config.json"), "{\"hidden_size\": ").unwrap();
    assert_names(&failure(folder.path()), &["config.json is not valid JSON"]);
    fs::write(folder.path().join("config.json"), "[1]").unwrap();
    assert_names(&failure(folder.path()), &["config.json must hold a JSON object, not [1]"]);
}

#[test]
fn an_unknown_architecture() {
    let folder = copy_of("qwen3");
    change_config(folder.path(), "architectures", json!(["WhatForCausalLM"]));
    let error = failure(folder.path());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_names(&error, &["WhatForCausalLM is not supported", "families llama, ", ", qwen3, "]);
}

#[test]
fn sizes_that_cannot_be() {
    let cases = [
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("num_key_value_heads", json!(3), "multiple of num_key_value_heads, 3"),
        ("hidden_size", json!(1_u64 << 60), "hidden_size is 1152921504606846976"),
        ("vocab_size", json!("many"), "vocab_size is \"many\""),
        ("num_hidden_layers", Value::Null, "no num_hidden_layers"),
    ];
    for (key, value, expected) in cases {
        let folder = copy_of("qwen3");
        change_config(folder.path(), key, value);
        assert_names(&failure(folder.path()), &["config.json", expected]);
    }
}

#[test]
fn no_weights() {
    let folder = copy_of("qwen3");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_names(&failure(folder.path()), &["no model.safetensors", "config.json"]);
}

#[test]
fn a_truncated_file() {
    let folder = copy_of("qwen3");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    assert_names(&failure(folder.path()), &["model.safetensors", "cut off"]);
    fs::write(&path, &bytes[..5]).unwrap();
    assert_names(&failure(folder.path()), &["model.safetensors has 5 bytes", "too short"]);
    fs::write(&path, []).unwrap();
    assert_names(&failure(folder.path()), &["model.safetensors"]);
}

#[test]
fn a_clone_without_its_large_files() {
    let folder = copy_of("qwen3");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 22036200\n";
    fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    assert_names(&failure(folder.path()), &["model.safetensors is a Git LFS pointer", "run git lfs pull"]);
}

#[test]
fn a_wrong_header_length() {
    let folder = copy_of("qwen3");
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(&(1_u64 << 20).to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    assert_names(&failure(folder.path()), &["model.safetensors announces a header of 1048576 bytes"]);
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    assert_names(&failure(folder.path()), &["header of 18446744073709551615 bytes"]);
    bytes[..8].copy_from_slice(&40_u64.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    assert_names(&failure(folder.path()), &["model.safetensors has a damaged safetensors header"]);
}

#[test]
fn a_tensor_outside_the_file() {
    let folder = copy_of("qwen3");
    change_header(folder.path(), |header| {
        header["model.norm.weight"]["data_offsets"] = json!([1 << 30, (1 << 30) + 128])
    });
    assert_names(&failure(folder.path()), &["model.safetensors", "offsets of"]);
}

#[test]
fn a_type_that_is_not_supported() {
    let folder = copy_of("qwen3");
    change_header(folder.path(), |header| header["model.norm.weight"]["dtype"] = json!("I32"));
    let error = failure(folder.path());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_names(&error, &["model.safetensors", "model.norm.weight has type I32"]);
}

#[test]
fn a_shape_that_does_not_fit_the_config() {
    let folder = copy_of("qwen3");
    change_config(folder.path(), "intermediate_size", json!(96));
    let parts = ["model.layers.0.mlp.gate_proj.weight has shape [64, 32]", "config.json asks for [96, 32]"];
    assert_names(&failure(folder.path()), &parts);
}

#[test]
fn missing_tensors_are_named_all_at_once() {
    let folder = copy_of("qwen3");
    change_config(folder.path(), "num_hidden_layers", json!(3));
    let parts = ["lacks 11 tensors", "model.layers.2.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"];
    assert_names(&failure(folder.path()), &parts);
}

#[test]
fn a_missing_shard() {
    let folder = copy_of("llama-sharded");
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_names(&failure(folder.path()), &["index.json", "not there: model-00002-of-00002.safetensors"]);
}

#[test]
fn an_index_that_lies() {
    let folder = copy_of("llama-sharded");
    let path = folder.path().join("model.safetensors.index.json");
    let original = fs::read_to_string(&path).unwrap();
    let mut index: Value = serde_json::from_str(&original).unwrap();
    index["weight_map"]["model.extra.weight"] = json!("model-00001-of-00002.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    assert_names(&failure(folder.path()), &["model.extra.weight", "does not hold it"]);
    index["weight_map"]["model.extra.weight"] = json!("../elsewhere.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    assert_names(&failure(folder.path()), &["index.json", "weight_map"]);
}

#[test]
fn a_cache_that_cannot_hold_one_sequence() {
    let folder = copy_of("qwen3");
    let error = failure_with(&ModelOptions { kv_max_tokens: Some(40), ..options(folder.path(), 64) });
    assert_names(&error, &["number of blocks is 5", "40 tokens", "max_seq_len 64 needs 8", "at most 40"]);
}

#[test]
fn options_out_of_range() {
    let folder = copy_of("qwen3");
    let base = || options(folder.path(), 64);
    assert_names(&failure_with(&ModelOptions { max_batch_size: Some(0), ..base() }), &["max_batch_size is 0"]);
    assert_names(&failure_with(&ModelOptions { block_size_tokens: 48, ..base() }), &["tokens_per_block is 48"]);
    assert_names(
        &failure_with(&ModelOptions { max_seq_len: Some(999), ..base() }),
        &["max_seq_len is 999", "end at 256"],
    );
    let error = failure_with(&ModelOptions { kv_free_fraction: Some(f64::NAN), ..base() });
    assert_names(&error, &["kv_cache_free_gpu_mem_fraction is NaN"]);
    let unknown = ModelOptions::new(ModelSource::Dummy("llama-9000b".to_owned()));
    assert_names(&failure_with(&unknown), &["no dummy model llama-9000b", "tinyllama-1.1b"]);
}

#[cfg(unix)]
#[test]
fn a_config_that_leads_to_itself() {
    let folder = copy_of("qwen3");
    let path = folder.path().join("config.json");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert_names(&failure(folder.path()), &["config.json", "symbolic links"]);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "{\"text_config\":".repeat(100_000)).unwrap();
    assert_names(&failure(folder.path()), &["config.json is not valid JSON"]);
    // An engine folder whose checkpoint is the engine folder.
    fs::write(&path, json!({"build_config": {}, "pretrained_config": {}}).to_string()).unwrap();
    let mut options = options(folder.path(), 64);
    options.weight_places.checkpoint_dir = Some(folder.path().to_owned());
    assert_names(&failure_with(&options), &["is an engine folder; checkpoint_dir must hold weights"]);
}
