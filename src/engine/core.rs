//! The body of the engine's loop: requests in, plans down, outputs up, deltas out. A plain object that tests drive
//! without a thread.

mod ends;
mod record;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;

use super::ahead::Ahead;
use super::beams::BeamGroup;
use super::clients::{Client, Clients};
use super::config::EngineConfig;
use super::events::{KvEventBatch, KvEvents};
use super::gate::{Charge, Gate, failed_request};
use super::request::{FinishReason, Request, RequestSink, RequestStats};
use super::scheduler::{PlanStats, Scheduler};
use super::sequence::SeqDelta;
use super::sink::{FinalSink, Ledger, panic_text};
use super::stats::{EngineStats, EngineTotals, IterationStats};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::RequestId;
use crate::step::{Executor, ExecutorLimits, StepPlan};
use record::{HISTORY, Note};

/// When an idle engine looks again whether transfers have landed.
const TRANSFER_POLL_NS: u64 = 2_000_000;

/// Called on the engine thread after every step, and when the engine goes idle otherwise; it must not block.
pub type IterationHook = Box<dyn FnMut(&IterationStats) + Send>;

/// What a call of [`EngineCore::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    Working,
    /// Call again at this time, or when a request has been submitted or cancelled.
    Until(u64),
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
    ledger: Arc<Ledger>,
    board: Arc<Mutex<EngineStats>>,
    events: KvEvents,
    executor: Box<dyn Executor>,
    limits: ExecutorLimits,
    max_batch_size: usize,
    scheduler: Scheduler,
    clients: Clients,
    in_flight: VecDeque<StepPlan>,
    iteration: u64,
    totals: EngineTotals,
    on_iteration: Option<IterationHook>,
    /// Whether a request has ended since statistics were published.
    unpublished: bool,
    now_ns: u64,
    next_audit_ns: u64,
    history: VecDeque<Note>,
    ahead: Ahead,
    /// Whether a request has come since the last launch.
    fresh: bool,
    /// Empty between steps.
    deltas: Vec<SeqDelta>,
}

