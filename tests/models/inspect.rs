//! Logits that requests ask for are those of a plain step, however the prompt is cut.

use crate::driver::{Driver, fixtures, load, options};
use serde_json::Value;
use std::sync::mpsc::{Sender, channel};
use triton_trtllm::decode::rank::log_prob;
use triton_trtllm::decode::{SamplingParams, StopCriteria};
use triton_trtllm::engine::{Delta, Engine, EngineConfig, OutputOptions, Request, RequestSink};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;
use triton_trtllm::step::Executor;

struct Channel(Sender<Delta>);

impl RequestSink for Channel {
    fn delta(&mut self, delta: Delta) {
        self.0.send(delta).unwrap();
    }
}

fn close(got: &[f32], expected: &[f32]) -> bool {
    got.len() == expected.len() && got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-3)
}

#[test]
fn context_and_generation_logits_are_those_of_plain_steps() {
    let folder = fixtures().join("models/llama-gqa");
    let prompt: Vec<TokenId> = (0..21).map(|at| at * 37 % 128).collect();
    let mut driver = Driver::new(load(&options(&folder, 64)).executor);
    let mut tokens = prompt.clone();
    let mut expected = Vec::new();
    for len in 1..prompt.len() + 4 {
        let seq = driver.add(&tokens[..len], &SamplingParams::default());
        let next = driver.step(&[seq], len, Vec::new())[0].tokens[0].id;
        expected.extend(driver.executor.last_logits().unwrap());
        if len >= prompt.len() {
            tokens.push(next);
        }
    }
    for (pipeline_depth, spare_step_rows) in [(1, 0), (1, 5), (2, 64)] {
        let model = load(&ModelOptions {
            max_step_tokens: Some(32),
            spare_step_rows,
            pipeline_depth: Some(pipeline_depth),
            ..options(&folder, 64)
        });
        let engine =
            Engine::start(EngineConfig::for_limits(&model.executor.limits()), Box::new(model.executor)).unwrap();
        let outputs = OutputOptions { context_logits: true, generation_logits: true, prompt_log_probs: true };
        let stop = StopCriteria { max_tokens: 4, ..Default::default() };
        let request = Request { prompt: prompt.clone(), stop, outputs, ..Request::default() };
        for _ in 0..2 {
            let (sender, deltas) = channel();
            engine.submit(request.clone(), Box::new(Channel(sender))).unwrap();
            let (mut context, mut generation, mut log_probs) = (Vec::new(), Vec::new(), Vec::new());
            for delta in deltas {
                let logits = *delta.logits.unwrap_or_default();
                context.extend(logits.context);
                generation.extend(logits.generation);
                log_probs.extend(logits.prompt_log_probs);
            }
            assert_eq!((context.len(), generation.len()), (prompt.len(), 4));
            let rows = context.iter().chain(&generation[1..]);
            assert!(rows.zip(&expected).all(|(got, expected)| close(got, expected)));
            assert!(close(&generation[0], &expected[prompt.len() - 1]));
            let known = expected.iter().zip(&prompt[1..]).map(|(row, &token)| log_prob(row, token));
            assert!(close(&log_probs, &known.collect::<Vec<_>>()));
        }
    }
}

/// Tokens with their log-probabilities.
type Ranked = Vec<(TokenId, f32)>;

/// Model, prompt, the log-probabilities of its tokens but the first, and the likeliest tokens in the place of each greedy one.
type Reference = (String, Vec<TokenId>, Vec<f32>, Vec<Ranked>);

fn references() -> Vec<Reference> {
    let text = std::fs::read_to_string(fixtures().join("log_probs.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let float = |value: &Value| value.as_f64().unwrap() as f32;
    let ranked = |row: &Value| -> Ranked {
        row.as_array().unwrap().iter().map(|top| (top[0].as_i64().unwrap() as TokenId, float(&top[1]))).collect()
    };
    let case = |case: &Value| {
        let prompt = case["prompt"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as TokenId).collect();
        let of_prompt = case["prompt_log_probs"].as_array().unwrap().iter().map(float).collect();
        let top = case["top"].as_array().unwrap().iter().map(ranked).collect();
        (case["model"].as_str().unwrap().to_owned(), prompt, of_prompt, top)
    };
    reference["cases"].as_array().unwrap().iter().map(case).collect()
}

#[test]
fn log_probabilities_of_tokens_rivals_and_prompts_equal_a_float32_reference() {
    for (name, prompt, of_prompt, top) in references() {
        let model = load(&options(&fixtures().join("models").join(&name), 64));
        let engine =
            Engine::start(EngineConfig::for_limits(&model.executor.limits()), Box::new(model.executor)).unwrap();
        let run = |sampling: SamplingParams, max_tokens: usize| {
            let outputs = OutputOptions { prompt_log_probs: true, ..OutputOptions::default() };
            let stop = StopCriteria { max_tokens, ..Default::default() };
            let sampling = SamplingParams { log_probs: true, ..sampling };
            let (sender, deltas) = channel();
            let request = Request { prompt: prompt.clone(), sampling, stop, outputs, ..Request::default() };
            engine.submit(request, Box::new(Channel(sender))).unwrap();
            deltas.iter().collect::<Vec<_>>()
        };
        let greedy = run(SamplingParams { top_log_probs: 4, ..Default::default() }, top.len());
        let got: Vec<_> = greedy.iter().flat_map(|delta| delta.logits.iter()).collect();
        let of_got: Vec<_> = got.iter().flat_map(|logits| logits.prompt_log_probs.clone()).collect();
        assert!(close(&of_got, &of_prompt), "{name}: {of_got:?} {of_prompt:?}");
        let chosen: Vec<_> = greedy.iter().flat_map(|delta| delta.log_probs.iter().map(|one| one.full)).collect();
        assert!(close(&chosen, &top.iter().map(|top| top[0].1).collect::<Vec<_>>()), "{name}: {chosen:?}");
        let rivals: Vec<_> = greedy.iter().flat_map(|delta| delta.top.clone()).collect();
        assert_eq!(rivals.len(), top.len());
        for (got, expected) in rivals.iter().zip(&top) {
            let split = |ranked: &Ranked| ranked.iter().copied().unzip::<_, _, Vec<_>, Vec<_>>();
            let ((ids, values), (wanted, wanted_values)) = (split(got), split(expected));
            assert!(ids == wanted && close(&values, &wanted_values), "{name}: {got:?}, not {expected:?}");
        }
        // Normalised: within the four that top-k leaves.
        let mass: f32 = top[0].iter().map(|(_, log_prob)| log_prob.exp()).sum();
        for seed in 0..12 {
            let drawn = run(SamplingParams { top_k: 4, temperature: 1.0, seed, ..Default::default() }, 1);
            let last = drawn.last().unwrap();
            let (token, log_prob) = (last.tokens[0], last.log_probs[0]);
            let expected = top[0].iter().find(|(id, _)| *id == token).unwrap().1;
            let wanted = [expected, expected - mass.ln()];
            assert!(close(&[log_prob.full, log_prob.candidates], &wanted), "{name}: {log_prob:?}, not {wanted:?}");
        }
    }
}
