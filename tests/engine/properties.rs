//! Random operation with a two-token vocabulary and few blocks: whatever happens, everybody ends once, with the tokens
//! that he would have got alone.

use std::time::Duration;

use triton_trtllm::decode::beam::BeamParams;
use triton_trtllm::decode::draft::NGramOptions;
use triton_trtllm::decode::rank::log_prob;
use triton_trtllm::decode::{SamplingParams, StopCriteria};
use triton_trtllm::engine::fake::{FakeDisk, FakeExecutor, FakeModel};
use triton_trtllm::engine::{
    ChunkingPolicy, EngineConfig, EngineCore, FinishReason, Keep, OutputOptions, Progress, Request, Retention,
    RetentionRange, SchedulerPolicy, Tenant,
};
use triton_trtllm::error::ErrorKind;
use triton_trtllm::ids::{RequestId, TokenId};
use triton_trtllm::step::{ExecutorLimits, WindowPool};

use crate::common::{Record, Rng, SEED, Tape, search_alone};

const MAX_BEAM_WIDTH: usize = 4;

const OPERATIONS_PER_WORLD: usize = 1500;

/// Steps that one request may need at most while it runs alone or in a crowd: far above what happens, far below "hangs".
const PATIENCE: usize = 20_000;

struct Live {
    id: RequestId,
    request: Request,
    tape: Tape,
    /// Somebody asked for its end, or its deadline may pass.
    may_be_cut: bool,
}

struct World {
    core: EngineCore,
    config: EngineConfig,
    limits: ExecutorLimits,
    model: FakeModel,
    rng: Rng,
    live: Vec<Live>,
    now: u64,
    outcomes: Outcomes,
}

#[derive(Default, Debug)]
struct Outcomes {
    finished: usize,
    cut: usize,
    refused: usize,
    preemptions: usize,
    cached_tokens: usize,
    siblings: usize,
    searches: usize,
    logits: usize,
    onboarded: u64,
    failed_transfers: u64,
    drafts: usize,
    accepted_drafts: usize,
}

fn random_limits(rng: &mut Rng, depth: usize) -> ExecutorLimits {
    let max_step_sequences = 1 + rng.below(4);
    ExecutorLimits {
        num_blocks: 3 + rng.below(12),
        block_size_tokens: 2 << rng.below(2),
        max_step_tokens: 4 + rng.below(24),
        max_step_sequences,
        max_step_rows: max_step_sequences + rng.below(6),
        max_seq_len_tokens: 40,
        vocab_size: 2,
        pipeline_depth: depth,
    }
}

fn random_retention(rng: &mut Rng) -> Retention {
    let mut keep = || Keep {
        priority: [0, 10, 35, 80, 100][rng.below(5)],
        duration_ns: rng.chance(50).then(|| 1 + rng.below(30) as u64),
    };
    let (first, second, decode) = (keep(), keep(), keep());
    let ranges = vec![
        RetentionRange { start: 0, end: Some(rng.below(8)), keep: first },
        RetentionRange { start: rng.below(8), end: None, keep: second },
    ];
    Retention { ranges, decode }
}

/// One or two pools, each just large enough for one sequence or larger.
fn random_windows(rng: &mut Rng, limits: &ExecutorLimits) -> Vec<WindowPool> {
    let size = limits.block_size_tokens;
    let pool = |rng: &mut Rng| {
        let mut pool = WindowPool {
            num_blocks: 0,
            window_tokens: 1 + rng.below(16),
            sink_tokens: if rng.chance(30) { rng.below(6) } else { 0 },
        };
        let in_flight = (limits.pipeline_depth * limits.max_step_tokens).div_ceil(size);
        pool.num_blocks = (pool.sequence_blocks(size) + in_flight + rng.below(8)).min(limits.num_blocks);
        pool
    };
    (0..1 + rng.below(2)).map(|_| pool(rng)).collect()
}

