//! The engine and a real model together.

use crate::driver::{BLOCK_SIZE, fixtures, load, options};
use std::sync::mpsc::{Receiver, Sender, channel};
use triton_trtllm::decode::{SamplingParams, StopCriteria};
use triton_trtllm::engine::{Delta, Engine, EngineConfig, FinishReason, Request, RequestSink, SchedulerPolicy};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;
use triton_trtllm::step::Executor;

struct Channel(Sender<Delta>);

impl RequestSink for Channel {
    fn delta(&mut self, delta: Delta) {
        self.0.send(delta).unwrap();
    }
}

fn engine(policy: SchedulerPolicy, kv_blocks: usize) -> Engine {
    let folder = fixtures().join("models/llama-gqa");
    let model = load(&ModelOptions {
        max_batch_size: Some(12),
        max_step_tokens: Some(32),
        kv_max_tokens: Some(kv_blocks * BLOCK_SIZE),
        ..options(&folder, 96)
    });
    let config = EngineConfig { policy, ..EngineConfig::for_limits(&model.executor.limits()) };
    Engine::start(config, Box::new(model.executor)).unwrap()
}

/// Requests of many lengths, some sampled, some that share a prefix.
fn requests() -> Vec<Request> {
    let token = |i: usize| (i * 31 % 128) as TokenId;
    let request = |i: usize| {
        let prefix = if i.is_multiple_of(3) { 24 } else { 0 };
        let prompt = (0..prefix).map(token).chain((0..1 + i * 5 % 40).map(|j| token(i + j * j))).collect();
        let sampling = match i % 4 {
            0 => SamplingParams { top_k: 20, seed: i as u64, repetition_penalty: 1.2, ..Default::default() },
            1 => SamplingParams { top_p: Some(0.9), temperature: 1.4, seed: 3, ..Default::default() },
            _ => SamplingParams::default(),
        };
        let stop = StopCriteria { max_tokens: 2 + i * 7 % 25, ..Default::default() };
        Request { prompt, sampling, stop, ..Request::default() }
    };
    (0..64).map(request).collect()
}

fn tokens(deltas: &Receiver<Delta>) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    for delta in deltas {
        tokens.extend(delta.tokens);
        if let Some(finish) = delta.finish {
            assert_eq!(finish.reason, FinishReason::Length, "{:?}", finish.error);
            return tokens;
        }
    }
    panic!("the request ended without a final delta");
}

fn submit(engine: &Engine, request: Request) -> Receiver<Delta> {
    let (sender, receiver) = channel();
    engine.submit(request, Box::new(Channel(sender))).unwrap();
    receiver
}

fn each_gets_what_it_gets_alone(policy: SchedulerPolicy, kv_blocks: usize, expect_preemptions: bool) {
    let engine_alone = engine(SchedulerPolicy::GuaranteedNoEvict, 400);
    let alone: Vec<_> = requests().into_iter().map(|request| tokens(&submit(&engine_alone, request))).collect();
    let together = engine(policy, kv_blocks);
    let running: Vec<_> = requests().into_iter().map(|request| submit(&together, request)).collect();
    for (index, (deltas, expected)) in running.iter().zip(&alone).enumerate() {
        assert_eq!(&tokens(deltas), expected, "request {index}");
    }
    let totals = together.stats().totals;
    assert_eq!(totals.preemptions > 0, expect_preemptions, "{totals:?}");
    assert!(totals.cached_tokens > 0, "{totals:?}");
}

#[test]
fn concurrent_requests_get_what_they_get_alone() {
    each_gets_what_it_gets_alone(SchedulerPolicy::GuaranteedNoEvict, 100, false);
}

#[test]
fn concurrent_requests_get_what_they_get_alone_when_preempted() {
    each_gets_what_it_gets_alone(SchedulerPolicy::MaxUtilization, 24, true);
}
