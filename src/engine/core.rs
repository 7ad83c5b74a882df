//! The body of the engine's loop: requests in, plans down, outputs up, deltas out. A plain object that tests drive
//! without a thread.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;

use super::config::EngineConfig;
use super::gate::{Gate, failed_request};
use super::request::{Delta, Finish, FinishReason, Request, RequestSink, RequestStats};
use super::scheduler::{PlanStats, Scheduler};
use super::sequence::SeqDelta;
use super::stats::{EngineStats, EngineTotals, IterationStats, KvStats};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{RequestId, SeqId};
use crate::step::{Executor, ExecutorLimits, StepPlan};

/// Called on the engine thread after every step, and when the engine goes idle otherwise; it must not block.
pub type IterationHook = Box<dyn FnMut(&IterationStats) + Send>;

/// What a call of [`EngineCore::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    Working,
    /// Nothing to do until a request is submitted.
    Idle,
}

/// A request that the gate has admitted, on its way to the engine.
pub(super) struct Submission {
    pub id: RequestId,
    pub request: Request,
    pub sink: FinalSink,
    pub arrival_ns: u64,
}

/// The engine without its thread.
pub struct EngineCore {
    gate: Arc<Gate>,
    board: Arc<Mutex<EngineStats>>,
    executor: Box<dyn Executor>,
    limits: ExecutorLimits,
    max_batch_size: usize,
    scheduler: Scheduler,
    clients: BTreeMap<SeqId, Client>,
    in_flight: VecDeque<StepPlan>,
    iteration: u64,
    totals: EngineTotals,
    on_iteration: Option<IterationHook>,
    /// Whether a request has ended since statistics were published.
    unpublished: bool,
}

struct Client {
    request: RequestId,
    sink: FinalSink,
    /// Whether it counts as queued.
    queued: bool,
}

impl EngineCore {
    /// # Errors
    /// `InvalidArg` when `config` asks for more than the executor can hold.
    pub fn new(config: EngineConfig, executor: Box<dyn Executor>, on_iteration: Option<IterationHook>) -> Result<Self> {
        let limits = executor.limits();
        config.validate(&limits)?;
        let mut core = Self {
            gate: Arc::new(Gate::new(config.clone(), limits.clone())),
            board: Arc::default(),
            scheduler: Scheduler::new(config.clone(), &limits),
            executor,
            max_batch_size: config.max_batch_size,
            limits,
            clients: BTreeMap::new(),
            in_flight: VecDeque::new(),
            iteration: 0,
            totals: EngineTotals::default(),
            on_iteration: None,
            unpublished: false,
        };
        core.publish(PlanStats::default());
        core.on_iteration = on_iteration;
        Ok(core)
    }

    /// Accepts a request; its tokens go to `sink` in later steps.
    ///
    /// # Errors
    /// `InvalidArg` for a request that cannot be served, `Unavailable` when the queue is full or the engine has failed.
    pub fn submit(&mut self, request: Request, sink: Box<dyn RequestSink>, now_ns: u64) -> Result<RequestId> {
        let id = self.gate.admit([&request].into_iter())?[0];
        self.accept(Submission { id, request, sink: FinalSink::new(sink), arrival_ns: now_ns });
        Ok(id)
    }

