//! The tier on disk: what is cached is stored, and found by the next process.

use triton_trtllm::engine::fake::{FakeDisk, FakeExecutor};
use triton_trtllm::engine::{EngineConfig, EngineCore, Keep, Request, Retention, RetentionRange, TierStats};
use triton_trtllm::ids::TokenId;
use triton_trtllm::step::{ExecutorLimits, WindowPool};

use crate::common::{SEED, limits, model, request, run, serve};

fn small() -> ExecutorLimits {
    ExecutorLimits { num_blocks: 8, ..limits() }
}

/// A process: an engine over the disk.
fn process(disk: &FakeDisk, failing: u64) -> EngineCore {
    let executor = FakeExecutor::new(small(), SEED).with_disk(disk, failing, 1);
    EngineCore::new(EngineConfig::for_limits(&small()), Box::new(executor), None).unwrap()
}

/// 22 tokens: 5 whole blocks.
fn prompt(start: TokenId) -> Request {
    request((0..22).map(|at| (start + at * at) % 26), 2)
}

/// Cached tokens of a request that got what it would get alone.
fn cached(engine: &mut EngineCore, request: Request) -> usize {
    let alone = model(&small()).generate(&request.prompt, &request.sampling, &request.stop);
    let tape = serve(engine, request);
    assert_eq!(tape.tokens(), alone.0);
    tape.stats().cached_tokens
}

fn stats(engine: &EngineCore) -> TierStats {
    engine.stats().last_iteration.tiers
}

#[test]
fn a_beginning_that_was_found_again_survives_a_restart() {
    let disk = FakeDisk::new(16);
    let mut first = process(&disk, 0);
    assert_eq!((cached(&mut first, prompt(0)), disk.len()), (0, 5), "stored when the request has ended");
    assert_eq!((cached(&mut first, prompt(9)), disk.len()), (0, 10));
    drop(first);
    let mut second = process(&disk, 0);
    assert_eq!([0, 9].map(|start| cached(&mut second, prompt(start))), [20, 20]);
    let stats = stats(&second);
    assert_eq!((stats.loaded_blocks, stats.disk_blocks, stats.disk_cached_blocks), (10, 16, 10), "{stats:?}");
}

#[test]
fn what_was_found_again_is_not_given_up_for_what_came_once() {
    let disk = FakeDisk::new(7);
    let mut engine = process(&disk, 0);
    for start in [0, 0, 9, 13, 17] {
        cached(&mut engine, prompt(start));
    }
    drop(engine);
    let mut engine = process(&disk, 0);
    assert_eq!([0, 17].map(|start| cached(&mut engine, prompt(start))), [20, 8]);
}

#[test]
fn what_a_slow_disk_could_not_keep_up_with_is_stored_in_the_end() {
    let disk = FakeDisk::new(16).slow(2);
    let mut engine = process(&disk, 0);
    cached(&mut engine, prompt(0));
    assert_eq!(disk.len(), 2, "the others would have had to wait");
    assert!(engine.flush_disk(&|| false));
    assert_eq!(disk.len(), 5);
    engine.check().unwrap();
    let late = FakeDisk::new(16).slow(1);
    let mut engine = process(&late, 0);
    cached(&mut engine, prompt(0));
    assert!(!engine.flush_disk(&|| true), "there is no time");
    assert_eq!(late.len(), 1);
}

