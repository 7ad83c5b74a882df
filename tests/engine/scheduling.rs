//! Who runs when: shares of tenants, ageing of priorities, limits of the queue, what happens when memory is short.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use triton_trtllm::engine::bench::{SchedulerBench, prefix_match};
use triton_trtllm::engine::fake::FakeExecutor;
use triton_trtllm::engine::{ChunkingPolicy, EngineConfig, EngineCore, Progress, Request, SchedulerPolicy, Tenant};
use triton_trtllm::error::{ErrorKind, Result};
use triton_trtllm::ids::TokenId;
use triton_trtllm::step::{Executor, ExecutorLimits, StepOutput, StepPlan};

use crate::common::{Recorder, Rng, SEED, Tape, core, limits, request, run};

#[test]
fn tenants_get_tokens_by_weight_whoever_came_first() {
    let limits = ExecutorLimits { num_blocks: 64, ..limits() };
    let config = EngineConfig { max_batch_size: 4, ..EngineConfig::for_limits(&limits) };
    let mut engine = core(config, &limits);
    let mut tapes = [Vec::new(), Vec::new()];
    for (id, weight) in [(1, 1), (2, 3)] {
        for number in 0..60 {
            let tape = Tape::default();
            let tenant = Tenant { id, weight };
            let wish = Request { tenant, ..request([id as TokenId, number % 26, 3, 4], 6) };
            engine.submit(wish, tape.sink(), 1).unwrap();
            tapes[id as usize - 1].push(tape);
        }
    }
    for now in 1..=80 {
        engine.step(now).unwrap();
    }
    let served: Vec<usize> = tapes.iter().map(|tapes| tapes.iter().map(|tape| tape.tokens().len()).sum()).collect();
    assert!((5 * served[0] / 2..7 * served[0] / 2).contains(&served[1]), "{served:?}");
    run(&mut engine);
    assert!(tapes.iter().flatten().all(|tape| tape.reason().is_some()), "nobody is forgotten");
}

