//! What is computed once and what memory is used: reuse, sharing, preemption, and the numbers that tell of it.

use std::sync::{Arc, Mutex};

use triton_trtllm::engine::fake::FakeExecutor;
use triton_trtllm::engine::{EngineConfig, EngineCore, FinishReason, IterationStats, Request, SchedulerPolicy};
use triton_trtllm::ids::TokenId;
use triton_trtllm::step::{ExecutorLimits, StepPlan};

use crate::common::{Recorder, SEED, Tape, core, limits, model, request, run, serve};

fn recorded(config: EngineConfig, limits: &ExecutorLimits) -> (EngineCore, Arc<Mutex<Vec<StepPlan>>>) {
    let plans = Arc::default();
    let recorder = Recorder { inner: FakeExecutor::new(limits.clone(), SEED), plans: Arc::clone(&plans) };
    (EngineCore::new(config, Box::new(recorder), None).unwrap(), plans)
}

fn computed(plans: &Mutex<Vec<StepPlan>>) -> usize {
    plans.lock().unwrap().iter().flat_map(|plan| &plan.chunks).map(|chunk| chunk.len).sum()
}

fn letters(len: usize) -> Vec<TokenId> {
    (0..len).map(|at| (at * at % 26) as TokenId).collect()
}

/// The values that upstream's CI compares with: 64 tokens in a block, a prompt of four blocks, 50 output tokens.
#[test]
fn an_identical_request_reuses_four_blocks_and_allocates_one() {
    let limits = ExecutorLimits {
        num_blocks: 40,
        block_size_tokens: 64,
        max_step_tokens: 512,
        max_seq_len_tokens: 1024,
        ..limits()
    };
    for prompt in [200, 240] {
        let mut engine = core(EngineConfig::for_limits(&limits), &limits);
        let counters = |tape: &Tape| {
            let stats = tape.stats();
            (stats.new_blocks, stats.allocated_blocks, stats.reused_blocks)
        };
        let first = serve(&mut engine, request(letters(prompt), 50));
        let second = serve(&mut engine, request(letters(prompt), 50));
        assert_eq!((counters(&first), counters(&second)), ((4, 4, 0), (1, 1, 4)), "prompt of {prompt}");
        assert_eq!(first.tokens(), second.tokens());
        assert_eq!(second.stats().cached_tokens, prompt - 1, "all but the last prompt token");
        assert_eq!(engine.stats().last_iteration.kv.reused_blocks, 4);
        assert_eq!(engine.stats().totals.cached_tokens, prompt as u64 - 1);
    }
}

#[test]
fn a_conversation_computes_only_what_is_new() {
    let (mut engine, plans) = recorded(EngineConfig::for_limits(&limits()), &limits());
    let mut history = letters(10);
    let answer = serve(&mut engine, request(history.clone(), 8)).tokens();
    history.extend(answer);
    history.extend([1, 2, 3]);
    plans.lock().unwrap().clear();
    let turn = serve(&mut engine, request(history, 1));
    // 10 + 8 − 1 tokens were computed: the last token of the answer never was.
    assert_eq!((turn.stats().cached_tokens, computed(&plans)), (17, 4));
}

