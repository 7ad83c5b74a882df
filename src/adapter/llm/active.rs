//! The requests that are being answered, by the id that their clients gave, for the stop command.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Stops the sequences of one Triton request.
pub struct Control {
    id: String,
    /// Set to end a sequence with what it has generated, within one step.
    rows: Vec<AtomicBool>,
}

impl Control {
    /// For a request with this many sequences.
    pub fn new(id: &str, rows: usize) -> Arc<Self> {
        Arc::new(Self { id: id.to_owned(), rows: (0..rows).map(|_| AtomicBool::default()).collect() })
    }

    /// Whether a sequence is to end; the engine asks in every step.
    pub fn is_halted(&self, row: usize) -> bool {
        self.rows[row].load(Ordering::Relaxed)
    }

    /// Ends all sequences.
    pub fn halt(&self) {
        self.rows.iter().for_each(|row| row.store(true, Ordering::Relaxed));
    }

    /// Ends one sequence.
    pub fn halt_row(&self, row: usize) {
        self.rows[row].store(true, Ordering::Relaxed);
    }
}

/// The newest request of each id.
#[derive(Default)]
pub struct Active(Mutex<HashMap<String, Arc<Control>>>);

impl Active {
    /// Notes a request; an older one with the same id is not reached by the stop command any more.
    pub fn insert(&self, control: &Arc<Control>) {
        if !control.id.is_empty() {
            self.0.lock().insert(control.id.clone(), control.clone());
        }
    }

    /// Forgets a request that has ended.
    pub fn remove(&self, control: &Arc<Control>) {
        let mut requests = self.0.lock();
        if requests.get(&control.id).is_some_and(|newest| Arc::ptr_eq(newest, control)) {
            requests.remove(&control.id);
        }
    }

    /// Ends the newest request of this id, if there is one.
    pub fn stop(&self, id: &str) {
        if let Some(control) = self.0.lock().get(id) {
            control.halt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halted(control: &Control) -> bool {
        (0..control.rows.len()).all(|row| control.is_halted(row))
    }

    #[test]
    fn stop_reaches_the_newest_request_of_an_id() {
        let active = Active::default();
        let (old, new) = (Control::new("a", 1), Control::new("a", 2));
        active.insert(&old);
        active.insert(&new);
        active.stop("a");
        active.stop("unknown");
        assert!(halted(&new) && !halted(&old));
    }

    #[test]
    fn the_end_of_an_older_request_does_not_forget_the_newer() {
        let active = Active::default();
        let (old, new) = (Control::new("a", 1), Control::new("a", 1));
        active.insert(&old);
        active.insert(&new);
        active.remove(&old);
        active.stop("a");
        assert!(halted(&new));
        active.remove(&new);
        assert!(active.0.lock().is_empty());
    }
}