impl World {
    fn new(policy: SchedulerPolicy, chunked: bool, depth: usize, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let limits = random_limits(&mut rng, depth);
        let config = EngineConfig {
            policy,
            chunked_context: chunked,
            chunking: [ChunkingPolicy::FirstComeFirstServed, ChunkingPolicy::EqualProgress][rng.below(2)],
            kv_reuse: !rng.chance(15),
            max_queue_requests: rng.chance(20).then_some(3),
            max_queue_tokens: rng.chance(10).then_some(40),
            priority_ageing: rng.chance(70).then_some(Duration::from_nanos(5)),
            max_step_slowdown: (chunked && rng.chance(30)).then_some(1.5),
            ngram_drafts: rng
                .chance(40)
                .then(|| NGramOptions { max_draft_len: 1 + rng.below(6), max_matching_ngram_size: 1 + rng.below(4) }),
            max_beam_width: MAX_BEAM_WIDTH,
            kv_event_buffer: if rng.chance(30) { 16 } else { 0 },
            ..EngineConfig::for_limits(&limits)
        };
        let mut executor = FakeExecutor::new(limits.clone(), SEED ^ seed);
        let windows = if rng.chance(45) { random_windows(&mut rng, &limits) } else { Vec::new() };
        executor = executor.with_windows(&windows);
        if rng.chance(60) {
            let failing = if rng.chance(40) { 20 } else { 0 };
            executor = executor.with_host_blocks(1 + rng.below(20), failing, rng.below(4));
            let blocks: Vec<_> = windows.iter().map(|_| rng.below(20)).collect();
            executor = executor.with_window_host_blocks(&blocks);
            if rng.chance(40) {
                executor = executor.with_disk(&FakeDisk::new(1 + rng.below(20)), failing, rng.below(4));
            }
        }
        let model = executor.model();
        Self {
            core: EngineCore::new(config.clone(), Box::new(executor), None).unwrap(),
            model,
            config,
            limits,
            rng,
            live: Vec::new(),
            now: 1,
            outcomes: Outcomes::default(),
        }
    }

    fn act(&mut self) {
        match self.rng.below(100) {
            0..25 if self.live.len() < 12 => self.submit(),
            25..28 if !self.live.is_empty() => {
                let at = self.rng.below(self.live.len());
                self.live[at].may_be_cut = true;
                self.core.cancel(self.live[at].id);
            }
            28..31 if !self.live.is_empty() => {
                let at = self.rng.below(self.live.len());
                self.live[at].may_be_cut = true;
                self.live[at].tape.hang_up();
            }
            31 if self.rng.chance(20) => self.core.reset_prefix_cache(),
            _ => {
                self.now += 1;
                self.core.step(self.now).unwrap();
            }
        }
        self.core.check().unwrap();
        self.bury();
    }

    fn submit(&mut self) {
        let request = self.random_request();
        let tape = Tape::default();
        let room = self.config.max_seq_len - request.prompt.len();
        let slots = request.prompt.len() + request.stop.max_tokens.min(room) - 1;
        let never_fits = slots.div_ceil(self.limits.block_size_tokens) > self.limits.num_blocks;
        let too_long = request.prompt.len() > self.config.longest_prompt();
        match self.core.submit(request.clone(), tape.sink(), self.now) {
            Ok(id) => {
                assert!(!never_fits && !too_long, "accepted what can never run: {request:?}");
                let may_be_cut = request.deadline_ns.is_some();
                self.live.push(Live { id, request, tape, may_be_cut });
            }
            Err(error) if error.kind() == ErrorKind::InvalidArg => {
                assert!(never_fits || too_long, "{error}");
                self.outcomes.refused += 1;
            }
            Err(error) => {
                let has_limit = self.config.max_queue_requests.is_some() || self.config.max_queue_tokens.is_some();
                assert!(has_limit && error.kind() == ErrorKind::Unavailable, "{error}");
                self.outcomes.refused += 1;
            }
        }
    }

