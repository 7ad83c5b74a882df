//! Layers that see a window of the context: pools of their own, given back while sequences run, and shared.

use triton_trtllm::engine::fake::FakeExecutor;
use triton_trtllm::engine::{EngineConfig, EngineCore, Progress};
use triton_trtllm::ids::TokenId;
use triton_trtllm::step::{ExecutorLimits, WindowPool};

use crate::common::{SEED, Tape, limits, model, request, run, serve};

/// Blocks of 4, 128 of full length, and steps of 16 tokens.
fn long_limits() -> ExecutorLimits {
    ExecutorLimits { num_blocks: 128, max_step_tokens: 16, max_seq_len_tokens: 200, ..limits() }
}

fn engine_with(limits: &ExecutorLimits, pools: &[WindowPool]) -> EngineCore {
    let executor = FakeExecutor::new(limits.clone(), SEED).with_windows(pools);
    EngineCore::new(EngineConfig::for_limits(limits), Box::new(executor), None).unwrap()
}

fn window(window_tokens: usize, num_blocks: usize) -> WindowPool {
    WindowPool { num_blocks, window_tokens, sink_tokens: 0 }
}

fn prompt(start: TokenId, len: usize) -> Vec<TokenId> {
    (0..len as TokenId).map(|at| (start + at * at) % 26).collect()
}

#[test]
fn long_sequences_live_in_few_blocks_of_a_window() {
    let limits = long_limits();
    // One sequence holds 8 / 4 + 3 blocks, the steps 16 / 4.
    let mut engine = engine_with(&limits, &[window(8, 9), window(20, 12)]);
    let long = request(prompt(3, 90), 100);
    let alone = model(&limits).generate(&long.prompt, &long.sampling, &long.stop);
    let tape = serve(&mut engine, long);
    assert_eq!((tape.tokens(), tape.reason()), (alone.0, Some(alone.1)), "190 tokens through 36 and 48 slots");
}

#[test]
fn a_pool_for_two_lets_two_run_at_a_time() {
    let limits = long_limits();
    let mut engine = engine_with(&limits, &[window(8, 4 + 2 * 5)]);
    let tapes: Vec<_> = (0..3)
        .map(|start| {
            let tape = Tape::default();
            engine.submit(request(prompt(start, 30), 60), tape.sink(), 1).unwrap();
            tape
        })
        .collect();
    let (mut most, mut most_used) = (0, 0);
    for now in 2.. {
        let progress = engine.step(now).unwrap();
        engine.check().unwrap();
        most = most.max(engine.stats().last_iteration.scheduled_requests);
        most_used = most_used.max(engine.stats().last_iteration.windows[0].used_blocks);
        if progress == Progress::Idle {
            break;
        }
    }
    assert_eq!(most, 2);
    let pool = engine.stats().last_iteration.windows[0];
    assert_eq!((pool.window_tokens, pool.max_blocks, pool.used_blocks), (8, 14, 0));
    assert!((6..=14).contains(&most_used), "{most_used} blocks of the window were used");
    assert!(tapes.iter().all(|tape| tape.tokens().len() == 60));
}

#[test]
fn a_conversation_goes_on_from_the_end_of_its_window() {
    let limits = long_limits();
    let mut engine = engine_with(&limits, &[window(8, 20)]);
    let first = serve(&mut engine, request(prompt(5, 60), 20));
    let next: Vec<_> = prompt(5, 60).into_iter().chain(first.tokens()).chain([1, 2, 3]).collect();
    let second = serve(&mut engine, request(next.clone(), 4));
    assert_eq!(second.stats().cached_tokens, 79, "all that was computed");
    let alone = model(&limits).generate(&next, &Default::default(), &request([1], 4).stop);
    assert_eq!(second.tokens(), alone.0);
}

#[test]
fn a_beginning_whose_window_is_lost_is_computed_again_and_then_known() {
    let limits = long_limits();
    let mut engine = engine_with(&limits, &[window(8, 9)]);
    serve(&mut engine, request(prompt(5, 40), 1));
    serve(&mut engine, request(prompt(7, 90), 1));
    let again = serve(&mut engine, request(prompt(5, 40), 1));
    assert_eq!(again.stats().cached_tokens, 0, "the other prompt took the blocks of the window");
    let known = serve(&mut engine, request(prompt(5, 40), 1));
    assert_eq!(known.stats().cached_tokens, 39);
}

