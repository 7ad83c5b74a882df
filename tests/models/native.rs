//! Folders with `params.json`, and the tensors of wrappers of the training under longer names.

use crate::bad_checkpoints::{assert_names, change_header, copy_of, failure};
use crate::driver::{device, options};
use crate::golden::check_folder;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use triton_trtllm::error::ErrorKind;
use triton_trtllm::runner::load_on;

/// In the folder, and in Hugging Face's.
const NAMES: [(&str, &str); 12] = [
    ("self_attn.q_proj", "attention.wq"),
    ("self_attn.k_proj", "attention.wk"),
    ("self_attn.v_proj", "attention.wv"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("model.embed_tokens", "tok_embeddings"),
    ("model.norm", "norm"),
    ("lm_head", "output"),
];

/// Rows of float32 whose halves of each head are interleaved.
fn interleaved(matrix: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row_bytes = matrix.len() / rows;
    let row = |row: usize| {
        let (head, in_head) = (row / head_dim, row % head_dim);
        let from = head * head_dim + in_head % 2 * (head_dim / 2) + in_head / 2;
        &matrix[from * row_bytes..(from + 1) * row_bytes]
    };
    (0..rows).flat_map(|index| row(index).iter().copied()).collect()
}

/// Turns a copy of the Mistral fixture into a folder of Mistral's own form.
fn make_native(folder: &Path, params: Value) {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let old: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), bytes[8 + len..].to_vec());
    for (name, entry) in old.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") {
            let at = |index: usize| entry["data_offsets"][index].as_u64().unwrap() as usize;
            let rows = entry["shape"][0].as_u64().unwrap() as usize;
            let turned = interleaved(&data[at(0)..at(1)], rows, 16);
            data[at(0)..at(1)].copy_from_slice(&turned);
        }
        let own = NAMES.iter().fold(name.clone(), |name, (from, to)| name.replace(from, to));
        header.insert(own.trim_start_matches("model.").to_owned(), entry.clone());
    }
    let header = Value::Object(header).to_string().into_bytes();
    let parts = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data];
    fs::write(folder.join("consolidated.safetensors"), parts.concat()).unwrap();
    ["model.safetensors", "config.json"].into_iter().for_each(|name| fs::remove_file(folder.join(name)).unwrap());
    fs::write(folder.join("params.json"), params.to_string()).unwrap();
}

fn params() -> Value {
    json!({"dim": 32, "n_layers": 2, "head_dim": 16, "hidden_dim": 64, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
        "rope_theta": 10000.0, "vocab_size": 128, "sliding_window": 16, "max_position_embeddings": 256})
}

#[test]
fn a_folder_with_params_json_is_the_same_model() {
    let folder = copy_of("mistral-window");
    make_native(folder.path(), params());
    check_folder(folder.path());
    let report = load_on(&device(), &options(folder.path(), 64)).unwrap().report;
    assert_eq!((report.format.as_str(), report.unused.len()), ("folder with params.json", 0));
    let folder = copy_of("mistral-window");
    make_native(folder.path(), json!({"dim": 32, "n_layers": 2, "moe": {"num_experts": 8}}));
    let error = failure(folder.path());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_names(&error, &["params.json: moe is not supported"]);
}

#[test]
fn longer_names_of_wrappers_are_known() {
    let endings: [fn(&str) -> String; 3] = [
        |name| format!("module.{name}"),
        |name| format!("_orig_mod.{name}"),
        |name| name.replace("_proj.weight", "_proj.base_layer.weight"),
    ];
    for rename in endings {
        let folder = copy_of("qwen3");
        change_header(folder.path(), |header| {
            let old = std::mem::take(header.as_object_mut().unwrap());
            let renamed =
                |(name, entry): (String, Value)| (if name == "__metadata__" { name } else { rename(&name) }, entry);
            header.as_object_mut().unwrap().extend(old.into_iter().map(renamed));
        });
        check_folder(folder.path());
    }
}

#[test]
fn an_adapter_without_its_model_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"peft_type": "LORA", "base_model_name_or_path": "org/base"});
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let error = failure(folder.path());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_names(&error, &["holds an adapter (adapter_config.json) for org/base"]);
}
