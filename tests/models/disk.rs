//! The KV cache on disk with a real model: what a process leaves is good for the next one, unless it is damaged.

use std::fs;
use std::path::Path;

use crate::driver::{BLOCK_SIZE, fixtures, load, options};
use crate::engine::{submit, tokens};
use triton_trtllm::decode::StopCriteria;
use triton_trtllm::device::DType;
use triton_trtllm::engine::{Engine, EngineConfig, Request};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;
use triton_trtllm::step::Executor;

fn start(model: &str, folder: &Path, dtype: DType) -> Engine {
    let model = load(&ModelOptions {
        kv_disk: Some((folder.to_owned(), 1 << 20)),
        dtype: Some(dtype),
        ..options(&fixtures().join("models").join(model), 96)
    });
    let config = EngineConfig::for_limits(&model.executor.limits());
    Engine::start(config, Box::new(model.executor)).unwrap()
}

/// Of prompt and answer.
const WHOLE_BLOCKS: usize = (5 * BLOCK_SIZE + 3 + 11) / BLOCK_SIZE;

/// 5 whole blocks and a bit.
fn request() -> Request {
    let prompt = (0..5 * BLOCK_SIZE + 3).map(|at| (at * at % 90) as TokenId).collect();
    Request { prompt, stop: StopCriteria { max_tokens: 12, ..StopCriteria::default() }, ..Request::default() }
}

fn answer(engine: &Engine) -> (Vec<TokenId>, u64) {
    let before = engine.stats().totals.cached_tokens;
    let tokens = tokens(&submit(engine, request()));
    (tokens, engine.stats().totals.cached_tokens - before)
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_restart_finds_what_was_stored_and_computes_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let first = start("llama-gqa", folder.path(), DType::F32);
    let (expected, fresh) = answer(&first);
    assert_eq!(fresh, 0);
    drop(first);
    assert_eq!(files(folder.path()).len(), WHOLE_BLOCKS, "what came once, all of it when the engine has gone");

    let second = start("llama-gqa", folder.path(), DType::F32);
    assert_eq!(answer(&second), (expected.clone(), 5 * BLOCK_SIZE as u64));
    assert_eq!(second.stats().last_iteration.tiers.loaded_blocks, 5);
    drop(second);

    for path in files(folder.path()) {
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 100;
        bytes[at] ^= 4;
        fs::write(&path, bytes).unwrap();
    }
    let third = start("llama-gqa", folder.path(), DType::F32);
    assert_eq!(answer(&third), (expected, 0), "damaged files are seen before they are used");
    assert_eq!(third.stats().last_iteration.tiers.failed_transfers, 1);
}

#[test]
fn other_models_and_types_have_nothing_in_common() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start("llama-gqa", folder.path(), DType::F32);
    answer(&engine);
    drop(engine);
    for (model, dtype) in [("llama-gqa", DType::F16), ("mistral-window", DType::F32)] {
        assert_eq!(answer(&start(model, folder.path(), dtype)).1, 0, "{model} {dtype}");
    }
    let of_all = files(folder.path()).len();
    assert_eq!(of_all, 3 * WHOLE_BLOCKS, "and nobody's files are touched");
}

#[test]
fn a_folder_that_cannot_be_made_and_too_few_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, bytes, part) in [(&file, 1 << 20, "kv_cache_disk_path"), (&folder.path().join("kv"), 100, "one block")] {
        let options = options(&fixtures().join("models/llama-gqa"), 96);
        let wrong = ModelOptions { kv_disk: Some((path.clone(), bytes)), ..options };
        let error = triton_trtllm::runner::load_on(&crate::driver::device(), &wrong).err().unwrap();
        assert!(error.message().contains(part), "{error}");
    }
}

#[test]
fn windows_survive_a_restart() {
    for model in ["gemma3", "mistral-window"] {
        let folder = tempfile::tempdir().unwrap();
        let start = || {
            let model = load(&ModelOptions {
                kv_disk: Some((folder.path().to_owned(), 1 << 22)),
                max_batch_size: Some(4),
                max_step_tokens: Some(16),
                ..options(&fixtures().join("models").join(model), 200)
            });
            assert!(!model.report.kv.windows.is_empty(), "{}", model.report);
            let config = EngineConfig::for_limits(&model.executor.limits());
            Engine::start(config, Box::new(model.executor)).unwrap()
        };
        let prompt: Vec<TokenId> = (0..100).map(|at| (at * at % 90) as TokenId).collect();
        let wish = || Request { prompt: prompt.clone(), ..request() };
        let first = start();
        let expected = tokens(&submit(&first, wish()));
        drop(first);
        let second = start();
        assert_eq!(tokens(&submit(&second, wish())), expected, "{model}");
        let stats = second.stats();
        assert!(stats.totals.cached_tokens >= 96 && stats.last_iteration.tiers.loaded_blocks > 0, "{model}: {stats:?}");
    }
}
