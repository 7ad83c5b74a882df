//! The thread that sends responses: the server's frontend runs in the caller of a send, which must not be the engine.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::active::{Active, Control};
use super::fatal::FatalExit;
use super::interface::{End, Form};
use super::metrics::InstanceMetrics;
use super::request::Plan;
use super::response::{Row, Step};
use crate::engine::{Delta, RequestSink};
use crate::error::{Error, ErrorKind, Result};
use crate::triton::{CancelProbe, Response, ResponseSink, Timings, monotonic_ns};

/// How long the FINAL of a request whose client has gone away is held back: a gRPC frontend of known servers crashes
/// when it comes soon after the cancellation.
const CANCELLED_HOLD: Duration = Duration::from_millis(100);

/// A Triton request that is being answered.
pub struct OpenCall {
    pub sink: ResponseSink,
    pub plan: Plan,
    /// One for each sequence.
    pub rows: Vec<Row>,
    pub control: Arc<Control>,
    /// Entry of the execute call.
    pub exec_start_ns: u64,
    /// The sequences go to the engine.
    pub compute_start_ns: u64,
    pub prompt_tokens: usize,
    /// What the responses are made into.
    pub form: Option<Box<dyn Form>>,
}

enum Event {
    Open(u64, Box<OpenCall>),
    /// The sequences were refused: all or none are accepted.
    Refused(u64, Error),
    Delta(u64, usize, Box<Delta>),
}

/// Handle to the thread. Dropping it ends the thread after the last sequence has ended.
pub struct Responder {
    events: Option<Sender<Event>>,
    thread: Option<JoinHandle<()>>,
}

/// Where the engine puts the tokens of the sequences of one prompt.
pub struct RowSink {
    call: u64,
    rows: Range<usize>,
    control: Arc<Control>,
    probe: CancelProbe,
    events: Sender<Event>,
}

impl RequestSink for RowSink {
    fn delta(&mut self, delta: Delta) {
        // The thread outlives every sink; without it there is nobody to tell.
        let row = self.rows.start + delta.sequence_index;
        let _ = self.events.send(Event::Delta(self.call, row, Box::new(delta)));
    }

    fn is_cancelled(&self) -> bool {
        self.rows.clone().all(|row| self.control.is_halted(row)) || self.probe.is_cancelled()
    }

    fn is_stopped(&self, sequence_index: usize) -> bool {
        self.control.is_halted(self.rows.start + sequence_index)
    }
}