    /// Ends a request with what it has generated; unknown ids are no error, since requests end by themselves.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(seq) = self.clients.iter().find(|(_, client)| client.request == id).map(|(seq, _)| *seq) {
            self.end(seq, FinishReason::Cancelled, None);
            self.settle();
        }
    }

    /// One turn: ends the cancelled and the late, launches a step if there is one, collects the oldest if the pipeline
    /// is full or nothing else is left to do.
    ///
    /// # Errors
    /// The failure of the executor, after every request has been answered; and again at each later call.
    pub fn step(&mut self, now_ns: u64) -> Result<Progress> {
        self.health()?;
        match catch_unwind(AssertUnwindSafe(|| self.turn(now_ns))) {
            Ok(Ok(progress)) => Ok(progress),
            Ok(Err(error)) => Err(self.fail(error)),
            Err(panic) => Err(self.fail(Error::internal(panic_text(&*panic)))),
        }
    }

    /// Whether no request is left and no step is in flight.
    pub fn is_idle(&self) -> bool {
        self.health().is_err() || (self.scheduler.is_empty() && self.in_flight.is_empty())
    }

    /// `Ok`, or why the engine does not work any more.
    ///
    /// # Errors
    /// The failure of the executor.
    pub fn health(&self) -> Result<()> {
        self.gate.health()
    }

    pub fn stats(&self) -> EngineStats {
        *self.board.lock()
    }

    /// Ends every request with `error`.
    pub fn abort(&mut self, error: &Error) {
        for seq in self.clients.keys().copied().collect::<Vec<_>>() {
            self.end(seq, FinishReason::Error, Some(error.clone()));
        }
        self.settle();
    }

    /// Compares all that is known of blocks, tables, sequences and requests.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.scheduler.check()?;
        if self.scheduler.active() != self.clients.len() {
            return Err(format!("{} sequences, {} clients", self.scheduler.active(), self.clients.len()));
        }
        Ok(())
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    pub(super) fn board(&self) -> Arc<Mutex<EngineStats>> {
        self.board.clone()
    }

    pub(super) fn accept(&mut self, submission: Submission) {
        let Submission { id, request, mut sink, arrival_ns } = submission;
        if let Err(error) = self.health() {
            self.gate.leave_queue();
            sink.finish(FinishReason::Error, Some(error), RequestStats::default());
            return;
        }
        self.totals.requests_accepted += 1;
        self.totals.prompt_tokens += request.prompt.len() as u64;
        let seq = self.scheduler.add(request, arrival_ns);
        self.clients.insert(seq, Client { request: id, sink, queued: true });
    }

    fn turn(&mut self, now_ns: u64) -> Result<Progress> {
        self.end_unwanted(now_ns);
        let launched = self.in_flight.len() < self.limits.pipeline_depth && self.launch(now_ns)?;
        if !launched && self.in_flight.is_empty() && !self.scheduler.is_empty() {
            let waiting = self.scheduler.active();
            return Err(Error::internal(format!("{waiting} requests wait, none runs and none can start")));
        }
        if !launched || self.in_flight.len() == self.limits.pipeline_depth {
            self.collect(now_ns)?;
        }
        self.settle();
        Ok(if self.is_idle() { Progress::Idle } else { Progress::Working })
    }

    fn end_unwanted(&mut self, now_ns: u64) {
        let gone = |(seq, client): (&SeqId, &Client)| client.sink.is_cancelled().then_some(*seq);
        for seq in self.clients.iter().filter_map(gone).collect::<Vec<_>>() {
            self.end(seq, FinishReason::Cancelled, None);
        }
        for seq in self.scheduler.expired(now_ns) {
            self.end(seq, FinishReason::TimedOut, None);
        }
    }

    fn launch(&mut self, now_ns: u64) -> Result<bool> {
        let plan = self.scheduler.schedule(now_ns);
        if plan.chunks.is_empty() {
            return Ok(false);
        }
        for new in &plan.new_sequences {
            if let Some(client) = self.clients.get_mut(&new.seq) {
                client.queued = false;
                self.gate.leave_queue();
            }
        }
        tracing::trace!(step = plan.step, chunks = plan.chunks.len(), "launch");
        self.executor.launch(&plan)?;
        self.in_flight.push_back(plan);
        Ok(true)
    }

    fn collect(&mut self, now_ns: u64) -> Result<()> {
        let Some(plan) = self.in_flight.pop_front() else { return Ok(()) };
        let output = self.executor.collect()?;
        let (deltas, plan_stats) = self.scheduler.update(&plan, &output, now_ns)?;
        self.iteration += 1;
        let finished: Vec<_> = deltas.into_iter().filter_map(|delta| self.deliver(delta)).collect();
        self.publish(plan_stats);
        for (mut client, delta) in finished {
            client.sink.delta(delta);
        }
        Ok(())
    }

    /// Passes new tokens on. Last deltas are returned instead, so that whoever hears of the end finds it in the
    /// statistics.
    fn deliver(&mut self, delta: SeqDelta) -> Option<(Client, Delta)> {
        let SeqDelta { seq, tokens, log_probs, stats, finish } = delta;
        self.totals.generated_tokens += tokens.len() as u64;
        let Some(mut finish) = finish else {
            self.clients.get_mut(&seq)?.sink.delta(Delta { tokens, log_probs, stats, finish: None });
            return None;
        };
        self.count_end(finish.reason, &stats);
        let client = self.clients.remove(&seq)?;
        finish.error = finish.error.map(|error| {
            let wrapped = failed_request(client.request, error.message());
            Error::new(error.kind(), wrapped)
        });
        Some((client, Delta { tokens, log_probs, stats, finish: Some(finish) }))
    }

    /// Ends a request now, whatever it is doing.
    fn end(&mut self, seq: SeqId, reason: FinishReason, error: Option<Error>) {
        let stats = self.scheduler.finish(seq).unwrap_or_default();
        let Some(mut client) = self.clients.remove(&seq) else { return };
        if client.queued {
            self.gate.leave_queue();
        }
        tracing::debug!(request = client.request.0, ?reason, "end");
        self.count_end(reason, &stats);
        self.board.lock().totals = self.totals;
        self.unpublished = true;
        client.sink.finish(reason, error, stats);
    }

    fn count_end(&mut self, reason: FinishReason, stats: &RequestStats) {
        self.totals.requests_finished += 1;
        self.totals.cached_tokens += stats.cached_tokens as u64;
        match reason {
            FinishReason::Cancelled => self.totals.requests_cancelled += 1,
            FinishReason::TimedOut => self.totals.requests_timed_out += 1,
            FinishReason::Error => self.totals.requests_failed += 1,
            FinishReason::EndId | FinishReason::StopWords | FinishReason::Length => {}
        }
    }

    /// Answers everybody and turns the engine off.
    fn fail(&mut self, error: Error) -> Error {
        tracing::error!(error = %error, "the executor failed, the engine is off");
        let failure = Error::unavailable(format!("the engine has failed: {error}"));
        self.gate.fail(failure.clone());
        self.in_flight.clear();
        for (seq, mut client) in std::mem::take(&mut self.clients) {
            if client.queued {
                self.gate.leave_queue();
            }
            let stats = self.scheduler.finish(seq).unwrap_or_default();
            self.count_end(FinishReason::Error, &stats);
            let reason = format!("Encountered an error in forwardAsync function: {error}");
            let answer = Error::new(ErrorKind::Unavailable, failed_request(client.request, &reason));
            client.sink.finish(FinishReason::Error, Some(answer), stats);
        }
        self.scheduler.clear();
        self.publish(PlanStats::default());
        failure
    }

    /// Requests may end without a step: then the last record is brought up to date, before all is quiet.
    fn settle(&mut self) {
        if self.unpublished && self.is_idle() {
            self.publish(PlanStats::default());
        }
    }

    fn publish(&mut self, plan: PlanStats) {
        self.totals.preemptions = self.scheduler.preemptions();
        let last_iteration = self.iteration_stats(plan);
        *self.board.lock() = EngineStats { last_iteration, totals: self.totals };
        self.unpublished = false;
        if let Some(hook) = &mut self.on_iteration {
            hook(&last_iteration);
        }
    }

    fn iteration_stats(&self, plan: PlanStats) -> IterationStats {
        let (kv, active) = (self.scheduler.kv(), self.scheduler.active());
        IterationStats {
            iteration: self.iteration,
            active_requests: active,
            max_requests: self.max_batch_size,
            scheduled_requests: plan.scheduled,
            context_requests: plan.context,
            generation_requests: plan.generation,
            waiting_requests: active.saturating_sub(plan.scheduled),
            paused_requests: self.scheduler.paused(),
            total_context_tokens: plan.context_tokens,
            total_generation_tokens: plan.generation_tokens,
            empty_generation_slots: self.max_batch_size - plan.scheduled,
            micro_batch_id: 0,
            kv: KvStats {
                max_blocks: kv.num_blocks(),
                free_blocks: kv.free(),
                used_blocks: kv.num_blocks() - kv.free(),
                tokens_per_block: kv.block_size(),
                reused_blocks: kv.reused_blocks(),
            },
            memory: self.executor.memory(),
        }
    }
}

