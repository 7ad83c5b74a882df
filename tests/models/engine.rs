//! The engine and a real model together.

use crate::driver::{BLOCK_SIZE, fixtures, load, options};
use std::sync::mpsc::{Receiver, Sender, channel};
use triton_trtllm::decode::draft::NGramOptions;
use triton_trtllm::decode::{DraftLogits, SamplingParams, StopCriteria};
use triton_trtllm::engine::{
    Delta, Engine, EngineConfig, FinishReason, Request, RequestSink, RequestStats, SchedulerPolicy,
};
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;
use triton_trtllm::step::{Executor, PromptTable};

struct Channel(Sender<Delta>);

impl RequestSink for Channel {
    fn delta(&mut self, delta: Delta) {
        self.0.send(delta).unwrap();
    }
}

/// How steps follow each other.
#[derive(Clone, Copy, Debug)]
struct Steps {
    pipeline_depth: usize,
    graphs: bool,
}

const ONE_BY_ONE: Steps = Steps { pipeline_depth: 1, graphs: false };
const OVERLAPPING: Steps = Steps { pipeline_depth: 2, graphs: false };
const PADDED: Steps = Steps { pipeline_depth: 1, graphs: true };
const PADDED_AND_OVERLAPPING: Steps = Steps { pipeline_depth: 2, graphs: true };

fn engine(policy: SchedulerPolicy, kv_blocks: usize, steps: Steps) -> Engine {
    engine_with(policy, kv_blocks, 0, steps, None)
}