impl Responder {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Internal` when there is no thread.
    pub fn start(active: Arc<Active>, metrics: InstanceMetrics, fatal: Option<FatalExit>) -> Result<Self> {
        let (events, inbox) = channel();
        let worker = Worker { calls: HashMap::new(), held: VecDeque::new(), active, metrics, fatal };
        let thread = thread::Builder::new()
            .name("responder".into())
            .spawn(move || worker.run(&inbox))
            .map_err(|error| Error::internal(format!("cannot start the responder thread: {error}")))?;
        Ok(Self { events: Some(events), thread: Some(thread) })
    }

    /// Takes over a request and gives the sinks of its prompts, which have so many sequences each.
    pub fn open(&self, call: u64, open: OpenCall, sequences: &[usize]) -> Vec<RowSink> {
        let (Some(events), Some(probe)) = (&self.events, open.sink.cancel_probe()) else { return Vec::new() };
        let mut next_row = 0;
        let row_sink = |&count: &usize| {
            let rows = next_row..next_row + count;
            next_row = rows.end;
            RowSink { call, rows, control: open.control.clone(), probe: probe.clone(), events: events.clone() }
        };
        let sinks = sequences.iter().map(row_sink).collect();
        // A thread that is gone drops the call, which answers.
        let _ = events.send(Event::Open(call, Box::new(open)));
        sinks
    }

    /// What answers the request should its sequences not be accepted.
    pub fn refusal(&self, call: u64) -> Refusal {
        Refusal { call, events: self.events.clone() }
    }
}

/// The right to refuse one request.
pub struct Refusal {
    call: u64,
    events: Option<Sender<Event>>,
}

impl Refusal {
    /// Answers the request with an error.
    pub fn send(self, error: Error) {
        if let Some(events) = &self.events {
            let _ = events.send(Event::Refused(self.call, error));
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.events = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the responder thread panicked");
        }
    }
}

/// What the thread owns.
struct Worker {
    calls: HashMap<u64, State>,
    /// Finals that are held back, by time.
    held: VecDeque<(Instant, Final)>,
    active: Arc<Active>,
    metrics: InstanceMetrics,
    fatal: Option<FatalExit>,
}

struct State {
    call: Box<OpenCall>,
    /// Sequences that have not ended.
    pending: usize,
    generated_tokens: Vec<usize>,
    failed: bool,
}

struct Final {
    sink: ResponseSink,
    outcome: Result<Response>,
    timings: Timings,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Event>) {
        loop {
            let received = match self.held.front() {
                Some(&(due, _)) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(event) => self.guarded(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.release_due();
        }
        while let Some((due, held)) = self.held.pop_front() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            held.send();
        }
    }

    /// A panic ends the request that it happened in: its sink answers when it is dropped.
    fn guarded(&mut self, event: Event) {
        let (Event::Open(id, _) | Event::Refused(id, _) | Event::Delta(id, _, _)) = event;
        let handled = catch_unwind(AssertUnwindSafe(|| self.handle(event)));
        if handled.is_err() {
            tracing::error!("answering a request panicked; the request is ended");
            if let Some(state) = self.calls.remove(&id) {
                state.call.control.halt();
                self.active.remove(&state.call.control);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Open(id, call) => {
                let rows = call.rows.len();
                self.calls.insert(id, State { call, pending: rows, generated_tokens: vec![0; rows], failed: false });
            }
            Event::Refused(id, error) => {
                if let Some(state) = self.calls.remove(&id) {
                    self.finish(state, Err(error));
                }
            }
            Event::Delta(id, row, delta) => self.delta(id, row, *delta),
        }
    }

    fn delta(&mut self, id: u64, row: usize, delta: Delta) {
        let Some(state) = self.calls.get_mut(&id) else { return };
        state.generated_tokens[row] = delta.stats.generated_tokens;
        let OpenCall { sink, plan, rows, control, form, .. } = &mut *state.call;
        let finish = delta.finish.as_ref().map(|finish| finish.reason);
        let mut step = rows[row].push(plan, delta);
        if let Some(form) = form {
            step = form.step(row, step, End { finish, stop_text: rows[row].stop_text() });
        }
        let outcome = match step {
            Step::Nothing => return,
            Step::More(response) => {
                if let Err(error) = sink.send(&response) {
                    // The client cannot be told about a response that it has not seen; the sequence is given up.
                    tracing::warn!("a response could not be sent, its request is stopped: {error}");
                    control.halt();
                }
                return;
            }
            Step::Last(response) => {
                control.halt_row(row);
                Ok(response)
            }
            Step::Failed(error) => Err(error),
            Step::Ended if state.pending > 1 => {
                control.halt_row(row);
                state.pending -= 1;
                return;
            }
            Step::Ended => Err(Error::internal("the last sequence ended without a response")),
        };
        state.failed |= outcome.is_err();
        state.pending -= 1;
        if state.pending == 0 {
            if let Some(state) = self.calls.remove(&id) {
                self.finish(state, outcome);
            }
            return;
        }
        let sent = match &outcome {
            Ok(response) => sink.send(response),
            Err(error) => sink.send_error(error),
        };
        if let Err(error) = sent {
            tracing::warn!("a response could not be sent: {error}");
        }
    }

    fn finish(&mut self, state: State, outcome: Result<Response>) {
        if outcome.is_err() {
            self.fatal.take_if(|fatal| fatal.is_due()).into_iter().for_each(FatalExit::start);
        }
        let compute_end_ns = monotonic_ns();
        let State { call, generated_tokens, failed, .. } = state;
        if outcome.is_ok() && !failed {
            self.metrics.observe_request(call.prompt_tokens, generated_tokens.iter().sum());
        }
        self.active.remove(&call.control);
        let OpenCall { sink, exec_start_ns, compute_start_ns, form, .. } = *call;
        let outcome = outcome.map_err(|error| match &form {
            Some(form) => form.error(error),
            None => error,
        });
        let timings = Timings { exec_start_ns, compute_start_ns, compute_end_ns };
        let answer = Final { sink, outcome, timings };
        if answer.sink.is_cancelled() {
            self.held.push_back((Instant::now() + CANCELLED_HOLD, answer));
        } else {
            answer.send();
        }
    }

    fn release_due(&mut self) {
        while self.held.front().is_some_and(|&(due, _)| due <= Instant::now()) {
            if let Some((_, answer)) = self.held.pop_front() {
                answer.send();
            }
        }
    }
}

impl Final {
    fn send(self) {
        // Nobody failed where the client went away first.
        let gone =
            self.outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Cancelled || self.sink.is_cancelled());
        self.sink.finish(self.outcome, (!gone).then_some(self.timings));
    }
}
