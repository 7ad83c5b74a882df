use std::sync::{Arc, Mutex};

use triton_trtllm::decode::StopCriteria;
use triton_trtllm::decode::beam::{BeamSearch, Hypothesis, Outlook};
use triton_trtllm::decode::sample::most_likely_next;
use triton_trtllm::engine::fake::{FakeExecutor, FakeModel};
use triton_trtllm::engine::{
    Delta, DeltaLogits, EngineConfig, EngineCore, Finish, FinishReason, Progress, Request, RequestSink, RequestStats,
};
use triton_trtllm::error::Result;
use triton_trtllm::ids::TokenId;
use triton_trtllm::step::{Executor, ExecutorLimits, StepOutput, StepPlan};

pub const SEED: u64 = 7;

/// What a request was told.
#[derive(Default)]
pub struct Record {
    pub tokens: Vec<TokenId>,
    pub log_probs: usize,
    pub logits: DeltaLogits,
    /// Of a beam search, the latest.
    pub beams: Vec<Hypothesis>,
    pub deltas: usize,
    /// Tokens of the last delta.
    pub last_tokens: usize,
    pub finish: Option<Finish>,
    pub stats: RequestStats,
    pub gone: bool,
    /// The client wants no more of this sequence.
    pub unwanted: bool,
    /// Sequences 1 and up of the request; the record itself is sequence 0.
    pub siblings: Vec<Record>,
}

impl Record {
    fn hear(&mut self, delta: Delta) {
        if self.finish.is_some() {
            // The engine survives panics of sinks, so a wrong end must be seen in the record.
            self.deltas = usize::MAX / 2;
        }
        self.deltas += 1;
        self.last_tokens = delta.tokens.len();
        self.log_probs += delta.log_probs.len();
        if let Some(beams) = delta.beams {
            self.beams = beams.to_vec();
        }
        if let Some(logits) = delta.logits {
            self.logits.context.extend(logits.context);
            self.logits.generation.extend(logits.generation);
            self.logits.prompt_log_probs.extend(logits.prompt_log_probs);
        }
        self.tokens.extend(delta.tokens);
        self.stats = delta.stats;
        self.finish = delta.finish;
    }
}

/// A sink that keeps everything, and fails the test when it hears anything after the end.
#[derive(Clone, Default)]
pub struct Tape(pub Arc<Mutex<Record>>);

impl Tape {
    pub fn sink(&self) -> Box<dyn RequestSink> {
        Box::new(self.clone())
    }

    pub fn tokens(&self) -> Vec<TokenId> {
        self.0.lock().unwrap().tokens.clone()
    }

    pub fn reason(&self) -> Option<FinishReason> {
        self.0.lock().unwrap().finish.as_ref().map(|finish| finish.reason)
    }

    pub fn error(&self) -> String {
        let record = self.0.lock().unwrap();
        record.finish.as_ref().and_then(|finish| finish.error.as_ref()).map_or(String::new(), |e| e.to_string())
    }

    pub fn stats(&self) -> RequestStats {
        self.0.lock().unwrap().stats
    }

    /// Whether all of `count` sequences have ended.
    pub fn has_ended(&self, count: usize) -> bool {
        let record = self.0.lock().unwrap();
        let ended = |record: &Record| record.finish.is_some();
        ended(&record) && record.siblings.iter().filter(|record| ended(record)).count() == count - 1
    }

    pub fn hang_up(&self) {
        self.0.lock().unwrap().gone = true;
    }
}

impl RequestSink for Tape {
    fn delta(&mut self, delta: Delta) {
        let mut record = self.0.lock().unwrap();
        match delta.sequence_index.checked_sub(1) {
            None => record.hear(delta),
            Some(at) => {
                while record.siblings.len() <= at {
                    record.siblings.push(Record::default());
                }
                record.siblings[at].hear(delta);
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0.lock().unwrap().gone
    }

    fn is_stopped(&self, sequence_index: usize) -> bool {
        let record = self.0.lock().unwrap();
        match sequence_index.checked_sub(1) {
            None => record.unwanted,
            Some(at) => record.siblings.get(at).is_some_and(|sibling| sibling.unwanted),
        }
    }
}

/// A small executor: 16 blocks of 4, 32 tokens and 8 sequences a step, 26 tokens.
pub fn limits() -> ExecutorLimits {
    ExecutorLimits {
        num_blocks: 16,
        block_size_tokens: 4,
        max_step_tokens: 32,
        max_step_sequences: 8,
        max_step_rows: 8,
        max_seq_len_tokens: 48,
        vocab_size: 26,
        pipeline_depth: 1,
    }
}

pub fn model(limits: &ExecutorLimits) -> FakeModel {
    FakeModel { vocab_size: limits.vocab_size, seed: SEED }
}

pub fn core(config: EngineConfig, limits: &ExecutorLimits) -> EngineCore {
    EngineCore::new(config, Box::new(FakeExecutor::new(limits.clone(), SEED)), None).unwrap()
}

pub fn request(prompt: impl IntoIterator<Item = TokenId>, max_tokens: usize) -> Request {
    Request {
        prompt: prompt.into_iter().collect(),
        stop: StopCriteria { max_tokens, ..StopCriteria::default() },
        ..Request::default()
    }
}

/// The beams of a request without an engine.
pub fn search_alone(model: FakeModel, request: &Request) -> Vec<Hypothesis> {
    let params = request.beam.clone().unwrap();
    let mut search = BeamSearch::new(params, request.stop.clone(), request.prompt.clone());
    loop {
        let look = |hypothesis: &Hypothesis| {
            let tokens = [&request.prompt[..], &hypothesis.tokens].concat();
            let mut row = model.logits(&tokens);
            let logits = request.outputs.generation_logits.then(|| row.as_slice().into());
            let (sampling, count) = (&request.sampling, search.num_candidates());
            // Others may go on.
            let top = most_likely_next(&mut row, sampling, &tokens, request.prompt.len(), count).unwrap_or_default();
            Outlook { top, logits }
        };
        let outlooks: Vec<_> = search.live().iter().map(look).collect();
        if !search.advance(&outlooks).unwrap() {
            return search.best();
        }
    }
}

/// Steps until nothing is left to do, checking every invariant.
pub fn run(core: &mut EngineCore) {
    for now in 1.. {
        core.check().unwrap();
        assert!(now < 10_000, "the engine does not come to an end");
        if core.step(now).unwrap() == Progress::Idle {
            break;
        }
    }
    core.check().unwrap();
    assert_eq!(core.stats().last_iteration.kv.used_blocks, 0, "an idle engine holds blocks");
}

/// Submits and runs to the end.
pub fn serve(core: &mut EngineCore, request: Request) -> Tape {
    let tape = Tape::default();
    core.submit(request, tape.sink(), 1).unwrap();
    run(core);
    tape
}

/// Passes plans through and writes them down.
pub struct Recorder {
    pub inner: FakeExecutor,
    pub plans: Arc<Mutex<Vec<StepPlan>>>,
}

impl Executor for Recorder {
    fn limits(&self) -> ExecutorLimits {
        self.inner.limits()
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        self.plans.lock().unwrap().push(plan.clone());
        self.inner.launch(plan)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.inner.collect()
    }
}

/// xorshift64*: small, seeded, good enough to choose operations.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 33) as usize) % bound
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}
