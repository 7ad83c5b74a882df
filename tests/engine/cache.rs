//! Who may share KV blocks, which are given up first, and who hears of it.

use std::sync::{Arc, Mutex};

use triton_trtllm::engine::fake::FakeExecutor;
use triton_trtllm::engine::{
    EngineConfig, EngineCore, Keep, KvEventData, Request, Retention, RetentionRange, SchedulerPolicy,
};
use triton_trtllm::error::ErrorKind;
use triton_trtllm::ids::TokenId;
use triton_trtllm::step::{ExecutorLimits, StepPlan};

use crate::common::{Recorder, SEED, Tape, core, limits, model, request, run, serve};

fn plain() -> EngineCore {
    core(EngineConfig::for_limits(&limits()), &limits())
}

fn recorded(config: EngineConfig, limits: &ExecutorLimits) -> (EngineCore, Arc<Mutex<Vec<StepPlan>>>) {
    let plans = Arc::default();
    let recorder = Recorder { inner: FakeExecutor::new(limits.clone(), SEED), plans: Arc::clone(&plans) };
    (EngineCore::new(config, Box::new(recorder), None).unwrap(), plans)
}

fn cached(engine: &mut EngineCore, request: Request) -> usize {
    serve(engine, request).stats().cached_tokens
}

#[test]
fn blocks_are_shared_within_one_adapter_only() {
    let mut engine = plain();
    let with = |lora_id| Request { lora_id, ..request(vec![4; 12], 1) };
    let hits: Vec<_> = [None, Some(0), Some(1), Some(1), None].map(|id| cached(&mut engine, with(id))).into();
    assert_eq!(hits, [0, 0, 0, 11, 11]);
}

#[test]
fn extra_ids_tell_equal_tokens_apart_from_where_they_differ() {
    let mut engine = plain();
    let with = |image: u64| {
        let extra_ids = (0..12).map(|at| if (6..8).contains(&at) { image } else { 0 }).collect();
        Request { extra_ids, ..request(vec![4; 12], 1) }
    };
    let hits: Vec<_> = [7, 8, 7, 8].map(|image| cached(&mut engine, with(image))).into();
    assert_eq!(hits, [0, 6, 11, 11], "the first block and two slots of the second do not depend on the image");
    assert_eq!(cached(&mut engine, request(vec![4; 12], 1)), 6, "no image is another image");
    let wrong = Request { extra_ids: vec![1, 2], ..request(vec![4; 12], 1) };
    let error = engine.submit(wrong, Tape::default().sink(), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArg);
    assert_eq!(error.message(), "there are 2 extra ids, expected one for each of the 12 prompt tokens");
}

#[test]
fn a_conversation_goes_on_in_its_own_last_block_and_a_fork_copies_it() {
    let (mut engine, plans) = recorded(EngineConfig::for_limits(&limits()), &limits());
    let mut history: Vec<TokenId> = (0..9).collect();
    history.extend(serve(&mut engine, request(history.clone(), 2)).tokens());
    plans.lock().unwrap().clear();
    // 10 slots were computed; the third block holds 2 of them, both are wanted, nobody uses it.
    let turn = serve(&mut engine, request(history.clone(), 1));
    assert_eq!((turn.stats().cached_tokens, turn.stats().reused_blocks, turn.stats().allocated_blocks), (10, 3, 0));
    assert!(plans.lock().unwrap().iter().all(|plan| plan.block_copies.is_empty()));
    // Only 1 of its slots is wanted: a copy, so that the conversation is not lost.
    let fork = serve(&mut engine, request([0, 1, 2, 3, 4, 5, 6, 7, 8, 25, 25], 1));
    assert_eq!((fork.stats().cached_tokens, fork.stats().allocated_blocks), (9, 1));
    assert_eq!(plans.lock().unwrap().iter().map(|plan| plan.block_copies.len()).sum::<usize>(), 1);
    assert_eq!(cached(&mut engine, request(history, 1)), 10);
}

