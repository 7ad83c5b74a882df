//! What is given up on the device and found again in a lower tier.

use triton_trtllm::engine::fake::FakeExecutor;
use triton_trtllm::engine::{
    EngineConfig, EngineCore, EventDiff, Keep, KvEventData, Progress, Request, Retention, RetentionRange,
    SchedulerPolicy, TierStats,
};
use triton_trtllm::ids::TokenId;
use triton_trtllm::step::ExecutorLimits;

use crate::common::{SEED, Tape, limits, model, request, run, serve};

/// 8 blocks of 4 on the device.
fn small() -> ExecutorLimits {
    ExecutorLimits { num_blocks: 8, ..limits() }
}

fn engine_with(host_blocks: usize, failing: u64, change: impl FnOnce(&mut EngineConfig)) -> EngineCore {
    let executor = FakeExecutor::new(small(), SEED).with_host_blocks(host_blocks, failing, 2);
    let mut config = EngineConfig { kv_event_buffer: 1000, ..EngineConfig::for_limits(&small()) };
    change(&mut config);
    EngineCore::new(config, Box::new(executor), None).unwrap()
}

fn prompt(token: TokenId) -> Request {
    request((0..21).map(|at| (token + at / 7) % 26), 2)
}

fn cached(engine: &mut EngineCore, request: Request) -> usize {
    let tape = serve(engine, request.clone());
    assert_eq!(tape.tokens(), model(&small()).generate(&request.prompt, &request.sampling, &request.stop).0);
    tape.stats().cached_tokens
}

fn tiers(engine: &EngineCore) -> TierStats {
    engine.stats().last_iteration.tiers
}

#[test]
fn what_the_device_gives_up_comes_back_from_the_host() {
    let mut engine = engine_with(16, 0, |_| ());
    let hits: Vec<_> = [0, 9, 18, 0, 9, 18].map(|token| cached(&mut engine, prompt(token))).into();
    assert_eq!(hits, [0, 0, 0, 20, 20, 20], "three prompts of 6 blocks on 8 blocks: 5 whole blocks of each come back");
    let stats = tiers(&engine);
    assert!(stats.offloaded_blocks >= 15 && stats.onboarded_blocks >= 12, "{stats:?}");
    assert_eq!((stats.host_blocks, stats.host_evicted_blocks, stats.failed_transfers), (16, 0, 0));
}

#[test]
fn a_full_host_tier_gives_up_what_is_oldest() {
    let mut engine = engine_with(5, 0, |_| ());
    for token in [0, 9, 18] {
        cached(&mut engine, prompt(token));
    }
    assert!(tiers(&engine).host_evicted_blocks > 0);
    assert!(tiers(&engine).host_cached_blocks <= 5);
    assert!(cached(&mut engine, prompt(0)) < 20);
}

#[test]
fn content_of_low_priority_is_not_offloaded() {
    let mut engine = engine_with(16, 0, |_| ());
    let keep = Keep { priority: 34, duration_ns: None };
    let low = |token| {
        let ranges = vec![RetentionRange { start: 0, end: None, keep }];
        Request { retention: Some(Retention { ranges, decode: keep }), ..prompt(token) }
    };
    for token in [0, 9, 18] {
        cached(&mut engine, low(token));
    }
    assert_eq!(tiers(&engine).offloaded_blocks, 0);
}

#[test]
fn a_failed_transfer_costs_a_computation_and_no_request() {
    let mut engine = engine_with(16, 100, |_| ());
    for token in [0, 9, 18, 0, 9, 18] {
        cached(&mut engine, prompt(token));
    }
    let stats = tiers(&engine);
    assert!(stats.failed_transfers > 0 && stats.onboarded_blocks == 0, "{stats:?}");
    engine.check().unwrap();
}

#[test]
fn others_run_while_blocks_come_up_and_a_twin_waits_for_the_same_transfer() {
    let mut engine = engine_with(16, 0, |_| ());
    for token in [0, 9] {
        cached(&mut engine, prompt(token));
    }
    let [first, twin, other] = [prompt(0), prompt(0), request([25, 24, 23], 3)].map(|request| {
        let tape = Tape::default();
        engine.submit(request, tape.sink(), 1).unwrap();
        tape
    });
    engine.step(2).unwrap();
    engine.check().unwrap();
    assert_eq!(other.tokens().len(), 1, "started while the others wait");
    assert!(first.tokens().is_empty() && twin.tokens().is_empty());
    run(&mut engine);
    assert_eq!([first, twin].map(|tape| tape.stats().cached_tokens), [20, 20]);
    assert_eq!(tiers(&engine).onboarded_blocks, 3, "of 5: what the second prompt pushed out, and only once");
}

#[test]
fn a_request_that_is_cancelled_while_blocks_come_up_leaves_them_to_others() {
    let mut engine = engine_with(16, 0, |_| ());
    for token in [0, 9] {
        cached(&mut engine, prompt(token));
    }
    let id = engine.submit(prompt(0), Tape::default().sink(), 1).unwrap();
    engine.step(2).unwrap();
    engine.cancel(id);
    engine.check().unwrap();
    while engine.step(3).unwrap() != Progress::Idle {}
    engine.check().unwrap();
    assert_eq!(cached(&mut engine, prompt(0)), 20);
}

#[test]
fn a_static_batch_waits_for_its_first_member() {
    let mut engine = engine_with(16, 0, |config| config.policy = SchedulerPolicy::StaticBatch);
    for token in [0, 9] {
        cached(&mut engine, prompt(token));
    }
    assert_eq!(cached(&mut engine, prompt(0)), 20);
}

#[test]
fn a_reset_empties_every_tier() {
    let mut engine = engine_with(16, 0, |_| ());
    for token in [0, 9] {
        cached(&mut engine, prompt(token));
    }
    engine.reset_prefix_cache();
    engine.check().unwrap();
    assert_eq!(cached(&mut engine, prompt(0)), 0);
    assert_eq!(tiers(&engine).onboarded_blocks, 0);
}

#[test]
fn events_tell_of_each_change_of_level() {
    let mut engine = engine_with(16, 0, |_| ());
    let levels = |engine: &EngineCore| {
        let level = |data: KvEventData| match data {
            KvEventData::Updated { cache_level, .. } => cache_level.map(|EventDiff { new_value, .. }| new_value),
            _ => None,
        };
        engine.drain_kv_events().events.into_iter().filter_map(|event| level(event.data)).collect::<Vec<_>>()
    };
    cached(&mut engine, prompt(0));
    let created = KvEventData::Created { num_blocks_per_cache_level: vec![8, 16] };
    assert_eq!(engine.drain_kv_events().events[0].data, created);
    cached(&mut engine, prompt(9));
    assert_eq!(levels(&engine), [1, 1, 1]);
    cached(&mut engine, prompt(0));
    let back = levels(&engine);
    assert_eq!(back.iter().filter(|&&level| level == 0).count(), 3, "{back:?}");
}