#[test]
fn reuse_can_be_switched_off_and_never_crosses_a_salt() {
    let off = EngineConfig { kv_reuse: false, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(off, &limits());
    serve(&mut engine, request(letters(12), 2));
    assert_eq!(serve(&mut engine, request(letters(12), 2)).stats().cached_tokens, 0);

    let mut engine = core(EngineConfig::for_limits(&limits()), &limits());
    let salted = |cache_salt| Request { cache_salt, ..request(letters(12), 2) };
    let cached: Vec<_> = [1, 2, 1, 0].map(|salt| serve(&mut engine, salted(salt)).stats().cached_tokens).into();
    assert_eq!(cached, [0, 0, 11, 0]);
}

#[test]
fn identical_prompts_that_arrive_together_are_computed_once() {
    let (mut engine, plans) = recorded(EngineConfig::for_limits(&limits()), &limits());
    let tapes: Vec<_> = (0..4).map(|_| Tape::default()).collect();
    for tape in &tapes {
        engine.submit(request(letters(13), 1), tape.sink(), 1).unwrap();
    }
    run(&mut engine);
    assert_eq!(computed(&plans), 13 + 3);
    let alone = model(&limits()).generate(&letters(13), &Default::default(), &request([], 1).stop).0;
    tapes.iter().for_each(|tape| assert_eq!(tape.tokens(), alone));
}

#[test]
fn the_least_recently_used_leaf_is_evicted_first() {
    let limits = ExecutorLimits { num_blocks: 6, ..limits() };
    let mut engine = core(EngineConfig::for_limits(&limits), &limits);
    let (old, new) = (vec![1; 12], vec![2; 9]);
    serve(&mut engine, request(old.clone(), 1));
    serve(&mut engine, request(new.clone(), 1));
    // Two blocks more than are unused: the tail of the older prompt goes, its beginning stays.
    serve(&mut engine, request(vec![3; 8], 1));
    // Then the same happens to the newer one.
    let cached: Vec<_> = [old, new].map(|prompt| serve(&mut engine, request(prompt, 1)).stats().cached_tokens).into();
    assert_eq!(cached, [4, 4]);
}

/// Eight requests that want 2.5 times the blocks there are.
fn oversubscribed(policy: SchedulerPolicy) -> (Vec<Tape>, EngineCore, usize) {
    let (mut engine, plans) = recorded(EngineConfig { policy, ..EngineConfig::for_limits(&limits()) }, &limits());
    let tapes: Vec<_> = (0..8).map(|_| Tape::default()).collect();
    for (number, tape) in tapes.iter().enumerate() {
        engine.submit(request([number as TokenId, 1, 2], 18), tape.sink(), 1).unwrap();
    }
    run(&mut engine);
    let steps = plans.lock().unwrap().len();
    for (number, tape) in tapes.iter().enumerate() {
        let alone = model(&limits()).generate(&[number as TokenId, 1, 2], &Default::default(), &request([], 18).stop);
        assert_eq!((tape.tokens(), tape.reason().unwrap()), alone);
    }
    (tapes, engine, steps)
}

#[test]
fn max_utilization_preempts_the_youngest_and_loses_little() {
    let (tapes, engine, steps) = oversubscribed(SchedulerPolicy::MaxUtilization);
    let preemptions: Vec<_> = tapes.iter().map(|tape| tape.stats().preemptions).collect();
    assert_eq!(preemptions[0], 0, "the oldest is never preempted: {preemptions:?}");
    assert!(preemptions.iter().sum::<usize>() > 0 && preemptions.iter().all(|&count| count <= 3), "{preemptions:?}");
    assert_eq!(engine.stats().totals.preemptions as usize, preemptions.iter().sum::<usize>());
    let (_, _, careful) = oversubscribed(SchedulerPolicy::GuaranteedNoEvict);
    assert!(steps <= careful, "{steps} steps, {careful} without preemption");
}

#[test]
fn statistics_of_each_step_tell_what_ran() {
    let seen: Arc<Mutex<Vec<IterationStats>>> = Arc::default();
    let hook = Arc::clone(&seen);
    let executor = Box::new(FakeExecutor::new(limits(), SEED));
    let config = EngineConfig { max_batch_size: 2, ..EngineConfig::for_limits(&limits()) };
    let observe = Box::new(move |stats: &IterationStats| hook.lock().unwrap().push(*stats));
    let mut engine = EngineCore::new(config, executor, Some(observe)).unwrap();
    for prompt in [vec![1; 5], vec![2; 6], vec![3; 7]] {
        engine.submit(request(prompt, 2), Tape::default().sink(), 1).unwrap();
    }
    run(&mut engine);
    let seen = seen.lock().unwrap();
    let counts: Vec<_> = seen
        .iter()
        .map(|s| {
            let requests = [s.active_requests, s.scheduled_requests, s.waiting_requests];
            (s.iteration, requests, s.context_requests, s.generation_requests, s.total_context_tokens)
        })
        .collect();
    let expected =
        [(1, [3, 2, 1], 2, 0, 11), (2, [1, 2, 0], 0, 2, 0), (3, [1, 1, 0], 1, 0, 7), (4, [0, 1, 0], 0, 1, 0)];
    assert_eq!(counts, expected);
    let first = seen[0];
    assert_eq!((first.max_requests, first.micro_batch_id, first.paused_requests), (2, 0, 0));
    assert_eq!((first.kv.max_blocks, first.kv.used_blocks, first.kv.free_blocks), (16, 4, 12));
    assert_eq!((first.kv.tokens_per_block, first.kv.used_fraction()), (4, 0.25));
    assert_eq!((seen[3].kv.used_blocks, engine.stats().last_iteration), (0, seen[3]));
    let totals = engine.stats().totals;
    assert_eq!((totals.requests_accepted, totals.requests_finished), (3, 3));
    assert_eq!((totals.prompt_tokens, totals.generated_tokens), (18, 6));
}

#[test]
fn request_statistics_come_with_each_delta() {
    let mut engine = core(EngineConfig::for_limits(&limits()), &limits());
    let tape = Tape::default();
    engine.submit(request(letters(5), 3), tape.sink(), 10).unwrap();
    engine.step(20).unwrap();
    let early = tape.stats();
    assert_eq!((early.arrival_ns, early.first_scheduled_ns, early.first_token_ns), (10, 20, 20));
    assert_eq!((early.last_token_ns, early.generated_tokens, early.prompt_tokens), (0, 1, 5));
    engine.step(30).unwrap();
    engine.step(40).unwrap();
    assert_eq!((tape.stats().last_token_ns, tape.reason()), (40, Some(FinishReason::Length)));
}