    fn random_request(&mut self) -> Request {
        let request = self.random_sampling_request();
        if !self.rng.chance(12) {
            return request;
        }
        let width = 1 + self.rng.below(MAX_BEAM_WIDTH);
        let beam = BeamParams {
            width,
            widths: if self.rng.chance(20) { vec![width, 1, width] } else { Vec::new() },
            len_penalty: [0.0, 1.0, 2.0][self.rng.below(3)],
            early_stopping: (self.rng.below(3) as i32).into(),
            diversity_rate: if self.rng.chance(20) { 0.5 } else { 0.0 },
            num_return: 1 + self.rng.below(width),
            stream: self.rng.chance(30),
        };
        Request { beam: Some(beam), num_sequences: 1, draft: Vec::new(), ..request }
    }

    fn random_sampling_request(&mut self) -> Request {
        let rng = &mut self.rng;
        let long = rng.chance(30);
        let len = 1 + rng.below(if long { 30 } else { 10 });
        // Few different beginnings, so that prefixes are shared.
        let (start, period) = (rng.below(2), 1 + rng.below(3));
        let mut prompt: Vec<_> = (0..len).map(|at| ((at / period + start) % 2) as TokenId).collect();
        if rng.chance(40) {
            let last = prompt.len() - 1;
            prompt[last] ^= 1;
        }
        let end_ids: Vec<TokenId> = if rng.chance(40) { vec![1] } else { vec![] };
        let mut random_word = |max: usize| (0..1 + rng.below(max)).map(|_| rng.below(2) as TokenId).collect::<Vec<_>>();
        let (word, other) = (random_word(6), random_word(9));
        let min_tokens = if rng.chance(50) { rng.below(8) as u32 } else { 0 };
        Request {
            prompt,
            prompt_table: None,
            sampling: SamplingParams {
                min_tokens,
                end_ids: end_ids.clone(),
                seed: rng.next() % 3,
                log_probs: rng.chance(20),
                ..SamplingParams::default()
            },
            stop: StopCriteria {
                max_tokens: 1 + rng.below(20),
                end_ids,
                stop_words: if rng.chance(30) { vec![word, other] } else { vec![] },
            },
            priority: rng.below(3) as i32 - 1,
            deadline_ns: rng.chance(8).then(|| self.now + 1 + rng.below(20) as u64),
            cache_salt: u64::from(rng.chance(15)),
            lora_id: rng.chance(15).then_some(1),
            extra_ids: if rng.chance(10) { (0..len).map(|at| (at % 5 == 2) as u64).collect() } else { vec![] },
            retention: rng.chance(25).then(|| random_retention(rng)),
            num_sequences: 1 + if rng.chance(15) { rng.below(self.config.max_batch_size) } else { 0 },
            outputs: OutputOptions {
                context_logits: rng.chance(10),
                generation_logits: rng.chance(10),
                prompt_log_probs: rng.chance(10),
            },
            draft: if rng.chance(20) { (0..rng.below(12)).map(|_| rng.below(2) as TokenId).collect() } else { vec![] },
            tenant: Tenant { id: rng.below(3) as u64, weight: 1 + rng.below(3) as u32 },
            ..Request::default()
        }
    }

    /// Looks at all requests that have ended.
    fn bury(&mut self) {
        let (ended, live): (Vec<_>, Vec<_>) = std::mem::take(&mut self.live)
            .into_iter()
            .partition(|live| live.tape.has_ended(live.request.num_sequences));
        self.live = live;
        for live in ended {
            self.judge(&live);
        }
    }

    fn judge(&mut self, live: &Live) {
        let record = live.tape.0.lock().unwrap();
        if live.request.beam.is_some() {
            return self.judge_search(live, &record);
        }
        self.judge_sequence(live, 0, &record);
        for (at, sibling) in record.siblings.iter().enumerate() {
            self.judge_sequence(live, at as u64 + 1, sibling);
        }
    }

