//! Logits and greedy tokens of every fixture.

use crate::driver::{BLOCK_SIZE, Driver, device, fixtures, load, options, root};
use serde_json::Value;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::device::DType;
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;

pub struct Case {
    pub prompt: Vec<TokenId>,
    logits: Vec<f32>,
    pub tokens: Vec<TokenId>,
    log_probs: Vec<f32>,
}

pub fn cases(folder: &Path) -> Vec<Case> {
    let reference: Value = serde_json::from_str(&fs::read_to_string(folder.join("reference.json")).unwrap()).unwrap();
    let ids = |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as TokenId).collect();
    let floats = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    let case = |case: &Value| Case {
        prompt: ids(&case["prompt"]),
        logits: floats(&case["logits"]),
        tokens: ids(&case["tokens"]),
        log_probs: floats(&case["log_probs"]),
    };
    reference["cases"].as_array().unwrap().iter().map(case).collect()
}

fn models() -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        fs::read_dir(fixtures().join("models")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 80, "fixtures are missing: {folders:?}");
    folders
}

/// The length that a reference with a length-dependent rope was computed for is that of the request.
fn exact_options(folder: &Path, case: &Case) -> ModelOptions {
    options(folder, case.prompt.len() + case.tokens.len())
}

fn depends_on_length(folder: &Path) -> bool {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    name.contains("dynamic") || name.contains("longrope")
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0_f32, |max, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).map(|(g, e)| (g - e).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance * scale, "{what}: logits differ by {worst}, at a scale of {scale}");
}

pub fn check_folder(folder: &Path) {
    for case in cases(folder) {
        let mut driver = Driver::new(load(&exact_options(folder, &case)).executor);
        let what = format!("{} with a prompt of {}", folder.display(), case.prompt.len());
        let seq = driver.add(&case.prompt, &SamplingParams { log_probs: true, ..Default::default() });
        for (index, (&token, &log_prob)) in case.tokens.iter().zip(&case.log_probs).enumerate() {
            let rows = driver.step(&[seq], usize::MAX, Vec::new());
            if index == 0 {
                assert_close(&driver.executor.last_logits().unwrap()[0], &case.logits, 1e-4, &what);
            }
            let got = rows[0].tokens[0];
            assert_eq!(got.id, token, "{what}: token {index}");
            let full = got.log_prob.unwrap().full;
            assert!((full - log_prob).abs() < 2e-3, "{what}: log-probability {index} is {full}, not {log_prob}");
        }
    }
}