#[test]
fn a_window_is_stored_with_its_tokens() {
    let limits = ExecutorLimits { num_blocks: 64, ..limits() };
    let disk = FakeDisk::new(32);
    let process = || {
        let pool = |window_tokens| WindowPool { num_blocks: 20, window_tokens, sink_tokens: 0 };
        let executor = FakeExecutor::new(limits.clone(), SEED).with_disk(&disk, 0, 1);
        let executor = executor.with_windows(&[pool(6), pool(10)]);
        EngineCore::new(EngineConfig::for_limits(&limits), Box::new(executor), None).unwrap()
    };
    let long = |start: TokenId| request((0..42).map(|at| (start + at * at) % 26), 2);
    let (mut first, wishes) = (process(), [0, 9, 14].map(long));
    let alone = |wish: &Request| model(&limits).generate(&wish.prompt, &wish.sampling, &wish.stop).0;
    for wish in &wishes {
        assert_eq!(serve(&mut first, wish.clone()).tokens(), alone(wish));
    }
    drop(first);
    let mut second = process();
    for wish in &wishes {
        let tape = serve(&mut second, wish.clone());
        assert_eq!((tape.tokens(), tape.stats().cached_tokens), (alone(wish), 40));
    }
}

#[test]
fn what_the_device_gave_up_comes_back_from_disk() {
    let disk = FakeDisk::new(16);
    let mut engine = process(&disk, 0);
    for start in [0, 0, 9, 9, 18, 18] {
        cached(&mut engine, prompt(start));
    }
    assert_eq!([0, 9, 18].map(|start| cached(&mut engine, prompt(start))), [20; 3]);
}

#[test]
fn a_full_disk_gives_up_what_was_not_used_for_longest_ends_before_beginnings() {
    let disk = FakeDisk::new(7);
    let mut engine = process(&disk, 0);
    for start in [0, 0, 9, 9] {
        cached(&mut engine, prompt(start));
    }
    assert_eq!(disk.len(), 7);
    drop(engine);
    let mut engine = process(&disk, 0);
    assert_eq!(cached(&mut engine, prompt(9)), 20);
    assert_eq!(cached(&mut engine, prompt(0)), 8, "two blocks of the beginning are left");
    drop(engine);
    let smaller = FakeDisk::new(7);
    assert!(smaller.is_empty());
}

#[test]
fn failures_cost_a_computation_and_no_request() {
    let disk = FakeDisk::new(16);
    let mut engine = process(&disk, 0);
    cached(&mut engine, prompt(0));
    cached(&mut engine, prompt(0));
    cached(&mut engine, prompt(9));
    drop(engine);
    let mut engine = process(&disk, 100);
    assert_eq!(cached(&mut engine, prompt(0)), 0);
    let stats = stats(&engine);
    assert_eq!((stats.loaded_blocks, stats.failed_transfers), (0, 1 + 5), "one load, and stores: {stats:?}");
    assert_eq!(stats.disk_cached_blocks, 5, "what cannot be read is removed, what cannot be written is not there");
    engine.check().unwrap();
}

#[test]
fn other_salts_adapters_and_low_priorities_are_no_matches_on_disk() {
    let disk = FakeDisk::new(64);
    let mut engine = process(&disk, 0);
    let keep = Keep { priority: 10, duration_ns: None };
    let ranges = vec![RetentionRange { start: 0, end: None, keep }];
    let low = Request { retention: Some(Retention { ranges, decode: keep }), ..prompt(3) };
    let adapted = Request { lora_id: Some(1), ..prompt(7) };
    for request in [&low, &low, &adapted, &adapted] {
        cached(&mut engine, request.clone());
    }
    assert_eq!(disk.len(), 0, "low priority, and adapters that may be others after a restart");
    let salted = Request { cache_salt: 5, ..prompt(0) };
    for _ in 0..2 {
        cached(&mut engine, salted.clone());
    }
    drop(engine);
    let mut engine = process(&disk, 0);
    assert_eq!([prompt(0), salted].map(|request| cached(&mut engine, request)), [0, 20]);
}

#[test]
fn a_reset_empties_the_disk() {
    let disk = FakeDisk::new(16);
    let mut engine = process(&disk, 0);
    for _ in 0..2 {
        cached(&mut engine, prompt(0));
    }
    engine.reset_prefix_cache();
    engine.submit(prompt(9), crate::common::Tape::default().sink(), 1).unwrap();
    run(&mut engine);
    assert_eq!(disk.len(), 5, "what came after it");
    assert_eq!(cached(&mut engine, prompt(0)), 0);
}
