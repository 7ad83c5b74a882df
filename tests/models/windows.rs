//! Layers that see a window of the context have fewer blocks than the others, and nobody notices.

use crate::driver::{fixtures, load, options};
use crate::engine::{submit, tokens};
use triton_trtllm::decode::StopCriteria;
use triton_trtllm::engine::{Engine, EngineConfig, Request, SchedulerPolicy};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::{LoadReport, ModelOptions};
use triton_trtllm::step::Executor;

const VOCABULARY: usize = 96;

fn start(options: ModelOptions) -> (Engine, LoadReport) {
    let model = load(&options);
    let limits = model.executor.limits();
    let config = EngineConfig { policy: SchedulerPolicy::Balanced, ..EngineConfig::for_limits(&limits) };
    (Engine::start(config, Box::new(model.executor)).unwrap(), model.report)
}

/// Four sequences of up to 200 tokens, computed 16 at a time.
fn narrow(model: &str) -> ModelOptions {
    let folder = fixtures().join("models").join(model);
    ModelOptions { max_batch_size: Some(4), max_step_tokens: Some(16), ..options(&folder, 200) }
}

fn requests() -> Vec<Request> {
    let request = |i: usize| {
        let beginning = (0..40).map(|j| j * 7 % VOCABULARY);
        let prompt =
            beginning.chain((0..i * 23 % 70).map(|j| (i + j * j) % VOCABULARY)).map(|id| id as TokenId).collect();
        let stop = StopCriteria { max_tokens: 20 + i * 17 % 60, ..StopCriteria::default() };
        Request { prompt, stop, ..Request::default() }
    };
    (0..12).map(request).collect()
}

fn answers(engine: &Engine) -> Vec<Vec<TokenId>> {
    let running: Vec<_> = requests().into_iter().map(|request| submit(engine, request)).collect();
    running.iter().map(tokens).collect()
}

/// Answers and plans with and without pools for windows must differ in memory only.
fn compare(options: ModelOptions) -> LoadReport {
    let (whole, plain) = start(ModelOptions { window_pools: false, ..options.clone() });
    let (windowed, report) = start(ModelOptions { pipeline_depth: Some(2), ..options });
    assert!(plain.kv.windows.is_empty() && !report.kv.windows.is_empty(), "{report}");
    assert_eq!(plain.kv.tokens, report.kv.tokens);
    let expected = answers(&whole);
    for round in 0..2 {
        assert_eq!(answers(&windowed), expected, "round {round}");
    }
    assert!(windowed.stats().totals.cached_tokens > 0, "beginnings are reused");
    let in_all = format!("{:.1} MiB in all; without windows {:.1} MiB", mib(report.kv.bytes), mib(plain.kv.bytes));
    assert!(report.to_string().contains(&in_all), "{report}");
    report
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[test]
fn models_of_alternating_layers_need_less_memory_for_the_same_tokens() {
    for model in ["gemma2", "gemma3", "gpt-oss", "cohere2"] {
        let report = compare(narrow(model));
        let whole = report.kv.tokens * report.kv_bytes_per_token;
        assert!(report.kv.bytes * 10 < whole * 7, "{model}: {} of {whole} bytes", report.kv.bytes);
    }
}

#[test]
fn windows_come_back_from_the_host() {
    for model in ["gemma3", "mistral-window"] {
        let options = ModelOptions { kv_max_tokens: Some(600), ..narrow(model) };
        let (whole, _) = start(ModelOptions { window_pools: false, ..options.clone() });
        let (tiered, report) = start(ModelOptions { kv_host_bytes: 16 << 20, ..options });
        assert_eq!(report.host_blocks.len(), 1 + report.kv.windows.len(), "{report}");
        let expected = answers(&whole);
        for round in 0..3 {
            assert_eq!(answers(&tiered), expected, "{model}, round {round}");
        }
        let tiers = tiered.stats().last_iteration.tiers;
        assert!(tiers.onboarded_blocks > 0 && tiers.failed_transfers == 0, "{model}: {tiers:?}");
    }
}

#[test]
fn a_model_of_windows_alone_needs_their_blocks_only() {
    let report = compare(narrow("mistral-window"));
    assert_eq!(report.kv.bytes, report.kv.window_bytes());
}

#[test]
fn chunks_of_attention_are_windows_too() {
    compare(narrow("llama4"));
}

#[test]
fn an_operator_may_narrow_the_windows_layer_by_layer() {
    let report = compare(ModelOptions { attention_windows: vec![24, 1000, 40], ..narrow("llama-gqa") });
    let windows: Vec<_> = report.kv.windows.iter().map(|window| (window.pool.window_tokens, window.layers)).collect();
    assert_eq!(windows, [(24, 1), (40, 1)], "of three layers the second sees everything");
}

#[test]
fn sinks_are_seen_beside_the_window() {
    let narrowed = ModelOptions { attention_windows: vec![24], ..narrow("llama-gqa") };
    let sinks = ModelOptions { sink_tokens: 4, ..narrowed.clone() };
    let report = compare(sinks.clone());
    assert!(report.to_string().contains("layers that see the first 4 and the last 20 tokens"), "{report}");
    assert_ne!(answers(&start(sinks).0), answers(&start(narrowed).0));
}

#[test]
fn sinks_need_a_window_to_stay_in() {
    for (windows, part) in [(vec![], "max_attention_window_size is not set"), (vec![8], "expected more than the 8")] {
        let wrong = ModelOptions { attention_windows: windows, sink_tokens: 8, ..narrow("llama-gqa") };
        let error = triton_trtllm::runner::load_on(&crate::driver::device(), &wrong).err().unwrap();
        assert!(error.message().contains(part), "{error}");
    }
}
