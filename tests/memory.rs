//! Memory comes back: after loads that failed, and models that were dropped, the process holds what it held before.
//! And while they are loaded, the host holds little of it. Alone in its process, so that nothing else moves the figures.

#[path = "memory/counting.rs"]
mod counting;
#[path = "memory/loading.rs"]
mod loading;
#[path = "memory/readers.rs"]
mod readers;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use triton_trtllm::device::cpu::CpuOptions;
use triton_trtllm::device::{DType, DeviceKind, DeviceOptions, SharedDevice, open};
use triton_trtllm::runner::{ModelOptions, ModelSource, load_on};

const ROUNDS: usize = 60;
/// Less than what a hundred models or files would be, more than what an allocator keeps.
const ALLOWED_BYTES: usize = 3 << 20;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

fn options(path: &Path) -> ModelOptions {
    ModelOptions {
        dtype: Some(DType::F32),
        max_batch_size: Some(2),
        max_seq_len: Some(64),
        max_step_tokens: Some(64),
        block_size_tokens: 8,
        kv_max_tokens: Some(128),
        ..ModelOptions::new(ModelSource::Folder(path.to_owned()))
    }
}

/// A copy of a fixture in which one file is changed.
fn damaged(root: &Path, name: &str, from: &str, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let folder = root.join(name);
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(fixtures().join(from)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let mut bytes = fs::read(folder.join(file)).unwrap();
    change(&mut bytes);
    fs::write(folder.join(file), bytes).unwrap();
    folder
}

fn without_layers(bytes: &mut Vec<u8>) {
    let mut config: Value = serde_json::from_slice(bytes).unwrap();
    config["num_hidden_layers"] = json!(7);
    *bytes = config.to_string().into_bytes();
}

fn load_all(device: &SharedDevice, good: &[PathBuf], bad: &[PathBuf]) {
    for path in good {
        load_on(device, &options(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    for path in bad {
        assert!(load_on(device, &options(path)).is_err(), "{} loaded", path.display());
    }
}

#[test]
fn loads_that_fail_and_models_that_are_dropped_give_their_memory_back() {
    let _alone = alone();
    let root = tempfile::tempdir().unwrap();
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() * 3 / 4);
    let bad = [
        damaged(root.path(), "cut", "models/llama-gqa", "model.safetensors", cut),
        damaged(root.path(), "layers", "models/llama-gqa", "config.json", without_layers),
        damaged(root.path(), "header", "models/llama-gqa", "model.safetensors", |bytes| bytes[..8].fill(0x7f)),
        damaged(root.path(), "gguf", "formats/gguf/qwen3", "model.gguf", cut),
        damaged(root.path(), "counts", "formats/gguf/qwen3", "model.gguf", |bytes| bytes[8..16].fill(255)),
        damaged(root.path(), "rank", "formats/trtllm/llama-gqa-tp2-pp1", "rank1.safetensors", cut),
        damaged(root.path(), "pickle", "formats/pickle/llama-gqa", "pytorch_model.bin", cut),
    ];
    let good =
        ["models/llama-gqa", "formats/gguf/qwen3", "formats/trtllm/llama-gqa-tp2-pp1", "formats/pickle/llama-gqa"]
            .map(|name| fixtures().join(name));
    let cpu = CpuOptions { threads: Some(2), ..Default::default() };
    let device = open(DeviceKind::Cpu, &[], &DeviceOptions { cpu, ..Default::default() }).unwrap();
    (0..ROUNDS / 4).for_each(|_| load_all(&device, &good, &bad));
    let before = resident_bytes();
    (0..ROUNDS).for_each(|_| load_all(&device, &good, &bad));
    let after = resident_bytes();
    assert!(after < before + ALLOWED_BYTES, "{before} bytes became {after}");
}
