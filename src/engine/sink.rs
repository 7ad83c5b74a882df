//! What stands before a client's sink: each sequence ends exactly once, whoever ends it.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::gate::failed_request;
use super::request::{Delta, Finish, FinishReason, RequestSink, RequestStats};
use crate::error::{Error, ErrorKind};
use crate::ids::RequestId;

/// Every sink that has not heard of its end, so that a watchdog can answer when the engine thread cannot.
#[derive(Default)]
pub(super) struct Ledger(Mutex<HashMap<RequestId, Weak<SinkCell>>>);

impl Ledger {
    /// Ends every request with an error. A sink that is being called at the moment is left alone: it may be what hangs.
    pub fn answer_all(&self, reason: &str) {
        let cells: Vec<_> = self.0.lock().iter().filter_map(|(id, cell)| Some((*id, cell.upgrade()?))).collect();
        for (id, cell) in cells {
            let error = Error::new(ErrorKind::Unavailable, failed_request(id, reason));
            if let Some(mut state) = cell.0.try_lock() {
                state.finish_all(FinishReason::Error, Some(&error), RequestStats::default());
            }
        }
    }
}

/// The sink, and which sequences have not ended.
struct SinkCell(Mutex<State>);

struct State {
    sink: Option<Box<dyn RequestSink>>,
    is_open: Vec<bool>,
}

/// The engine's side of a sink: dropping it reports an error to sequences that have not ended, a panic inside the sink
/// cancels its request.
pub(super) struct FinalSink {
    id: RequestId,
    cell: Arc<SinkCell>,
    ledger: Arc<Ledger>,
}

impl FinalSink {
    pub fn new(id: RequestId, num_sequences: usize, sink: Box<dyn RequestSink>, ledger: &Arc<Ledger>) -> Self {
        let state = State { sink: Some(sink), is_open: vec![true; num_sequences] };
        let cell = Arc::new(SinkCell(Mutex::new(state)));
        ledger.0.lock().insert(id, Arc::downgrade(&cell));
        Self { id, cell, ledger: Arc::clone(ledger) }
    }

    pub fn is_cancelled(&self) -> bool {
        let state = self.cell.0.lock();
        let Some(sink) = &state.sink else { return true };
        catch_unwind(AssertUnwindSafe(|| sink.is_cancelled())).unwrap_or(true)
    }

    /// As [`RequestSink::is_stopped`].
    pub fn is_stopped(&self, sequence_index: usize) -> bool {
        let state = self.cell.0.lock();
        let Some(sink) = &state.sink else { return true };
        catch_unwind(AssertUnwindSafe(|| sink.is_stopped(sequence_index))).unwrap_or(true)
    }

    pub fn delta(&self, delta: Delta) {
        self.cell.0.lock().delta(delta);
    }

    /// Ends the sequences that have not ended.
    pub fn finish_all(&self, reason: FinishReason, error: Option<&Error>, stats: RequestStats) {
        self.cell.0.lock().finish_all(reason, error, stats);
    }

    /// Ends one sequence.
    pub fn finish(&self, sequence_index: usize, reason: FinishReason, error: Option<Error>, stats: RequestStats) {
        let finish = Some(Finish { reason, error });
        self.delta(Delta { sequence_index, stats, finish, ..Delta::default() });
    }
}

impl Drop for FinalSink {
    fn drop(&mut self) {
        let error = Error::unavailable("the engine was shut down before the request ended");
        self.finish_all(FinishReason::Error, Some(&error), RequestStats::default());
        self.ledger.0.lock().remove(&self.id);
    }
}

impl State {
    fn delta(&mut self, delta: Delta) {
        if !self.is_open.get(delta.sequence_index).is_some_and(|open| *open) {
            return;
        }
        if delta.finish.is_some() {
            self.is_open[delta.sequence_index] = false;
        }
        let Some(mut sink) = self.sink.take() else { return };
        match catch_unwind(AssertUnwindSafe(move || (sink.delta(delta), sink).1)) {
            Ok(sink) => self.sink = self.is_open.contains(&true).then_some(sink),
            Err(panic) => tracing::error!("a request sink failed: {}", panic_text(&*panic)),
        }
    }

    fn finish_all(&mut self, reason: FinishReason, error: Option<&Error>, stats: RequestStats) {
        for sequence_index in 0..self.is_open.len() {
            let finish = Some(Finish { reason, error: error.cloned() });
            self.delta(Delta { sequence_index, stats, finish, ..Delta::default() });
        }
    }
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("of unknown kind"))
}