fn engine_with(
    policy: SchedulerPolicy,
    kv_blocks: usize,
    kv_host_bytes: u64,
    steps: Steps,
    ngram_drafts: Option<NGramOptions>,
) -> Engine {
    let folder = fixtures().join("models/llama-gqa");
    let model = load(&ModelOptions {
        max_batch_size: Some(12),
        max_step_tokens: Some(32),
        kv_max_tokens: Some(kv_blocks * BLOCK_SIZE),
        kv_host_bytes,
        pipeline_depth: Some(steps.pipeline_depth),
        graphs: Some(steps.graphs),
        ..options(&folder, 96)
    });
    assert_eq!(model.executor.limits().pipeline_depth, steps.pipeline_depth);
    let config = EngineConfig { policy, ngram_drafts, ..EngineConfig::for_limits(&model.executor.limits()) };
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

pub fn tokens(deltas: &Receiver<Delta>) -> Vec<TokenId> {
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

pub fn submit(engine: &Engine, request: Request) -> Receiver<Delta> {
    let (sender, receiver) = channel();
    engine.submit(request, Box::new(Channel(sender))).unwrap();
    receiver
}

fn each_gets_what_it_gets_alone(policy: SchedulerPolicy, kv_blocks: usize, expect_preemptions: bool) {
    let engine_alone = engine(SchedulerPolicy::GuaranteedNoEvict, 400, ONE_BY_ONE);
    let alone: Vec<_> = requests().into_iter().map(|request| tokens(&submit(&engine_alone, request))).collect();
    for steps in [ONE_BY_ONE, OVERLAPPING, PADDED, PADDED_AND_OVERLAPPING] {
        let together = engine(policy, kv_blocks, steps);
        let running: Vec<_> = requests().into_iter().map(|request| submit(&together, request)).collect();
        for (index, (deltas, expected)) in running.iter().zip(&alone).enumerate() {
            assert_eq!(&tokens(deltas), expected, "{steps:?}: request {index}");
        }
        let totals = together.stats().totals;
        assert_eq!(totals.preemptions > 0, expect_preemptions, "{steps:?}: {totals:?}");
        assert!(totals.cached_tokens > 0, "{steps:?}: {totals:?}");
    }
}

#[test]
fn concurrent_requests_get_what_they_get_alone() {
    each_gets_what_it_gets_alone(SchedulerPolicy::GuaranteedNoEvict, 100, false);
}

#[test]
fn concurrent_requests_get_what_they_get_alone_when_preempted() {
    each_gets_what_it_gets_alone(SchedulerPolicy::MaxUtilization, 24, true);
}

#[test]
fn blocks_that_come_back_from_the_host_hold_what_they_held() {
    let engine_alone = engine(SchedulerPolicy::GuaranteedNoEvict, 400, ONE_BY_ONE);
    let alone: Vec<_> = requests().into_iter().map(|request| tokens(&submit(&engine_alone, request))).collect();
    for steps in [ONE_BY_ONE, PADDED_AND_OVERLAPPING] {
        let together = engine_with(SchedulerPolicy::MaxUtilization, 24, 4 << 20, steps, None);
        for round in 0..2 {
            let running: Vec<_> = requests().into_iter().map(|request| submit(&together, request)).collect();
            for (index, (deltas, expected)) in running.iter().zip(&alone).enumerate() {
                assert_eq!(&tokens(deltas), expected, "{steps:?}, round {round}: request {index}");
            }
        }
        let tiers = together.stats().last_iteration.tiers;
        assert!(tiers.onboarded_blocks > 50 && tiers.failed_transfers == 0, "{steps:?}: {tiers:?}");
    }
}

/// Everything of a request that a client sees.
#[derive(Debug, Default)]
struct Answer {
    tokens: Vec<TokenId>,
    log_probs: Vec<f32>,
    reason: Option<FinishReason>,
    error: bool,
    stats: RequestStats,
}

impl Answer {
    /// Up to the last bits of log-probabilities, which depend on the batch on some devices.
    fn equals(&self, other: &Self) -> bool {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
        (&self.tokens, self.reason, self.error) == (&other.tokens, other.reason, other.error)
            && self.log_probs.len() == other.log_probs.len()
            && self.log_probs.iter().zip(&other.log_probs).all(close)
    }
}

fn answer(deltas: &Receiver<Delta>) -> Answer {
    let mut answer = Answer::default();
    for delta in deltas {
        answer.tokens.extend(delta.tokens);
        answer.log_probs.extend(delta.log_probs.iter().map(|log_prob| log_prob.full));
        answer.stats = delta.stats;
        if let Some(finish) = delta.finish {
            answer.reason = Some(finish.reason);
            answer.error = finish.error.is_some();
        }
    }
    answer
}

/// Ends of every kind, at steps that are not foreseen: end ids, stop words, rows that fail; and rows that only the host
/// can sample beside rows of the device.
fn eventful_requests() -> Vec<Request> {
    let mut requests = requests();
    for (index, request) in requests.iter_mut().enumerate() {
        request.stop.end_ids = (0..24).map(|id| id * 5 + index as TokenId % 5).collect();
        request.sampling.end_ids = request.stop.end_ids.clone();
        request.sampling.log_probs = index % 2 == 0;
        match index % 8 {
            1 => request.sampling.min_tokens = 6,
            3 => request.sampling.bad_words = vec![vec![7], vec![1, 2]],
            5 => {
                request.stop.end_ids.clear();
                request.stop.stop_words = (0..64).map(|id| vec![id * 2]).collect();
            }
            6 => request.stop.end_ids.clear(),
            _ => {}
        }
        if index % 16 == 10 {
            request.sampling.bad_words = (0..128).map(|id| vec![id]).collect();
        }
    }
    requests
}

#[test]
fn overlapping_steps_end_requests_where_single_steps_end_them() {
    let run = |steps| {
        let engine = engine(SchedulerPolicy::MaxUtilization, 40, steps);
        let running: Vec<_> = eventful_requests().into_iter().map(|request| submit(&engine, request)).collect();
        running.iter().map(answer).collect::<Vec<_>>()
    };
    let expected = run(ONE_BY_ONE);
    for reason in [FinishReason::EndId, FinishReason::StopWords, FinishReason::Length, FinishReason::Error] {
        let found = expected.iter().filter(|answer| answer.reason == Some(reason)).count();
        assert!(found >= 2, "{found} requests end with {reason:?}");
    }
    for steps in [OVERLAPPING, PADDED_AND_OVERLAPPING] {
        for (index, (got, expected)) in run(steps).iter().zip(&expected).enumerate() {
            assert!(got.equals(expected), "{steps:?}: request {index}: {got:?}, not {expected:?}");
        }
    }
}

/// Goes away after some tokens.
struct Leaving {
    sender: Sender<Delta>,
    left: usize,
}

impl RequestSink for Leaving {
    fn delta(&mut self, delta: Delta) {
        self.left = self.left.saturating_sub(delta.tokens.len());
        self.sender.send(delta).unwrap();
    }

    fn is_cancelled(&self) -> bool {
        self.left == 0
    }
}

#[test]
fn clients_that_leave_between_overlapping_steps_disturb_nobody() {
    let alone = engine(SchedulerPolicy::GuaranteedNoEvict, 400, ONE_BY_ONE);
    let expected: Vec<_> = requests().into_iter().map(|request| tokens(&submit(&alone, request))).collect();
    let engine = engine(SchedulerPolicy::MaxUtilization, 40, PADDED_AND_OVERLAPPING);
    let mut running = Vec::new();
    for (index, request) in requests().into_iter().enumerate() {
        let (sender, receiver) = channel();
        let left = if index % 3 == 0 { 1 + index % 5 } else { usize::MAX };
        engine.submit(request, Box::new(Leaving { sender, left })).unwrap();
        running.push(receiver);
    }
    for (index, (deltas, expected)) in running.iter().zip(&expected).enumerate() {
        let answer = answer(deltas);
        match answer.reason {
            Some(FinishReason::Cancelled) => {
                assert!(index % 3 == 0 && expected.starts_with(&answer.tokens), "request {index}: {answer:?}");
            }
            _ => assert_eq!(&answer.tokens, expected, "request {index}"),
        }
    }
    let cancelled = engine.stats().totals.requests_cancelled;
    assert!(cancelled > 5, "{cancelled} requests were cancelled");
}

/// Requests that repeat themselves, so that there is something to guess: greedy, drawn, with penalties and log-probs, some
/// with an embedding of their own, which cannot be guessed.
fn repeating_requests() -> Vec<Request> {
    let mut requests = eventful_requests();
    for (index, request) in requests.iter_mut().enumerate() {
        let mut beginning: Vec<_> = request.prompt.iter().copied().take(5).collect();
        if index % 4 == 2 && !request.outputs.prompt_log_probs {
            let row = (0..32).map(|at| (at * index % 7) as f32 / 7.0 - 0.4).collect();
            request.prompt_table = Some(PromptTable::new(32, row).unwrap());
            beginning.insert(1, 128);
        }
        request.prompt = beginning.iter().copied().cycle().take(20 + index % 9).collect();
        let identity = |&token: &TokenId| if token == 128 { index as u64 } else { 0 };
        request.extra_ids = request.prompt.iter().map(identity).collect();
        request.stop.max_tokens = 24;
    }
    requests
}

#[test]
fn guesses_change_the_speed_and_no_token() {
    let run = |steps, requests: Vec<Request>, ngrams| {
        let engine = engine_with(SchedulerPolicy::MaxUtilization, 40, 0, steps, ngrams);
        let running: Vec<_> = requests.into_iter().map(|request| submit(&engine, request)).collect();
        running.iter().map(answer).collect::<Vec<_>>()
    };
    let expected = run(ONE_BY_ONE, repeating_requests(), None);
    let ngrams = Some(NGramOptions { max_draft_len: 5, max_matching_ngram_size: 3 });
    for steps in [ONE_BY_ONE, OVERLAPPING, PADDED_AND_OVERLAPPING] {
        let guessed = run(steps, repeating_requests(), ngrams);
        for (index, (got, expected)) in guessed.iter().zip(&expected).enumerate() {
            assert!(got.equals(expected), "{steps:?}: request {index}: {got:?}, not {expected:?}");
        }
        let (drafts, accepted) = guessed.iter().fold((0, 0), |(drafts, accepted), answer| {
            (drafts + answer.stats.draft_tokens, accepted + answer.stats.accepted_draft_tokens)
        });
        assert!(accepted > 20 && drafts > accepted, "{accepted} of {drafts} guesses came true");
    }
    // A client that knows half of the answer gets it in one step, and a wrong guess costs it nothing.
    let mut given = repeating_requests();
    for (request, expected) in given.iter_mut().zip(&expected) {
        request.draft = expected.tokens[..expected.tokens.len() / 2].to_vec();
        request.draft.push(3);
    }
    for (index, (got, expected)) in run(OVERLAPPING, given, None).iter().zip(&expected).enumerate() {
        assert!(got.equals(expected), "request {index}: {got:?}, not {expected:?}");
        assert!(got.stats.accepted_draft_tokens >= expected.tokens.len() / 4, "request {index}: {:?}", got.stats);
    }
}

/// First tokens of requests whose draft of one token was drawn from other logits, and how many drafts were accepted.
#[test]
fn drafts_with_logits_are_accepted_by_probability() {
    let engine = engine(SchedulerPolicy::Balanced, 400, ONE_BY_ONE);
    let prompt: Vec<TokenId> = (1..20).collect();
    let run = |draft: Option<(TokenId, Vec<f32>)>, seed: u64, threshold: Option<f32>| {
        let tokens: Vec<_> = draft.iter().map(|draft| draft.0).collect();
        let rows = draft.into_iter().map(|draft| draft.1).collect();
        let draft = DraftLogits { tokens: tokens.as_slice().into(), rows, threshold };
        let draft_of = (!tokens.is_empty()).then_some(draft);
        let sampling = SamplingParams { top_k: 3, temperature: 2.0, seed, draft: draft_of, ..Default::default() };
        let stop = StopCriteria { max_tokens: 2, ..Default::default() };
        submit(&engine, Request { prompt: prompt.clone(), sampling, stop, draft: tokens, ..Request::default() })
    };
    const RUNS: u64 = 600;
    let plain: Vec<_> = (0..RUNS).map(|seed| run(None, seed, None)).collect();
    let plain: Vec<_> = plain.iter().map(|deltas| answer(deltas).tokens[0]).collect();
    let mut ids = plain.clone();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "top-k");
    // A draft model that finds one of the three most likely, each as often, whatever the target says.
    let mut logits = vec![f32::NEG_INFINITY; 128];
    ids.iter().for_each(|&id| logits[id as usize] = 1.0);
    let drafts = |threshold| {
        let draft = |seed: u64| Some((ids[seed as usize % 3], logits.clone()));
        let running: Vec<_> = (0..RUNS).map(|seed| run(draft(seed), 10_000 + seed, threshold)).collect();
        running.iter().map(answer).collect::<Vec<_>>()
    };
    let drafted = drafts(None);
    let count = |tokens: &[TokenId], id: TokenId| tokens.iter().filter(|&&token| token == id).count() as f64;
    let firsts: Vec<_> = drafted.iter().map(|answer| answer.tokens[0]).collect();
    let statistic: f64 = ids
        .iter()
        .map(|&id| (count(&plain, id) - count(&firsts, id)).powi(2) / (count(&plain, id) + count(&firsts, id)))
        .sum();
    assert!(statistic < 13.8, "two samples of one distribution: {statistic}");
    let accepted = |answers: &[Answer]| answers.iter().map(|answer| answer.stats.accepted_draft_tokens).sum::<usize>();
    let by_chance = accepted(&drafted);
    assert!((RUNS as usize / 4..RUNS as usize).contains(&by_chance), "{by_chance} of {RUNS} drafts were accepted");
    assert_eq!(accepted(&drafts(Some(1e-6))), RUNS as usize, "a low threshold takes every draft");
}