/// A sink that has exactly one end: dropping it without one reports an error, a panic inside it cancels its request.
pub(super) struct FinalSink {
    sink: Option<Box<dyn RequestSink>>,
    broken: bool,
}

impl FinalSink {
    pub fn new(sink: Box<dyn RequestSink>) -> Self {
        Self { sink: Some(sink), broken: false }
    }

    fn is_cancelled(&self) -> bool {
        let Some(sink) = &self.sink else { return true };
        self.broken || catch_unwind(AssertUnwindSafe(|| sink.is_cancelled())).unwrap_or(true)
    }

    fn delta(&mut self, delta: Delta) {
        let ends = delta.finish.is_some();
        let Some(mut sink) = self.sink.take() else { return };
        match catch_unwind(AssertUnwindSafe(move || (sink.delta(delta), sink).1)) {
            Ok(sink) => self.sink = (!ends).then_some(sink),
            Err(panic) => {
                tracing::error!("a request sink failed: {}", panic_text(&*panic));
                self.broken = true;
            }
        }
    }

    fn finish(&mut self, reason: FinishReason, error: Option<Error>, stats: RequestStats) {
        self.delta(Delta { stats, finish: Some(Finish { reason, error }), ..Delta::default() });
    }
}

impl Drop for FinalSink {
    fn drop(&mut self) {
        if self.sink.is_some() {
            let error = Error::unavailable("the engine was shut down before the request ended");
            self.finish(FinishReason::Error, Some(error), RequestStats::default());
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("of unknown kind"))
}