#[test]
fn sinks_stay_in_sight() {
    let limits = long_limits();
    let sinks = WindowPool { sink_tokens: 5, ..window(8, 4 + 7) };
    let mut engine = engine_with(&limits, &[sinks]);
    let long = request(prompt(3, 70), 80);
    let alone = model(&limits).generate(&long.prompt, &long.sampling, &long.stop);
    assert_eq!(serve(&mut engine, long.clone()).tokens(), alone.0, "the executor checks that sinks are still there");
    let twice = serve(&mut engine, long);
    assert_eq!((twice.tokens(), twice.stats().cached_tokens > 0), (alone.0, true));
}

#[test]
fn sequences_of_one_request_share_what_their_window_sees() {
    let limits = long_limits();
    let mut engine = engine_with(&limits, &[window(8, 4 + 4 * 5)]);
    let tape = Tape::default();
    let many = triton_trtllm::engine::Request { num_sequences: 4, ..request(prompt(9, 50), 8) };
    engine.submit(many, tape.sink(), 1).unwrap();
    run(&mut engine);
    assert!(tape.has_ended(4));
    let record = tape.0.lock().unwrap();
    assert!(record.siblings.iter().all(|sibling| sibling.stats.cached_tokens == 49 && sibling.tokens.len() == 8));
}

#[test]
fn a_pool_that_cannot_hold_one_sequence_is_refused() {
    let limits = long_limits();
    let executor = FakeExecutor::new(limits.clone(), SEED).with_windows(&[window(8, 8)]);
    let error = EngineCore::new(EngineConfig::for_limits(&limits), Box::new(executor), None).err().unwrap();
    assert!(error.message().contains("window"), "{error}");
}

/// As `engine_with`, with memory of the host behind both kinds of blocks.
fn engine_with_host(limits: &ExecutorLimits, pool: WindowPool, host: (usize, usize)) -> EngineCore {
    let executor = FakeExecutor::new(limits.clone(), SEED)
        .with_windows(&[pool])
        .with_host_blocks(host.0, 0, 2)
        .with_window_host_blocks(&[host.1]);
    EngineCore::new(EngineConfig::for_limits(limits), Box::new(executor), None).unwrap()
}

/// Cached tokens of a request that got what it would get alone.
fn cached(engine: &mut EngineCore, prompt: &[TokenId]) -> usize {
    let wish = request(prompt.to_vec(), 2);
    let alone = model(&long_limits()).generate(&wish.prompt, &wish.sampling, &wish.stop);
    let tape = serve(engine, wish);
    assert_eq!(tape.tokens(), alone.0);
    tape.stats().cached_tokens
}

#[test]
fn a_window_that_was_overwritten_comes_back_from_the_host() {
    let limits = long_limits();
    let (first, second) = (prompt(5, 41), prompt(7, 90));
    let mut without = engine_with(&limits, &[window(8, 9)]);
    let hits = [&first, &second, &first].map(|prompt| cached(&mut without, prompt));
    assert_eq!(hits, [0, 0, 0], "the blocks of full length are all there, those of the window are not");
    let mut engine = engine_with_host(&limits, window(8, 9), (64, 64));
    let hits = [&first, &second, &first, &second].map(|prompt| cached(&mut engine, prompt));
    assert_eq!(hits, [0, 0, 40, 89]);
    let tiers = engine.stats().last_iteration.tiers;
    assert!(tiers.onboarded_blocks >= 2 && tiers.host_cached_blocks == 0, "only blocks of the window moved: {tiers:?}");
}

#[test]
fn both_kinds_of_blocks_come_back_from_the_host() {
    let limits = ExecutorLimits { num_blocks: 24, ..long_limits() };
    let mut engine = engine_with_host(&limits, WindowPool { sink_tokens: 5, ..window(8, 11) }, (64, 64));
    let prompts = [5, 7, 9].map(|start| prompt(start, 62));
    let hits: Vec<_> = prompts.iter().chain(&prompts).map(|prompt| cached(&mut engine, prompt)).collect();
    assert_eq!(hits, [0, 0, 0, 60, 60, 60], "three prompts of 16 blocks on 24");
}

#[test]
fn a_part_of_a_block_is_shared_beside_windows_too() {
    let limits = long_limits();
    let mut engine = engine_with(&limits, &[window(8, 20), window(20, 20)]);
    let mut history = prompt(5, 42);
    cached(&mut engine, &history);
    assert_eq!(cached(&mut engine, &history), 41, "all but the last token");
    history[41] = 25;
    history.extend([1, 2, 3]);
    assert_eq!(cached(&mut engine, &history), 41, "the first slot of the last block");
}