impl EngineCore {
    /// # Errors
    /// `InvalidArg` when `config` asks for more than the executor can hold.
    pub fn new(
        config: EngineConfig,
        mut executor: Box<dyn Executor>,
        on_iteration: Option<IterationHook>,
    ) -> Result<Self> {
        let limits = executor.limits();
        config.validate(&limits)?;
        let events = KvEvents::new(config.kv_event_buffer);
        let writer = (config.kv_event_buffer > 0).then(|| events.clone());
        let tiers = executor.tiers();
        let mut scheduler = Scheduler::new(config.clone(), &limits, tiers.host_blocks, writer);
        scheduler.add_windows(&executor.windows(), &tiers.window_host_blocks, &limits)?;
        scheduler.add_disk(executor.open_disk());
        let mut core = Self {
            gate: Arc::new(Gate::new(config.clone(), limits.clone())),
            ledger: Arc::default(),
            board: Arc::default(),
            events,
            scheduler,
            executor,
            max_batch_size: config.max_batch_size,
            limits,
            clients: Clients::default(),
            in_flight: VecDeque::new(),
            iteration: 0,
            totals: EngineTotals::default(),
            on_iteration: None,
            unpublished: false,
            now_ns: 0,
            next_audit_ns: 0,
            history: VecDeque::with_capacity(HISTORY),
            ahead: Ahead::new(config.launch_lead.map(|lead| lead.as_nanos() as u64)),
            fresh: false,
            deltas: Vec::new(),
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
        let sink = FinalSink::new(id, request.num_sequences, sink, &self.ledger);
        self.accept(Submission { id, request, sink, arrival_ns: now_ns });
        Ok(id)
    }

    /// Ends a request with what it has generated; unknown ids are no error, since requests end by themselves.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(client) = self.clients.find(id) {
            self.end(client, FinishReason::Cancelled, None);
            self.settle();
        }
    }

    /// As [`EngineCore::step_by`], in no time.
    ///
    /// # Errors
    /// As [`EngineCore::step_by`].
    pub fn step(&mut self, now_ns: u64) -> Result<Progress> {
        self.step_by(&|| now_ns)
    }

    /// One turn: ends the cancelled and the late, launches a step if there is one, collects the oldest if the pipeline
    /// is full or nothing else is left to do.
    ///
    /// # Errors
    /// The failure of the executor, after every request has been answered; and again at each later call.
    pub fn step_by(&mut self, clock: &dyn Fn() -> u64) -> Result<Progress> {
        self.health()?;
        self.now_ns = clock();
        match catch_unwind(AssertUnwindSafe(|| self.turn(clock))) {
            Ok(Ok(progress)) => Ok(progress),
            Ok(Err(error)) => Err(self.fail(error)),
            Err(panic) => Err(self.fail(Error::internal(panic_text(&*panic)))),
        }
    }

    /// Whether no request is left and no step is in flight.
    pub fn is_idle(&self) -> bool {
        let is_quiet = self.scheduler.is_empty() && self.in_flight.is_empty();
        self.health().is_err() || (is_quiet && self.scheduler.kv().onboarding() == 0)
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

    /// Forgets what the prefix cache holds, as must be done when weights or an adapter change. Running requests go on.
    pub fn reset_prefix_cache(&mut self) {
        self.scheduler.reset_cache();
    }

    /// The latest KV cache events, which are gone from the engine then.
    pub fn drain_kv_events(&self) -> KvEventBatch {
        self.events.drain()
    }

    /// Ends every request with `error`.
    pub fn abort(&mut self, error: &Error) {
        for client in self.clients.all() {
            self.end(client, FinishReason::Error, Some(error));
        }
        self.settle();
    }

    /// Stores on disk what is cached and not there yet, until that is done or `is_over` says so: before the executor goes.
    /// Says whether it was done.
    pub fn flush_disk(&mut self, is_over: &dyn Fn() -> bool) -> bool {
        while self.health().is_ok() && !is_over() {
            let is_done = !self.scheduler.flush_disk();
            self.order_transfers();
            if is_done && !self.scheduler.kv().awaits_transfers() {
                return true;
            }
            self.land(true);
        }
        false
    }

    /// Compares all that is known of blocks, tables, sequences and requests.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.scheduler.check()?;
        let open: usize = self.clients.iter().map(|client| client.open).sum();
        if self.scheduler.active() != open {
            return Err(format!("{} sequences, clients wait for {open}", self.scheduler.active()));
        }
        Ok(())
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    pub(super) fn ledger(&self) -> Arc<Ledger> {
        self.ledger.clone()
    }

    pub(super) fn events(&self) -> KvEvents {
        self.events.clone()
    }

    pub(super) fn board(&self) -> Arc<Mutex<EngineStats>> {
        self.board.clone()
    }

    pub(super) fn accept(&mut self, submission: Submission) {
        let Submission { id, request, sink, arrival_ns } = submission;
        let charge = Charge::of(&request);
        if let Err(error) = self.health() {
            self.gate.leave_queue(charge);
            sink.finish_all(FinishReason::Error, Some(&error), RequestStats::default());
            return;
        }
        self.now_ns = self.now_ns.max(arrival_ns);
        self.fresh = true;
        self.totals.requests_accepted += 1;
        self.totals.prompt_tokens += (request.prompt.len() * request.num_sequences) as u64;
        let longest = request.prompt.len() + request.stop.max_tokens.min(self.scheduler.room(request.prompt.len()));
        let is_short = self.executor.rotation_border().is_some_and(|border| longest <= border);
        let request = Request { is_short, ..request };
        let open = request.num_sequences;
        let client = Client { request: id, sink, charge: Some(charge), sequences: Vec::new(), open, beams: None };
        let place = self.clients.insert(client);
        let beam = request.beam.clone();
        let (sequences, beams) = match beam {
            None => (self.scheduler.add(request, place, arrival_ns), None),
            Some(params) => {
                let max_tokens = request.stop.max_tokens.min(self.scheduler.room(request.prompt.len()));
                let mut group = Box::new(BeamGroup::new(id, request, params, max_tokens, arrival_ns));
                (self.scheduler.add_round(group.round(), place, arrival_ns), Some(group))
            }
        };
        if let Some(client) = self.clients.get_mut(place) {
            client.sequences = sequences.into_iter().map(Some).collect();
            client.beams = beams;
        }
        self.note(id, "accepted");
    }

    fn turn(&mut self, clock: &dyn Fn() -> u64) -> Result<Progress> {
        let now_ns = self.now_ns;
        self.end_unwanted(now_ns);
        self.land(false);
        if let Some(due_ns) = self.put_off(now_ns) {
            return Ok(Progress::Until(due_ns));
        }
        let launched = self.in_flight.len() < self.limits.pipeline_depth && self.launch(now_ns)?;
        if !launched && self.in_flight.is_empty() && !self.is_idle() && !self.land(true) {
            let waiting = self.scheduler.active();
            return Err(Error::internal(format!("{waiting} requests wait, none runs and none can start")));
        }
        if !launched || self.in_flight.len() == self.limits.pipeline_depth {
            self.collect(clock)?;
        }
        self.settle();
        Ok(match (self.is_idle(), self.scheduler.kv().awaits_transfers()) {
            (true, false) => Progress::Idle,
            (true, true) => Progress::Until(self.now_ns + TRANSFER_POLL_NS),
            (false, _) => Progress::Working,
        })
    }

    fn end_unwanted(&mut self, now_ns: u64) {
        for client in self.clients.those(|client| client.sink.is_cancelled()) {
            self.end(client, FinishReason::Cancelled, None);
        }
        for client in self.clients.those(|client| client.open > 1 && client.beams.is_none()) {
            self.end_stopped(client);
        }
        for client in self.scheduler.expired(now_ns) {
            self.end(client, FinishReason::TimedOut, None);
        }
        for client in self.scheduler.overdue(now_ns) {
            // Who has begun to answer is served.
            if self.clients.get_mut(client).is_some_and(|client| client.charge.is_some()) {
                let error = Error::unavailable("Request timeout expired");
                self.end(client, FinishReason::Error, Some(&error));
            }
        }
    }

    /// Ends those of several sequences that are wanted no more; the last one ends with its request.
    fn end_stopped(&mut self, place: u32) {
        let Some(client) = self.clients.get_mut(place) else { return };
        for index in 0..client.sequences.len() {
            if client.open == 1 || !client.sink.is_stopped(index) {
                continue;
            }
            let Some(seq) = client.sequences[index].take() else { continue };
            client.open -= 1;
            let stats = self.scheduler.finish(seq).unwrap_or_default();
            self.totals.cached_tokens += stats.cached_tokens as u64;
            client.sink.finish(index, FinishReason::Cancelled, None, stats);
        }
    }

    /// Hears of transfers that have ended, of one at least with `wait`. False: there was none.
    fn land(&mut self, wait: bool) -> bool {
        if !self.scheduler.kv().awaits_transfers() {
            return false;
        }
        let landed = self.executor.landed(wait);
        landed.iter().for_each(|&landed| self.scheduler.land(landed));
        // Blocks that nobody waits for any more are free now.
        self.unpublished |= !landed.is_empty();
        !landed.is_empty()
    }

    /// Until when the next launch is put off.
    fn put_off(&self, now_ns: u64) -> Option<u64> {
        let has_room = self.limits.pipeline_depth > 1 && self.in_flight.len() == 1;
        let running = self.in_flight.front().filter(|_| has_room && !self.fresh)?;
        self.ahead.due_ns(running).filter(|&due_ns| now_ns < due_ns)
    }

    fn launch(&mut self, now_ns: u64) -> Result<bool> {
        self.fresh = false;
        let plan = self.scheduler.schedule(now_ns);
        self.order_transfers();
        if plan.chunks.is_empty() {
            return Ok(false);
        }
        for client in self.scheduler.take_started() {
            if let Some(charge) = self.clients.get_mut(client).and_then(|client| client.charge.take()) {
                self.gate.leave_queue(charge);
            }
        }
        tracing::trace!(step = plan.step, chunks = plan.chunks.len(), "launch");
        self.executor.launch(&plan)?;
        self.in_flight.push_back(plan);
        Ok(true)
    }

    fn order_transfers(&mut self) {
        let transfers = self.scheduler.take_transfers();
        if !transfers.is_empty() {
            self.executor.transfer(transfers);
        }
        let orders = self.scheduler.take_disk_orders();
        if !orders.is_empty() {
            self.executor.disk(orders);
        }
    }

    fn collect(&mut self, clock: &dyn Fn() -> u64) -> Result<()> {
        let Some(plan) = self.in_flight.pop_front() else { return Ok(()) };
        let mut output = self.executor.collect()?;
        self.now_ns = clock();
        let ended_ns = self.now_ns.saturating_sub(output.ended_ns_ago);
        self.ahead.collected(&plan, ended_ns, !self.in_flight.is_empty());
        let mut deltas = std::mem::take(&mut self.deltas);
        let plan_stats = self.scheduler.update(&plan, &output, self.now_ns, &mut deltas)?;
        self.iteration += 1;
        let finished: Vec<_> = deltas.drain(..).filter_map(|delta| self.deliver(delta, &mut output)).collect();
        self.deltas = deltas;
        self.publish(plan_stats);
        for (client, delta) in finished {
            client.sink.delta(delta);
        }
        Ok(())
    }

    /// Answers everybody and turns the engine off.
    fn fail(&mut self, error: Error) -> Error {
        tracing::error!(error = %error, "the executor failed, the engine is off");
        let failure = Error::unavailable(format!("the engine has failed: {error}"));
        self.gate.fail(failure.clone());
        self.in_flight.clear();
        let reason = format!("Encountered an error in forwardAsync function: {error}");
        for client in self.clients.all() {
            let Some(request) = self.clients.get_mut(client).map(|client| client.request) else { continue };
            let answer = Error::new(ErrorKind::Unavailable, failed_request(request, &reason));
            self.end(client, FinishReason::Error, Some(&answer));
        }
        self.scheduler.clear();
        self.publish(PlanStats::default());
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeExecutor;
    use super::super::request::Delta;
    use super::record::AUDIT_INTERVAL_NS;
    use super::*;

    struct Deaf;

    impl RequestSink for Deaf {
        fn delta(&mut self, _: Delta) {}
    }

    #[test]
    fn an_idle_engine_finds_a_lost_block_and_counts_it() {
        let limits = ExecutorLimits {
            num_blocks: 8,
            block_size_tokens: 4,
            max_step_tokens: 16,
            max_step_sequences: 2,
            max_step_rows: 2,
            max_seq_len_tokens: 16,
            vocab_size: 8,
            pipeline_depth: 1,
        };
        let executor = Box::new(FakeExecutor::new(limits.clone(), 1));
        let mut core = EngineCore::new(EngineConfig::for_limits(&limits), executor, None).unwrap();
        let mut serve = |lose: bool, now_ns: u64| {
            let request = Request {
                prompt: vec![1, 2],
                stop: crate::decode::StopCriteria { max_tokens: 1, ..Default::default() },
                ..Request::default()
            };
            if lose {
                core.scheduler.lose_a_block();
            }
            core.submit(request, Box::new(Deaf), now_ns).unwrap();
            while core.step(now_ns).unwrap() == Progress::Working {}
            (core.stats().totals.failed_checks, core.stats().last_iteration.kv.used_blocks)
        };
        assert_eq!(serve(false, 1), (0, 0));
        assert_eq!(serve(true, 1 + AUDIT_INTERVAL_NS), (1, 1));
        assert_eq!(serve(false, 2 + AUDIT_INTERVAL_NS), (1, 1), "not looked for again within a second");
        assert_eq!(serve(false, 2 * AUDIT_INTERVAL_NS + 1), (2, 1));
    }
}
