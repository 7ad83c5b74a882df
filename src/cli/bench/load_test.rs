//! Sends requests to an engine in this process and takes the times.

use super::sampling::{Choice, Sampler};
use crate::decode::StopCriteria;
use crate::engine::{Delta, Engine, EngineConfig, FinishReason, Request, RequestSink};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::runner::{DecodeTime, LoadedModel, LocalExecutor};
use crate::step::Executor;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// A load: equal requests, so many in flight at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadTest {
    pub(super) choice: Choice,
    pub(super) requests: usize,
    pub(super) concurrency: usize,
    pub(super) warmup: usize,
    pub(super) isl: usize,
    pub(super) osl: usize,
}

/// What the clock said.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) seconds: f64,
    pub(super) requests: Vec<RequestTimes>,
    /// Between consecutive tokens of one request, all requests.
    pub(super) gaps_ms: Vec<f64>,
    /// Of decode steps, as the device tells them; `None` where it does not.
    pub(super) decode_times: Option<Vec<DecodeTime>>,
}

/// One request, from its submission on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestTimes {
    pub(super) first_token_ms: f64,
    pub(super) last_token_ms: f64,
    pub(super) tokens: usize,
}

/// One request's end.
struct Done {
    times: Result<RequestTimes>,
    gaps_ms: Vec<f64>,
}

struct TimingSink {
    submitted: Instant,
    times: RequestTimes,
    gaps_ms: Vec<f64>,
    done: Sender<Done>,
}

impl RequestTimes {
    /// Notes `tokens` more tokens, `now_ms` after the submission.
    pub(super) fn add(&mut self, now_ms: f64, tokens: usize, gaps_ms: &mut Vec<f64>) {
        if self.tokens == 0 {
            self.first_token_ms = now_ms;
        } else {
            gaps_ms.push(now_ms - self.last_token_ms);
        }
        self.last_token_ms = now_ms;
        self.tokens += tokens;
    }

    /// Time per output token behind the first.
    pub(super) fn tpot_ms(&self) -> f64 {
        (self.last_token_ms - self.first_token_ms) / self.tokens.saturating_sub(1).max(1) as f64
    }
}

impl RequestSink for TimingSink {
    fn delta(&mut self, delta: Delta) {
        if !delta.tokens.is_empty() {
            let now_ms = self.submitted.elapsed().as_secs_f64() * 1e3;
            self.times.add(now_ms, delta.tokens.len(), &mut self.gaps_ms);
        }
        let Some(finish) = delta.finish else { return };
        let times = match (finish.reason, finish.error) {
            (FinishReason::Length, _) => Ok(self.times),
            (_, Some(error)) => Err(error),
            (reason, None) => Err(Error::internal(format!("a request ended early: {reason:?}"))),
        };
        // Nobody waits any more when another request has failed.
        let _ = self.done.send(Done { times, gaps_ms: std::mem::take(&mut self.gaps_ms) });
    }
}

/// Runs the warm-up and the load.
///
/// # Errors
/// When the engine refuses or fails a request.
pub(super) fn run_load_test(mut model: LoadedModel<LocalExecutor>, test: &LoadTest) -> Result<Measured> {
    let vocab_size = model.config.vocab_size;
    let told = model.executor.time_steps()?;
    let launch_lead = Some(Duration::from_millis(1));
    let config = EngineConfig { launch_lead, ..EngineConfig::for_limits(&model.executor.limits()) };
    let engine = Engine::start(config, Box::new(model.executor))?;
    let sampler = Sampler::new(test.choice, vocab_size)?;
    run_requests(&engine, test, &sampler, vocab_size, 0..test.warmup)?;
    tracing::info!("warmed up; {} requests, {} in flight", test.requests, test.concurrency);
    let mut measured = run_requests(&engine, test, &sampler, vocab_size, test.warmup..test.warmup + test.requests)?;
    // The executor, which goes with the engine, tells the times.
    drop(engine);
    measured.decode_times = told.map(|told| std::mem::take(&mut *told.lock()));
    Ok(measured)
}

fn run_requests(
    engine: &Engine,
    test: &LoadTest,
    sampler: &Sampler,
    vocab_size: usize,
    numbers: std::ops::Range<usize>,
) -> Result<Measured> {
    let (sender, receiver): (Sender<Done>, Receiver<Done>) = channel();
    let submit = |number: usize| {
        let sink = TimingSink {
            submitted: Instant::now(),
            times: RequestTimes::default(),
            gaps_ms: Vec::new(),
            done: sender.clone(),
        };
        engine.submit(request(test, sampler, vocab_size, number), Box::new(sink))
    };
    let start = Instant::now();
    let mut measured = Measured::default();
    let mut waiting = numbers.clone();
    for number in waiting.by_ref().take(test.concurrency) {
        submit(number)?;
    }
    while measured.requests.len() < numbers.len() {
        let done = receiver.recv().map_err(|_| Error::internal("the engine forgot a request"))?;
        measured.requests.push(done.times?);
        measured.gaps_ms.extend(done.gaps_ms);
        if let Some(number) = waiting.next() {
            submit(number)?;
        }
    }
    measured.seconds = start.elapsed().as_secs_f64();
    Ok(measured)
}

/// A prompt that no other shares a block with.
pub(super) fn prompt(number: usize, tokens: usize, vocab_size: usize) -> Vec<TokenId> {
    let mut state = number as u64 ^ 0x9E37_79B9_7F4A_7C15;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize % vocab_size) as TokenId
    };
    (0..tokens).map(|_| token()).collect()
}

fn request(test: &LoadTest, sampler: &Sampler, vocab_size: usize, number: usize) -> Request {
    Request {
        prompt: prompt(number, test.isl, vocab_size),
        sampling: sampler.params(number),
        stop: StopCriteria { max_tokens: test.osl, ..Default::default() },
        priority: 0,
        deadline_ns: None,
        cache_salt: number as u64 + 1,
        ..Request::default()
    }
}
