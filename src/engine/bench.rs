//! What scheduling costs, without an executor. Pure: the clock, or any other counter, comes in as a function.

use super::config::{EngineConfig, SchedulerPolicy};
use super::request::Request;
use super::scheduler::Scheduler;
use super::sequence::SeqDelta;
use crate::decode::StopCriteria;
use crate::error::Result;
use crate::ids::TokenId;
use crate::step::{ExecutorLimits, SampledRow, SampledToken, StepOutput};

const BLOCK_SIZE_TOKENS: usize = 32;
const PROMPT_TOKENS: usize = 64;
const MAX_SEQ_LEN_TOKENS: usize = 4096;

/// Sequences that generate, all of them in every step.
pub struct SchedulerBench {
    scheduler: Scheduler,
    deltas: Vec<SeqDelta>,
    now_ns: u64,
}

impl SchedulerBench {
    /// `running` sequences with different prompts, past their prefill.
    ///
    /// # Errors
    /// `Internal` when the scheduler does not take its own output: a bug.
    pub fn decoding(policy: SchedulerPolicy, running: usize) -> Result<Self> {
        let limits = limits(running, running * MAX_SEQ_LEN_TOKENS / BLOCK_SIZE_TOKENS);
        let config = EngineConfig { policy, ..EngineConfig::for_limits(&limits) };
        let mut bench = Self { scheduler: Scheduler::new(config, &limits, 0, None), deltas: Vec::new(), now_ns: 1 };
        for number in 0..running {
            bench.scheduler.add(request(number, PROMPT_TOKENS, MAX_SEQ_LEN_TOKENS), number as u32, 1);
        }
        while bench.step(&|| 0)?.1 < running {}
        Ok(bench)
    }

    /// As [`SchedulerBench::decoding`], but outputs are `output_tokens` long in the mean, three times as many sequences
    /// come, and memory for a third of them is there: sequences end and start in most steps.
    ///
    /// # Errors
    /// As [`SchedulerBench::decoding`].
    pub fn churning(policy: SchedulerPolicy, running: usize, output_tokens: usize) -> Result<Self> {
        let whole = PROMPT_TOKENS + output_tokens;
        let limits = limits(2 * running, running * whole.div_ceil(BLOCK_SIZE_TOKENS));
        let config = EngineConfig { policy, ..EngineConfig::for_limits(&limits) };
        let mut bench = Self { scheduler: Scheduler::new(config, &limits, 0, None), deltas: Vec::new(), now_ns: 1 };
        for number in 0..3 * running {
            // Ends are spread over time.
            let tokens = 1 + (number * 7919) % (2 * output_tokens);
            bench.scheduler.add(request(number, PROMPT_TOKENS, tokens), number as u32, 1);
        }
        for _ in 0..output_tokens / 4 {
            bench.step(&|| 0)?;
        }
        Ok(bench)
    }

    /// One `schedule` and `update`: how far `counter` went during the two, and how many tokens were generated.
    ///
    /// # Errors
    /// As [`SchedulerBench::decoding`].
    pub fn step(&mut self, counter: &dyn Fn() -> u64) -> Result<(u64, usize)> {
        self.now_ns += 1;
        let start = counter();
        let plan = self.scheduler.schedule(self.now_ns);
        let scheduled = counter();
        let tokens = vec![SampledToken { id: (self.now_ns % 1000) as TokenId, log_prob: None }];
        let sampled = plan.chunks.iter().filter(|chunk| chunk.sample);
        let row = |seq| SampledRow { seq, tokens: tokens.clone(), top: Vec::new(), error: None };
        let rows = sampled.map(|chunk| row(chunk.seq)).collect();
        let output = StepOutput { step: plan.step, rows, ..StepOutput::default() };
        let resumed = counter();
        self.scheduler.update(&plan, &output, self.now_ns, &mut self.deltas)?;
        let cost = scheduled - start + counter() - resumed;
        let generated = self.deltas.drain(..).map(|delta| delta.accepted).sum();
        Ok((cost, generated))
    }
}

/// How far `counter` goes while the prefix of a prompt is looked up whose blocks are all cached.
///
/// # Errors
/// `Internal` when the prompt is not found: a bug.
pub fn prefix_match(prompt_tokens: usize, counter: &dyn Fn() -> u64) -> Result<u64> {
    let mut limits = limits(1, 2 * prompt_tokens.div_ceil(BLOCK_SIZE_TOKENS));
    (limits.max_step_tokens, limits.max_seq_len_tokens) = (prompt_tokens, prompt_tokens + 2);
    let mut scheduler = Scheduler::new(EngineConfig::for_limits(&limits), &limits, 0, None);
    scheduler.add(request(0, prompt_tokens, 1), 0, 1);
    let mut bench = SchedulerBench { scheduler, deltas: Vec::new(), now_ns: 1 };
    while bench.step(&|| 0)?.1 == 0 {}
    let again = request(0, prompt_tokens, 1).prompt;
    let start = counter();
    let found = bench.scheduler.kv().find(&again, &[], Default::default());
    let end = counter();
    if found.num_tokens(BLOCK_SIZE_TOKENS) + 1 != prompt_tokens {
        return Err(crate::error::Error::internal("the prompt that was computed last is not cached"));
    }
    Ok(end - start)
}

fn limits(running: usize, num_blocks: usize) -> ExecutorLimits {
    ExecutorLimits {
        num_blocks,
        block_size_tokens: BLOCK_SIZE_TOKENS,
        max_step_tokens: 8192.max(running),
        max_step_sequences: running,
        max_step_rows: running,
        max_seq_len_tokens: MAX_SEQ_LEN_TOKENS,
        vocab_size: 1 << 20,
        pipeline_depth: 1,
    }
}

fn request(number: usize, prompt_tokens: usize, max_tokens: usize) -> Request {
    let prompt = (0..prompt_tokens).map(|at| ((at * 31 + number * 7919) % (1 << 20)) as TokenId).collect();
    Request { prompt, stop: StopCriteria { max_tokens, ..StopCriteria::default() }, ..Request::default() }
}