#[test]
fn a_block_that_is_needed_whole_is_taken_over_when_there_is_no_room_for_a_copy() {
    let limits = ExecutorLimits { num_blocks: 3, ..limits() };
    let mut engine = core(EngineConfig::for_limits(&limits), &limits);
    serve(&mut engine, request(vec![1; 12], 1));
    let mut other = vec![1; 12];
    other[10] = 2;
    assert_eq!(cached(&mut engine, request(other, 1)), 10);
}

fn kept(priority: u8, duration_ns: Option<u64>, prompt: Vec<TokenId>) -> Request {
    let keep = Keep { priority, duration_ns };
    let ranges = vec![RetentionRange { start: 0, end: None, keep }];
    Request { retention: Some(Retention { ranges, decode: Keep::default() }), ..request(prompt, 1) }
}

/// How much of a prompt of 16 is still there after four others of 16 went through 16 blocks.
fn survives(first: Request) -> usize {
    let mut engine = plain();
    let prompt = first.prompt.clone();
    serve(&mut engine, first);
    engine.step(1_000).unwrap();
    (1..5).for_each(|token| drop(serve(&mut engine, request(vec![token; 16], 1))));
    cached(&mut engine, request(prompt, 1))
}

#[test]
fn priority_decides_what_is_given_up() {
    assert_eq!(survives(request(vec![9; 16], 1)), 0, "least recently used");
    assert_eq!(survives(kept(80, None, vec![9; 16])), 15);
    assert_eq!(survives(kept(80, Some(1_000_000), vec![9; 16])), 15, "the duration is not over");
    assert_eq!(survives(kept(80, Some(1), vec![9; 16])), 0, "the duration is over");
}

#[test]
fn low_priority_goes_before_what_is_older() {
    let limits = ExecutorLimits { num_blocks: 8, ..limits() };
    let mut engine = core(EngineConfig::for_limits(&limits), &limits);
    serve(&mut engine, request(vec![1; 16], 1));
    serve(&mut engine, kept(0, None, vec![2; 16]));
    serve(&mut engine, request(vec![3; 16], 1));
    assert_eq!(cached(&mut engine, request(vec![1; 16], 1)), 15);
}

#[test]
fn the_beginning_of_what_is_kept_is_kept() {
    let mut engine = plain();
    let keep = Keep { priority: 90, duration_ns: None };
    let ranges = vec![RetentionRange { start: 8, end: Some(16), keep }];
    let retention = Some(Retention { ranges, decode: Keep { priority: 0, duration_ns: None } });
    serve(&mut engine, Request { retention, ..request(vec![9; 16], 1) });
    (1..5).for_each(|token| drop(serve(&mut engine, request(vec![token; 16], 1))));
    assert_eq!(cached(&mut engine, request(vec![9; 16], 1)), 15, "without its first blocks the range is of no use");
}

#[test]
fn a_hit_can_raise_the_priority_and_wrong_retention_is_refused() {
    let mut engine = plain();
    serve(&mut engine, request(vec![9; 17], 1));
    serve(&mut engine, kept(80, None, vec![9; 17]));
    (1..5).for_each(|token| drop(serve(&mut engine, request(vec![token; 16], 1))));
    assert_eq!(cached(&mut engine, request(vec![9; 17], 1)), 16);
    let error = engine.submit(kept(101, None, vec![1]), Tape::default().sink(), 1).unwrap_err();
    assert_eq!(error.message(), "retention priority is 101, expected 0 to 100");
    let ranges = vec![RetentionRange { start: 5, end: Some(4), keep: Keep::default() }];
    let retention = Some(Retention { ranges, ..Retention::default() });
    let error = engine.submit(Request { retention, ..request([1], 1) }, Tape::default().sink(), 1).unwrap_err();
    assert_eq!(error.message(), "retention range 5 to 4 ends before it starts");
}