    fn judge_search(&mut self, live: &Live, record: &Record) {
        let request = &live.request;
        let mut alone = request.clone();
        alone.stop.max_tokens = alone.stop.max_tokens.min(self.config.max_seq_len - request.prompt.len());
        assert!(record.deltas <= alone.stop.max_tokens, "more than one end: {request:?}");
        assert_eq!(record.stats.generated_tokens, record.beams.iter().map(|beam| beam.tokens.len()).sum::<usize>());
        self.outcomes.preemptions += record.stats.preemptions;
        self.outcomes.cached_tokens += record.stats.cached_tokens;
        if matches!(record.finish.as_ref().unwrap().reason, FinishReason::Cancelled | FinishReason::TimedOut) {
            assert!(live.may_be_cut, "without a reason: {request:?}");
            self.outcomes.cut += 1;
            return;
        }
        assert_eq!(record.beams, search_alone(self.model, &alone), "{request:?}");
        let context: Vec<_> = match request.outputs.context_logits {
            true => (1..=request.prompt.len()).map(|len| self.model.logits(&request.prompt[..len])).collect(),
            false => Vec::new(),
        };
        assert_eq!(record.logits.context, context, "{request:?}");
        self.outcomes.finished += 1;
        self.outcomes.searches += 1;
    }

    /// Every row that was asked for came once, in order, and as far as the sequence got.
    fn judge_logits(&mut self, request: &Request, record: &Record) {
        let (outputs, prompt_len) = (request.outputs, request.prompt.len());
        let tokens: Vec<_> = request.prompt.iter().chain(&record.tokens).copied().collect();
        let after = |len: usize| self.model.logits(&tokens[..len]);
        let is_complete = !record.tokens.is_empty();
        let rows = |wanted: bool, got: usize, all: usize| {
            assert!(
                if wanted && is_complete { got == all } else { got <= if wanted { all } else { 0 } },
                "{request:?}"
            );
            0..got
        };
        for at in rows(outputs.context_logits, record.logits.context.len(), prompt_len) {
            assert_eq!(record.logits.context[at], after(at + 1), "{request:?}");
        }
        for at in rows(outputs.generation_logits, record.logits.generation.len(), record.tokens.len()) {
            assert_eq!(record.logits.generation[at], after(prompt_len + at), "{request:?}");
        }
        for at in rows(outputs.prompt_log_probs, record.logits.prompt_log_probs.len(), prompt_len - 1) {
            assert_eq!(record.logits.prompt_log_probs[at], log_prob(&after(at + 1), tokens[at + 1]), "{request:?}");
        }
        self.outcomes.logits += record.logits.context.len() + record.logits.generation.len();
    }

    fn judge_sequence(&mut self, live: &Live, index: u64, record: &Record) {
        let mut stop = live.request.stop.clone();
        stop.max_tokens = stop.max_tokens.min(self.config.max_seq_len - live.request.prompt.len());
        let mut sampling = live.request.sampling.clone();
        sampling.seed += index;
        let (expected, reason) = self.model.generate(&live.request.prompt, &sampling, &stop);
        let finish = record.finish.as_ref().unwrap();
        let inspected = expected.len() + live.request.prompt.len();
        let spare = if live.request.outputs == OutputOptions::default() { expected.len() } else { inspected };
        assert!(record.deltas <= spare + 1, "more than one end: {:?}", live.request);
        self.judge_logits(&live.request, record);
        assert_eq!(record.stats.generated_tokens, record.tokens.len());
        assert_eq!(record.log_probs, if live.request.sampling.log_probs { record.tokens.len() } else { 0 });
        assert!(record.stats.preemptions <= 3, "preempted {} times", record.stats.preemptions);
        assert!(record.stats.cached_tokens < live.request.prompt.len(), "the last prompt token is always computed");
        assert!(record.stats.accepted_draft_tokens <= record.stats.draft_tokens.min(record.tokens.len()));
        self.outcomes.drafts += record.stats.draft_tokens;
        self.outcomes.accepted_drafts += record.stats.accepted_draft_tokens;
        self.outcomes.preemptions += record.stats.preemptions;
        self.outcomes.cached_tokens += record.stats.cached_tokens;
        self.outcomes.siblings += usize::from(index > 0);
        if matches!(finish.reason, FinishReason::Cancelled | FinishReason::TimedOut) {
            assert!(live.may_be_cut, "{:?} without a reason: {:?}", finish.reason, live.request);
            assert!(expected.starts_with(&record.tokens), "{:?} is not the beginning of {expected:?}", record.tokens);
            self.outcomes.cut += 1;
        } else {
            assert_eq!((&record.tokens, finish.reason), (&expected, reason), "{:?}", live.request);
            self.outcomes.finished += 1;
        }
    }

