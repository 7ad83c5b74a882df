//! Logits that requests ask for are those of a plain step, however the prompt is cut.

use crate::driver::{Driver, fixtures, load, options};
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