#[test]
fn statistics_count_what_the_cache_holds_and_loses() {
    let limits = ExecutorLimits { num_blocks: 8, ..limits() };
    let mut engine = core(EngineConfig::for_limits(&limits), &limits);
    serve(&mut engine, request(vec![1; 16], 1));
    let kv = engine.stats().last_iteration.kv;
    assert_eq!((kv.cached_blocks, kv.evicted_blocks, kv.used_blocks), (4, 0, 0));
    serve(&mut engine, request(vec![2; 24], 1));
    let kv = engine.stats().last_iteration.kv;
    assert_eq!((kv.cached_blocks, kv.evicted_blocks), (8, 2));
}

#[test]
fn after_a_reset_nothing_old_is_found_and_running_requests_go_on() {
    let config = EngineConfig { kv_event_buffer: 8, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    serve(&mut engine, kept(80, Some(1000), vec![9; 13]));
    let running = Tape::default();
    engine.submit(request(vec![5; 13], 6), running.sink(), 1).unwrap();
    engine.step(1).unwrap();
    engine.step(2).unwrap();
    drop(events(&engine));
    engine.reset_prefix_cache();
    engine.check().unwrap();
    let told = events(&engine);
    let [KvEventData::Removed { block_hashes }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((block_hashes.len(), engine.stats().totals.requests_finished), (6, 1));
    run(&mut engine);
    let alone = model(&limits()).generate(&[5; 13], &Default::default(), &request([], 6).stop).0;
    assert_eq!(running.tokens(), alone);
    for token in [9, 5] {
        assert_eq!(cached(&mut engine, request(vec![token; 13], 1)), 0, "computed before the reset");
        assert_eq!(cached(&mut engine, request(vec![token; 13], 1)), 12, "computed after it");
    }
}

fn events(engine: &EngineCore) -> Vec<KvEventData> {
    engine.drain_kv_events().events.into_iter().map(|event| event.data).collect()
}

#[test]
fn a_mirror_fed_by_events_knows_what_is_cached() {
    let limits = ExecutorLimits { num_blocks: 6, ..limits() };
    let config = EngineConfig { kv_event_buffer: 100, ..EngineConfig::for_limits(&limits) };
    let mut engine = core(config, &limits);
    assert_eq!(events(&engine), [KvEventData::Created { num_blocks_per_cache_level: vec![6] }]);
    serve(&mut engine, Request { lora_id: Some(3), ..request([1, 2, 3, 4, 5, 6, 7, 8, 9], 1) });
    let stored = events(&engine);
    let [KvEventData::Stored { parent_hash: None, blocks }] = &stored[..] else { panic!("{stored:?}") };
    let ids: Vec<Vec<_>> = blocks.iter().map(|block| block.tokens.iter().map(|t| t.token_id).collect()).collect();
    assert_eq!(ids, [[1, 2, 3, 4], [5, 6, 7, 8]], "only full blocks are told of");
    assert_eq!((blocks[0].lora_id, blocks[0].cache_level, blocks[0].priority), (Some(3), 0, 35));
    // A longer prompt behind the same beginning.
    let longer = Request { lora_id: Some(3), ..request([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], 1) };
    serve(&mut engine, longer);
    let more = events(&engine);
    let [KvEventData::Stored { parent_hash, blocks: third }] = &more[..] else { panic!("{more:?}") };
    assert_eq!((*parent_hash, third.len()), (Some(blocks[1].block_hash), 1));
    // All blocks are needed: the leaf goes first.
    serve(&mut engine, request(vec![25; 24], 1));
    let removed: Vec<u64> = events(&engine)
        .into_iter()
        .filter_map(|data| if let KvEventData::Removed { block_hashes } = data { Some(block_hashes) } else { None })
        .flatten()
        .collect();
    assert_eq!(removed, [third[0].block_hash, blocks[1].block_hash, blocks[0].block_hash]);
}

#[test]
fn events_have_the_known_json_form_and_old_ones_are_lost_visibly() {
    let config = EngineConfig { kv_event_buffer: 2, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    serve(&mut engine, request([1, 2, 3, 4, 5], 1));
    let raise = kept(50, None, vec![1, 2, 3, 4, 5]);
    serve(&mut engine, raise);
    let batch = engine.drain_kv_events();
    assert_eq!(batch.lost, 1, "the first event was overwritten");
    let lines: Vec<_> = batch.events.iter().map(|event| event.to_json()).collect();
    let hash = match &batch.events[0].data {
        KvEventData::Stored { blocks, .. } => blocks[0].block_hash,
        other => panic!("{other:?}"),
    };
    let token = |id: u32| format!(r#"{{"type":"unique_token","token_id":{id},"token_extra_id":0}}"#);
    let tokens = [1, 2, 3, 4].map(token).join(",");
    let stored = format!(
        r#"{{"event_id":1,"data":{{"type":"stored","parent_hash":null,"blocks":[{{"type":"stored_block","block_hash":{hash},"tokens":[{tokens}],"lora_id":null,"cache_level":0,"priority":35}}]}}}}"#
    );
    let updated = format!(
        r#"{{"event_id":2,"data":{{"type":"updated","block_hash":{hash},"cache_level":null,"priority":{{"type":"event_diff","new_value":50,"old_value":35}}}}}}"#
    );
    assert_eq!(lines, [stored, updated]);
    assert_eq!(engine.drain_kv_events().events, []);
}

#[test]
fn return_sequences_share_the_prompt_and_have_seeds_of_their_own() {
    for (kv_reuse, policy) in [
        (true, SchedulerPolicy::GuaranteedNoEvict),
        (false, SchedulerPolicy::GuaranteedNoEvict),
        (true, SchedulerPolicy::MaxUtilization),
        (false, SchedulerPolicy::Balanced),
    ] {
        let config = EngineConfig { kv_reuse, policy, ..EngineConfig::for_limits(&limits()) };
        let (mut engine, plans) = recorded(config, &limits());
        let tape = Tape::default();
        let many = Request { num_sequences: 4, ..request((0..14).collect::<Vec<_>>(), 3) };
        engine.submit(many.clone(), tape.sink(), 1).unwrap();
        run(&mut engine);
        let record = tape.0.lock().unwrap();
        let all: Vec<_> =
            std::iter::once(&record.tokens).chain(record.siblings.iter().map(|one| &one.tokens)).collect();
        for (index, tokens) in all.iter().enumerate() {
            let mut sampling = many.sampling.clone();
            sampling.seed += index as u64;
            assert_eq!(**tokens, model(&limits()).generate(&many.prompt, &sampling, &many.stop).0);
        }
        assert_eq!(all.len(), 4);
        let plans = plans.lock().unwrap();
        let prefill: usize = plans.iter().flat_map(|plan| &plan.chunks).filter(|c| c.start < 14).map(|c| c.len).sum();
        assert_eq!(prefill, 14 + 3, "the prompt is computed once, its last token once for each");
        let blocks: usize = plans.iter().flat_map(|plan| &plan.chunks).map(|chunk| chunk.append_blocks.len()).sum();
        let copies: usize = plans.iter().map(|plan| plan.block_copies.len()).sum();
        assert_eq!((copies, blocks - 3 * 3), (3, 4 + 3), "three blocks are shared, the last one is copied");
        let totals = engine.stats().totals;
        assert_eq!((totals.requests_accepted, totals.requests_finished, totals.generated_tokens), (1, 1, 12));
    }
}

#[test]
fn ending_a_request_ends_all_its_sequences() {
    let config = EngineConfig { max_batch_size: 2, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let tape = Tape::default();
    let error = engine.submit(Request { num_sequences: 3, ..request([1], 9) }, tape.sink(), 1).unwrap_err();
    assert!(error.message().ends_with(": the number of return sequences is 3, expected 1 to 2"), "{error}");
    let id = engine.submit(Request { num_sequences: 2, ..request([1, 2, 3], 9) }, tape.sink(), 1).unwrap();
    for now in 1..5 {
        engine.step(now).unwrap();
    }
    assert!(!tape.has_ended(2));
    engine.cancel(id);
    assert!(tape.has_ended(2));
    run(&mut engine);
    assert_eq!(engine.stats().totals.requests_cancelled, 1);
}