    fn finish(mut self) -> Outcomes {
        for _ in 0..PATIENCE {
            self.now += 1;
            let progress = self.core.step(self.now).unwrap();
            self.core.check().unwrap();
            self.bury();
            if progress == Progress::Idle {
                break;
            }
        }
        assert!(self.live.is_empty(), "{} requests never end", self.live.len());
        let stats = self.core.stats();
        let tiers = stats.last_iteration.tiers;
        self.outcomes.onboarded = tiers.onboarded_blocks;
        self.outcomes.failed_transfers = tiers.failed_transfers;
        assert_eq!(stats.last_iteration.kv.used_blocks, 0);
        assert_eq!(stats.totals.requests_accepted, stats.totals.requests_finished);
        self.outcomes
    }
}

/// 240 worlds, 360,000 operations.
fn storm(policy: SchedulerPolicy) -> Outcomes {
    let mut sum = Outcomes::default();
    for (chunked, depth) in [(true, 1), (true, 2), (false, 1), (false, 2)] {
        for seed in 1..=60 {
            let mut world =
                World::new(policy, chunked, depth, 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed + 100 * depth as u64));
            for _ in 0..OPERATIONS_PER_WORLD {
                world.act();
            }
            let outcomes = world.finish();
            sum.finished += outcomes.finished;
            sum.cut += outcomes.cut;
            sum.refused += outcomes.refused;
            sum.preemptions += outcomes.preemptions;
            sum.cached_tokens += outcomes.cached_tokens;
            sum.siblings += outcomes.siblings;
            sum.searches += outcomes.searches;
            sum.logits += outcomes.logits;
            sum.onboarded += outcomes.onboarded;
            sum.failed_transfers += outcomes.failed_transfers;
            sum.drafts += outcomes.drafts;
            sum.accepted_drafts += outcomes.accepted_drafts;
        }
    }
    assert!(
        sum.logits > 1000
            && sum.finished > 1000
            && sum.cut > 100
            && sum.refused > 10
            && sum.cached_tokens > 1000
            && sum.siblings > 500
            && sum.searches > 500,
        "{sum:?}"
    );
    assert!(sum.onboarded > 500 && sum.failed_transfers > 100, "{sum:?}");
    sum
}

#[test]
fn guaranteed_no_evict_gives_each_request_its_own_tokens() {
    assert_eq!(storm(SchedulerPolicy::GuaranteedNoEvict).preemptions, 0);
}

#[test]
fn balanced_gives_each_request_its_own_tokens() {
    storm(SchedulerPolicy::Balanced);
}

#[test]
fn max_utilization_gives_each_request_its_own_tokens() {
    assert!(storm(SchedulerPolicy::MaxUtilization).preemptions > 100);
}

#[test]
fn static_batches_give_each_request_its_own_tokens() {
    assert_eq!(storm(SchedulerPolicy::StaticBatch).preemptions, 0);
}