#[test]
fn a_tenant_that_returns_has_no_claim_for_its_absence() {
    let config = EngineConfig { max_batch_size: 1, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let submit = |engine: &mut EngineCore, id, count: usize| -> Vec<Tape> {
        let tapes: Vec<_> = (0..count).map(|_| Tape::default()).collect();
        for tape in &tapes {
            let wish = Request { tenant: Tenant { id, weight: 1 }, ..request([1, 2], 1) };
            engine.submit(wish, tape.sink(), 1).unwrap();
        }
        tapes
    };
    let busy = submit(&mut engine, 1, 40);
    for now in 1..=20 {
        engine.step(now).unwrap();
    }
    let late = submit(&mut engine, 2, 20);
    for now in 21..=30 {
        engine.step(now).unwrap();
    }
    let ended = |tapes: &[Tape]| tapes.iter().filter(|tape| tape.reason().is_some()).count();
    assert_eq!((ended(&busy), ended(&late)), (25, 5), "equal shares from when it came");
}

/// When a request of the lowest priority starts while one of the highest arrives in each step.
fn start_of_the_lowest(ageing: Option<Duration>) -> Option<u64> {
    let config = EngineConfig { max_batch_size: 1, priority_ageing: ageing, ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let low = Tape::default();
    engine.submit(Request { priority: -5, ..request([1, 2], 1) }, low.sink(), 1).unwrap();
    for now in 1..1000 {
        engine.submit(Request { priority: 5, ..request([3, 4], 1) }, Tape::default().sink(), now).unwrap();
        engine.step(now).unwrap();
        if low.reason().is_some() {
            return Some(now);
        }
    }
    None
}

#[test]
fn ageing_bounds_how_long_the_lowest_priority_waits() {
    assert_eq!(start_of_the_lowest(None), None, "without ageing it starves");
    let start = start_of_the_lowest(Some(Duration::from_nanos(20))).expect("it starts");
    assert!((150..=202).contains(&start), "ten priorities of 20 ns each: {start}");
}

#[test]
fn the_queue_is_limited_by_prompt_tokens() {
    let config = EngineConfig { max_queue_tokens: Some(20), ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    engine.submit(request(vec![1; 12], 1), Tape::default().sink(), 1).unwrap();
    let error = engine.submit(request(vec![2; 9], 1), Tape::default().sink(), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.message(), "Maximum queue size of 20 tokens has been reached, please try again later");
    engine.submit(request(vec![2; 8], 1), Tape::default().sink(), 1).expect("exactly full");
    engine.step(1).unwrap();
    engine.submit(request(vec![3; 20], 1), Tape::default().sink(), 1).expect("those that run are not queued");
    run(&mut engine);
}

#[test]
fn each_return_sequence_counts_in_the_queue_and_leaves_it() {
    let config = EngineConfig { max_queue_requests: Some(3), ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    let two = || Request { num_sequences: 2, ..request([1, 2], 4) };
    for _ in 0..3 {
        let id = engine.submit(two(), Tape::default().sink(), 1).unwrap();
        assert!(engine.submit(two(), Tape::default().sink(), 1).is_err());
        engine.cancel(id);
    }
    engine.submit(two(), Tape::default().sink(), 1).unwrap();
    engine.step(1).unwrap();
    engine.submit(two(), Tape::default().sink(), 1).expect("those that run are not queued");
    run(&mut engine);
}

/// What a simulated machine does with a crowd.
#[derive(Debug)]
struct Load {
    tokens_per_second: f64,
    preemptions: usize,
    most_preemptions: usize,
    mean_used_blocks: usize,
}

/// Clients that each send a request when the last one has ended. A step costs 4 ms and 15 us for each token. Outputs are
/// 64 tokens long in the mean, their lengths geometrically distributed, but each asks for up to 900.
fn simulate(policy: SchedulerPolicy, num_blocks: usize, clients: usize) -> Load {
    let limits = ExecutorLimits {
        num_blocks,
        block_size_tokens: 16,
        max_step_tokens: 512,
        max_step_sequences: 256,
        max_step_rows: 256,
        max_seq_len_tokens: 1024,
        vocab_size: 64,
        pipeline_depth: 1,
    };
    let plans: Arc<Mutex<Vec<StepPlan>>> = Arc::default();
    let recorder = Recorder { inner: FakeExecutor::new(limits.clone(), SEED), plans: Arc::clone(&plans) };
    let config = EngineConfig { policy, ..EngineConfig::for_limits(&limits) };
    let mut engine = EngineCore::new(config, Box::new(recorder), None).unwrap();
    let mut rng = Rng(99);
    let mut tapes: Vec<Tape> = Vec::new();
    let (mut seconds, mut used, mut preemptions, mut most) = (0.0, 0, 0, 0);
    let steps = 1500;
    for now in 1..=steps {
        for tape in tapes.extract_if(.., |tape| tape.reason().is_some()) {
            preemptions += tape.stats().preemptions;
            most = most.max(tape.stats().preemptions);
        }
        while tapes.len() < clients {
            let mut wish = request((0..32).map(|_| 1 + rng.below(63) as TokenId).collect::<Vec<_>>(), 900);
            wish.stop.end_ids = vec![0];
            let tape = Tape::default();
            engine.submit(wish, tape.sink(), now).unwrap();
            tapes.push(tape);
        }
        engine.step(now).unwrap();
        let plan = plans.lock().unwrap().pop().unwrap();
        seconds += 0.004 + 15e-6 * plan.chunks.iter().map(|chunk| chunk.len).sum::<usize>() as f64;
        used += engine.stats().last_iteration.kv.used_blocks;
    }
    let tokens = engine.stats().totals.generated_tokens as f64;
    Load {
        tokens_per_second: tokens / seconds,
        preemptions,
        most_preemptions: most,
        mean_used_blocks: used / steps as usize,
    }
}

#[test]
fn the_balanced_policy_keeps_its_throughput_when_twice_the_memory_is_wanted() {
    let clients = 32;
    let calm = simulate(SchedulerPolicy::Balanced, 4096, clients);
    let pool = calm.mean_used_blocks;
    let pressed = simulate(SchedulerPolicy::Balanced, pool, 2 * clients);
    let greedy = simulate(SchedulerPolicy::MaxUtilization, pool, 2 * clients);
    let careful = simulate(SchedulerPolicy::GuaranteedNoEvict, pool, 2 * clients);
    assert_eq!(calm.preemptions, 0);
    assert!(pressed.tokens_per_second > 0.85 * calm.tokens_per_second, "{pressed:?}, unpressured {calm:?}");
    assert!(pressed.most_preemptions <= 3 && pressed.preemptions < greedy.preemptions / 2, "{pressed:?}, {greedy:?}");
    assert!(pressed.tokens_per_second > 2.0 * careful.tokens_per_second, "{pressed:?}, {careful:?}");
}

/// Takes 4 ms and 100 us for each token of a step, on a clock of its own.
struct Paced(FakeExecutor, Arc<AtomicU64>, VecDeque<u64>);

impl Executor for Paced {
    fn limits(&self) -> ExecutorLimits {
        self.0.limits()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        let tokens: usize = plan.chunks.iter().map(|chunk| chunk.len).sum();
        self.2.push_back(4_000_000 + 100_000 * tokens as u64);
        self.0.launch(plan)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.1.fetch_add(self.2.pop_front().unwrap_or(0), Ordering::Relaxed);
        self.0.collect()
    }
}

/// The times between tokens of 8 streams while a prompt of 3,000 tokens comes, ascending, and when the long one starts
/// to answer.
fn gaps(max_step_slowdown: Option<f32>, pipeline_depth: usize) -> (Vec<u64>, u64) {
    let limits = ExecutorLimits {
        num_blocks: 1024,
        block_size_tokens: 16,
        max_step_tokens: 2048,
        max_step_sequences: 16,
        max_step_rows: 16,
        max_seq_len_tokens: 4096,
        pipeline_depth,
        ..limits()
    };
    let config = EngineConfig { max_step_slowdown, ..EngineConfig::for_limits(&limits) };
    let time = Arc::new(AtomicU64::new(1));
    let executor = Paced(FakeExecutor::new(limits, SEED), Arc::clone(&time), VecDeque::new());
    let mut engine = EngineCore::new(config, Box::new(executor), None).unwrap();
    let now = || time.load(Ordering::Relaxed);
    let streams: Vec<_> = (0..8).map(|_| Tape::default()).collect();
    for (number, tape) in streams.iter().enumerate() {
        engine.submit(request([number as TokenId, 2, 3], 400), tape.sink(), now()).unwrap();
    }
    let long = Tape::default();
    let (mut gaps, mut last) = (Vec::new(), 0);
    for step in 0..300 {
        if step == 60 {
            let prompt: Vec<TokenId> = (0..3000).map(|at| (at * at % 26) as TokenId).collect();
            engine.submit(request(prompt, 2), long.sink(), now()).unwrap();
        }
        engine.step_by(&now).unwrap();
        if step > 20 {
            gaps.push(now() - last);
        }
        last = now();
    }
    gaps.sort_unstable();
    (gaps, long.stats().first_token_ns - long.stats().arrival_ns)
}

#[test]
fn a_long_prompt_leaves_the_streams_their_pace() {
    for depth in [1, 2] {
        let (free, _) = gaps(None, depth);
        let (paced, first_token_ns) = gaps(Some(2.0), depth);
        let baseline = 4_800_000;
        assert_eq!(paced[paced.len() / 4], baseline, "most of the time there are 8 streams only");
        let longest = |gaps: &[u64]| gaps[gaps.len() - 1];
        assert!(longest(&free) > 20 * baseline, "without a bound: {}", longest(&free));
        assert!(longest(&paced) <= 2 * baseline, "with a bound: {}", longest(&paced));
        // 3,000 tokens alone take 0.304 s; beside the streams at least twice that.
        assert!(first_token_ns < 1_000_000_000, "the prompt does not starve: {first_token_ns}");
    }
}

/// A device that works `STEP_NS` on each step, and a host that works `MASK_NS` on its guides when the step before has
/// ended: a launch returns when that is done.
struct Guided {
    inner: FakeExecutor,
    time: Arc<AtomicU64>,
    /// When each step in flight ends, and when that was known.
    ends: VecDeque<(u64, Option<u64>)>,
}

const STEP_NS: u64 = 1000;
const MASK_NS: u64 = 400;

impl Executor for Guided {
    fn limits(&self) -> ExecutorLimits {
        self.inner.limits()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        let mut now = self.time.load(Ordering::Relaxed);
        let mut start = now;
        if let Some((end, known)) = self.ends.back_mut() {
            (start, now) = (now.max(*end), now.max(*end));
            *known = Some(now);
        }
        self.time.store(now + MASK_NS, Ordering::Relaxed);
        self.ends.push_back(((start + STEP_NS).max(now + MASK_NS), None));
        self.inner.launch(plan)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        let now = self.time.load(Ordering::Relaxed);
        let (end, known) = self.ends.pop_front().unwrap();
        let known = known.unwrap_or_else(|| now.max(end));
        self.time.store(now.max(known), Ordering::Relaxed);
        Ok(StepOutput { ended_ns_ago: now.max(known) - known, ..self.inner.collect()? })
    }
}

#[test]
fn a_launch_that_waits_for_masks_leaves_no_gap_between_steps() {
    let limits = ExecutorLimits { num_blocks: 256, max_seq_len_tokens: 400, pipeline_depth: 2, ..limits() };
    let time = Arc::new(AtomicU64::new(1));
    let inner = FakeExecutor::new(limits.clone(), SEED);
    let executor = Guided { inner, time: Arc::clone(&time), ends: VecDeque::new() };
    let launch_lead = Some(Duration::from_nanos(100));
    let config = EngineConfig { launch_lead, ..EngineConfig::for_limits(&limits) };
    let mut engine = EngineCore::new(config, Box::new(executor), None).unwrap();
    let now = || time.load(Ordering::Relaxed);
    let stream = Tape::default();
    engine.submit(request([1, 2, 3], 300), stream.sink(), now()).unwrap();
    let (mut put_off, mut begin) = (0, (0, 0));
    while stream.tokens().len() < 200 {
        if let Progress::Until(due_ns) = engine.step_by(&now).unwrap() {
            put_off += 1;
            time.store(due_ns, Ordering::Relaxed);
        }
        if stream.tokens().len() == 20 {
            begin = (now(), 20);
        }
    }
    assert!(put_off > 100, "launches are put off nevertheless: {put_off}");
    let each = (now() - begin.0) / (200 - begin.1);
    assert!(each <= STEP_NS + STEP_NS / 100, "{each} ns a step");
}

#[test]
fn times_of_a_request_are_those_after_its_steps() {
    let time = Arc::new(AtomicU64::new(1));
    let executor = Paced(FakeExecutor::new(limits(), SEED), Arc::clone(&time), VecDeque::new());
    let mut engine = EngineCore::new(EngineConfig::for_limits(&limits()), Box::new(executor), None).unwrap();
    let now = || time.load(Ordering::Relaxed);
    let tape = Tape::default();
    engine.submit(request([1, 2], 2), tape.sink(), now()).unwrap();
    while engine.step_by(&now).unwrap() == Progress::Working {}
    let stats = tape.stats();
    assert_eq!((stats.first_scheduled_ns, stats.first_token_ns, stats.last_token_ns), (1, 4_200_001, 8_300_001));
}

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator unchanged; the counter is a plain thread-local that needs no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on; all blocks come from the system allocator.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

#[test]
fn scheduling_allocates_nothing_for_a_token() {
    for policy in [SchedulerPolicy::GuaranteedNoEvict, SchedulerPolicy::Balanced, SchedulerPolicy::MaxUtilization] {
        let mut bench = SchedulerBench::decoding(policy, 256).unwrap();
        let (mut allocated, mut generated) = (0, 0);
        for _ in 0..256 {
            let (cost, tokens) = bench.step(&allocations).unwrap();
            allocated += cost;
            generated += tokens;
        }
        assert_eq!(generated, 256 * 256);
        // A new block, once in 32 tokens, is told to the runner in a vector; tokens of a sequence are one vector that
        // doubles; a plan is two.
        assert!(allocated < generated as u64 / 16, "{allocated} allocations for {generated} tokens with {policy:?}");
    }
}

#[test]
fn a_long_prompt_is_found_with_few_allocations() {
    assert!(prefix_match(100_000, &allocations).unwrap() < 20, "the list of found blocks grows by doubling");
}

#[test]
fn equal_progress_gives_each_prompt_a_block_in_turn() {
    let limits = ExecutorLimits { num_blocks: 64, max_step_tokens: 24, max_seq_len_tokens: 80, ..limits() };
    let chunks = |chunking| {
        let plans: Arc<Mutex<Vec<StepPlan>>> = Arc::default();
        let recorder = Recorder { inner: FakeExecutor::new(limits.clone(), SEED), plans: Arc::clone(&plans) };
        let config = EngineConfig { chunking, ..EngineConfig::for_limits(&limits) };
        let mut engine = EngineCore::new(config, Box::new(recorder), None).unwrap();
        let tapes = [(1, 60), (2, 30), (3, 6)].map(|(first, len)| {
            let tape = Tape::default();
            let prompt = (0..len).map(|at| (first * 5 + at * at) % 26);
            engine.submit(request(prompt, 1), tape.sink(), 1).unwrap();
            tape
        });
        run(&mut engine);
        assert!(tapes.iter().all(|tape| tape.tokens().len() == 1));
        let plans = plans.lock().unwrap();
        let of = |plan: &StepPlan| plan.chunks.iter().map(|chunk| (chunk.seq.0, chunk.len)).collect::<Vec<_>>();
        plans.iter().map(of).collect::<Vec<_>>()
    };
    let one_by_one = chunks(ChunkingPolicy::FirstComeFirstServed);
    assert_eq!(one_by_one[..2], [vec![(1, 24)], vec![(1, 24)]]);
    let in_turn = chunks(ChunkingPolicy::EqualProgress);
    assert_eq!(in_turn[..2], [vec![(1, 8), (2, 8), (3, 6)], vec![(1, 12), (2, 12)]]);
}

#[test]
fn a_static_batch_ends_before_the_next_one_starts() {
    let config =
        EngineConfig { policy: SchedulerPolicy::StaticBatch, max_batch_size: 3, ..EngineConfig::for_limits(&limits()) };
    let plans: Arc<Mutex<Vec<StepPlan>>> = Arc::default();
    let recorder = Recorder { inner: FakeExecutor::new(limits(), SEED), plans: Arc::clone(&plans) };
    let mut engine = EngineCore::new(config, Box::new(recorder), None).unwrap();
    for number in 0..6 {
        engine.submit(request([number, 3, 4], 2 + number as usize), Tape::default().sink(), 1).unwrap();
    }
    run(&mut engine);
    let plans = plans.lock().unwrap();
    let steps = |seq: u64| {
        let has = |plan: &&StepPlan| plan.chunks.iter().any(|chunk| chunk.seq.0 == seq);
        let steps: Vec<_> = plans.iter().filter(has).map(|plan| plan.step).collect();
        (steps[0], steps[steps.len() - 1])
    };
    let (first, second): (Vec<_>, Vec<_>) = ((1..=3).map(steps).collect(), (4..=6).map(steps).collect());
    assert!(first.iter().all(|(start, _)| *start == 1) && second.iter().all(|(start, _)| *start == second[0].0));
    assert!(first.iter().map(|(_, end)| end).max() < second.iter().map(|(start, _)| start).min());
}

#[test]
fn who_was_preempted_is_not_charged_to_the_queue_again() {
    let policy = SchedulerPolicy::MaxUtilization;
    let config = EngineConfig { policy, max_queue_requests: Some(1), ..EngineConfig::for_limits(&limits()) };
    let mut engine = core(config, &limits());
    for number in 0..5 {
        engine.submit(request([number, 1, 2], 18), Tape::default().sink(), 1).unwrap();
        engine.step(2 + number as u64).unwrap();
    }
    let mut now = 10;
    while engine.stats().last_iteration.paused_requests == 0 {
        now += 1;
        engine.step(now).unwrap();
        assert!(now < 100, "five requests of 6 blocks each on 16 blocks");
    }
    engine.submit(request([9, 9, 9], 1), Tape::default().sink(), now).expect("the one place in the queue is free");
    assert!(engine.submit(request([9, 9, 8], 1), Tape::default().sink(), now).is_err());
    run(&mut engine);
}
