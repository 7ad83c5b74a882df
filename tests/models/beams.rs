//! Beam search against transformers.

use crate::driver::{BLOCK_SIZE, fixtures, load, options};
use serde_json::Value;
use std::fs;
use std::sync::mpsc::{Sender, channel};
use triton_trtllm::decode::beam::{BeamParams, Hypothesis};
use triton_trtllm::decode::{SamplingParams, StopCriteria, StopVerdict};
use triton_trtllm::engine::{Delta, Engine, EngineConfig, Request, RequestSink, SchedulerPolicy};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;
use triton_trtllm::step::Executor;

struct Channel(Sender<Delta>);

impl RequestSink for Channel {
    fn delta(&mut self, delta: Delta) {
        self.0.send(delta).unwrap();
    }
}

struct Case {
    model: String,
    request: Request,
    /// Tokens, score, whether an end token followed.
    beams: Vec<(Vec<TokenId>, f32, bool)>,
}

fn cases() -> Vec<Case> {
    let text = fs::read_to_string(fixtures().join("beams.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let float = |value: &Value| value.as_f64().unwrap() as f32;
    let ids = |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as TokenId).collect();
    let beam = |beam: &Value| (ids(&beam["tokens"]), float(&beam["score"]), beam["ended"].as_bool().unwrap());
    let case = |case: &Value| {
        let beams: Vec<_> = case["beams"].as_array().unwrap().iter().map(beam).collect();
        let params = BeamParams {
            width: number(&case["width"]),
            widths: Vec::new(),
            len_penalty: float(&case["len_penalty"]),
            early_stopping: (number(&case["early_stopping"]) as i32).into(),
            diversity_rate: 0.0,
            num_return: beams.len(),
            stream: false,
        };
        let end_ids: Vec<TokenId> = ids(&case["end_ids"]);
        let stop = StopCriteria { max_tokens: number(&case["max_tokens"]), end_ids, ..Default::default() };
        let request = Request { prompt: ids(&case["prompt"]), stop, beam: Some(params), ..Request::default() };
        Case { model: case["model"].as_str().unwrap().to_owned(), request, beams }
    };
    reference["cases"].as_array().unwrap().iter().map(case).collect()
}

/// A CPU or GPU engine with so many blocks.
fn engine(model: &str, kv_blocks: usize, policy: SchedulerPolicy, kv_reuse: bool, overlap: bool) -> Engine {
    let model = load(&ModelOptions {
        max_batch_size: Some(12),
        max_step_tokens: Some(48),
        kv_max_tokens: Some(kv_blocks * BLOCK_SIZE),
        pipeline_depth: Some(1 + usize::from(overlap)),
        graphs: Some(overlap),
        ..options(&fixtures().join("models").join(model), 96)
    });
    let limits = model.executor.limits();
    let config = EngineConfig { policy, kv_reuse, max_beam_width: 5, ..EngineConfig::for_limits(&limits) };
    Engine::start(config, Box::new(model.executor)).unwrap()
}

/// All requests at once.
fn serve(engine: &Engine, requests: impl Iterator<Item = Request>) -> Vec<Vec<Hypothesis>> {
    let submit = |request| {
        let (sender, receiver) = channel();
        engine.submit(request, Box::new(Channel(sender))).unwrap();
        receiver
    };
    let running: Vec<_> = requests.map(submit).collect();
    let last = |deltas: &std::sync::mpsc::Receiver<Delta>| {
        let last = deltas.iter().find(|delta| delta.finish.is_some()).unwrap();
        assert!(last.finish.as_ref().unwrap().error.is_none(), "{:?}", last.finish);
        last.beams.unwrap().to_vec()
    };
    running.iter().map(last).collect()
}

fn assert_equal(case: &Case, got: &[Hypothesis]) {
    assert_eq!(got.len(), case.beams.len());
    for (got, (tokens, score, ended)) in got.iter().zip(&case.beams) {
        let what = format!("{}: {:?}", case.model, case.request.beam);
        assert_eq!((&got.tokens, got.verdict == Some(StopVerdict::EndId)), (tokens, *ended), "{what}");
        assert!((got.score - score).abs() < 1e-3 * score.abs().max(1.0), "{what}: {} is not {score}", got.score);
        let sum: f32 = got.log_probs.iter().sum();
        assert!(*ended || (sum - got.cum_log_prob).abs() < 1e-3, "{what}: {sum} is not {}", got.cum_log_prob);
    }
}

#[test]
fn beams_equal_the_reference_alone_and_together_in_little_memory() {
    let cases = cases();
    let mut models: Vec<_> = cases.iter().map(|case| case.model.as_str()).collect();
    models.dedup();
    assert!(cases.len() >= 30 && models.len() >= 5);
    for name in models {
        let of_model: Vec<_> = cases.iter().filter(|case| case.model == name).collect();
        for (kv_blocks, policy, kv_reuse, overlap) in [
            (200, SchedulerPolicy::GuaranteedNoEvict, true, false),
            (14, SchedulerPolicy::MaxUtilization, true, true),
            (24, SchedulerPolicy::Balanced, false, true),
        ] {
            let engine = engine(name, kv_blocks, policy, kv_reuse, overlap);
            let got = serve(&engine, of_model.iter().map(|case| case.request.clone()));
            of_model.iter().zip(&got).for_each(|(case, got)| assert_equal(case, got));
        }
    }
}

#[test]
fn a_sampled_request_beside_a_search_gets_what_it_gets_alone() {
    let cases = cases();
    let sampling = SamplingParams { top_k: 20, seed: 4, repetition_penalty: 1.2, ..Default::default() };
    let stop = StopCriteria { max_tokens: 20, ..Default::default() };
    let sampled = Request { prompt: (1..30).collect(), sampling, stop, ..Request::default() };
    let tokens = |engine: &Engine| {
        let (sender, receiver) = channel();
        engine.submit(sampled.clone(), Box::new(Channel(sender))).unwrap();
        receiver.iter().flat_map(|delta| delta.tokens).collect::<Vec<_>>()
    };
    let alone = tokens(&engine("llama-gqa", 200, SchedulerPolicy::Balanced, true, false));
    assert_eq!(alone.len(), 20);
    let shared = engine("llama-gqa", 200, SchedulerPolicy::Balanced, true, true);
    let searches = cases.iter().filter(|case| case.model == "llama-gqa");
    std::thread::scope(|scope| {
        let beams = scope.spawn(|| serve(&shared, searches.clone().map(|case| case.request.clone())));
        assert_eq!(tokens(&shared), alone);
        searches.clone().zip(&beams.join().unwrap()).for_each(|(case, got)| assert_equal(case, got));
    });
}