#[test]
fn logits_and_greedy_tokens_equal_the_reference() {
    let failed: Vec<_> =
        models().into_iter().filter(|folder| panic::catch_unwind(|| check_folder(folder)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn both_spellings_of_a_config_mean_the_same_model() {
    let mut checked = 0;
    for folder in models().iter().filter(|folder| folder.join("config.alt.json").exists()) {
        let copy = tempfile::tempdir().unwrap();
        for (from, to) in [
            ("config.alt.json", "config.json"),
            ("model.safetensors", "model.safetensors"),
            ("reference.json", "reference.json"),
        ] {
            fs::copy(folder.join(from), copy.path().join(to)).unwrap();
        }
        check_folder(copy.path());
        checked += 1;
    }
    assert!(checked >= 60, "{checked} fixtures have a second spelling");
}

#[test]
fn chunked_prefill_does_not_change_tokens() {
    for folder in models() {
        for case in cases(&folder) {
            for chunk in [1, 5, 8, 64] {
                let mut driver = Driver::new(load(&exact_options(&folder, &case)).executor);
                let seq = driver.add(&case.prompt, &SamplingParams::default());
                let got = driver.generate(&[seq], case.tokens.len(), chunk);
                assert_eq!(got[0], case.tokens, "{}: chunks of {chunk}", folder.display());
            }
        }
    }
}

#[test]
fn a_batch_gives_each_sequence_what_it_gets_alone() {
    for folder in models().iter().filter(|folder| !depends_on_length(folder)) {
        let cases = cases(folder);
        for chunk in [7, usize::MAX] {
            let mut driver = Driver::new(load(&options(folder, 154)).executor);
            let seqs: Vec<_> = cases.iter().map(|case| driver.add(&case.prompt, &SamplingParams::default())).collect();
            let got = driver.generate(&seqs, cases[0].tokens.len(), chunk);
            for (got, case) in got.iter().zip(&cases) {
                assert_eq!(got, &case.tokens, "{}: prompt of {}", folder.display(), case.prompt.len());
            }
        }
    }
}

#[test]
fn a_prefix_hit_and_a_copied_block_do_not_change_tokens() {
    for folder in models().iter().filter(|folder| !depends_on_length(folder)) {
        let case = cases(folder).pop().unwrap();
        let mut driver = Driver::new(load(&options(folder, 154)).executor);
        let first = driver.add(&case.prompt, &SamplingParams::default());
        driver.generate(&[first], 3, usize::MAX);
        let blocks = case.prompt.len() / BLOCK_SIZE / 2;
        let shared = driver.add(&case.prompt, &SamplingParams::default());
        driver.share_prefix(first, shared, blocks);
        assert_eq!(driver.generate(&[shared], case.tokens.len(), 16)[0], case.tokens, "{}", folder.display());
        let copied = driver.add(&case.prompt, &SamplingParams::default());
        driver.share_prefix(first, copied, blocks);
        let copy = driver.copy_block(first, copied, blocks, 5);
        let mut got: Vec<_> =
            driver.step(&[copied], usize::MAX, vec![copy]).iter().map(|row| row.tokens[0].id).collect();
        got.extend(driver.generate(&[copied], case.tokens.len() - 1, usize::MAX).remove(0));
        assert_eq!(got, case.tokens, "{}", folder.display());
    }
}

#[test]
fn a_preemption_does_not_change_tokens() {
    for folder in models() {
        let case = cases(&folder).swap_remove(2);
        let mut driver = Driver::new(load(&exact_options(&folder, &case)).executor);
        let seq = driver.add(&case.prompt, &SamplingParams::default());
        let mut got = driver.generate(&[seq], 9, usize::MAX).remove(0);
        driver.preempt(seq);
        got.extend(driver.generate(&[seq], case.tokens.len() - 9, 10).remove(0));
        assert_eq!(got, case.tokens, "{}", folder.display());
    }
}

#[test]
fn half_precision_weights_stay_half_and_stay_close() {
    for (name, dtype) in [("llama-bf16", DType::BF16), ("llama-f16", DType::F16)] {
        let folder = fixtures().join("models").join(name);
        for case in cases(&folder) {
            let model = load(&ModelOptions { dtype: None, ..exact_options(&folder, &case) });
            assert_eq!(model.report.dtype, dtype);
            let mut driver = Driver::new(model.executor);
            let seq = driver.add(&case.prompt, &SamplingParams::default());
            driver.step(&[seq], usize::MAX, Vec::new());
            // The reference computed in float32 with the same weights.
            let tolerance = match device().activation_dtype(dtype) {
                DType::BF16 => 8e-2,
                _ => 2e-2,
            };
            assert_close(&driver.executor.last_logits().unwrap()[0], &case.logits, tolerance, name);
        }
    }
}

#[test]
fn the_demo_model_tells_the_same_story_as_the_reference() {
    let folder = root().join("ci/demo_model/hf");
    let text = fs::read_to_string(fixtures().join("demo_greedy.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let ids = |value: &Value| -> Vec<TokenId> {
        value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as TokenId).collect()
    };
    let model = load(&options(&folder, 256));
    assert_eq!(model.special_tokens.eos, [1]);
    let mut driver = Driver::new(model.executor);
    let cases = reference["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let expected = ids(&case["ids"]);
        let seq = driver.add(&ids(&case["prompt_ids"]), &SamplingParams::default());
        assert_eq!(driver.generate(&[seq], expected.len(), 100)[0], expected, "{}", case["prompt"]);
    }
}

#[test]
fn a_cache_of_compressed_keys_holds_what_all_heads_share() {
    let folder = fixtures().join("models/deepseek-v3");
    let model = load(&options(&folder, 154));
    // Two layers of a latent of 16 and a rotated key of 4, in float32.
    assert_eq!(model.report.kv_bytes_per_token, 2 * (16 + 4) * 4);
}
