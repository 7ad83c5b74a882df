//! Guides of sequences: threads that advance them while the device computes the next step.
//!
//! As soon as a token of a guided sequence is known, its matcher goes to a thread that takes the token and works out
//! which may follow; the mask is waited for where the next token is sampled, behind the step's forward pass.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::thread;

use parking_lot::Mutex;

use crate::decode::SamplingParams;
use crate::decode::guided::{GuideMatcher, TokenMask};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Most threads that work on masks. A mask of a loose grammar over a vocabulary of 128,000 takes a millisecond: these keep up
/// with 64 streams.
const MAX_THREADS: usize = 16;

/// Of the process: models rarely compute at the same instant, and threads without work cost nothing.
static THREADS: LazyLock<Option<GuideThreads>> = LazyLock::new(GuideThreads::start);

type Job = Box<dyn FnOnce() + Send>;

struct GuideThreads {
    jobs: Sender<Job>,
}

impl GuideThreads {
    /// `None` where there is no thread: then whoever asks works itself.
    fn start() -> Option<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let started = (0..(cores - cores / 4).clamp(1, MAX_THREADS)).filter(|index| {
            let queue = queue.clone();
            let work = move || {
                loop {
                    let job = queue.lock().recv();
                    let Ok(job) = job else { return };
                    job();
                }
            };
            thread::Builder::new().name(format!("guide-{index}")).spawn(work).is_ok()
        });
        (started.count() > 0).then_some(Self { jobs })
    }
}

/// The state of a guided sequence behind a token.
struct Turn {
    matcher: GuideMatcher,
    mask: Result<TokenMask>,
}

/// The guide of one sequence.
pub(super) struct GuideRow {
    /// Answers once; a thread that panicked has hung up.
    turn: Option<Turn>,
    coming: Option<Receiver<Turn>>,
}

impl GuideRow {
    /// At the beginning of the answer of a request with a guide.
    pub(super) fn start(sampling: &SamplingParams) -> Option<Self> {
        let guide = sampling.guide.clone()?;
        let end_ids = sampling.end_ids.clone();
        let mut row = Self { turn: None, coming: None };
        row.send(move || {
            let mut matcher = guide.matcher(&end_ids);
            let mask = matcher.mask();
            Turn { matcher, mask }
        });
        Some(row)
    }

    /// Takes the sequence's next token.
    pub(super) fn advance(&mut self, token: TokenId) {
        let Ok(Turn { mut matcher, mask }) = self.take() else { return };
        if mask.is_err() {
            self.turn = Some(Turn { matcher, mask });
            return;
        }
        self.send(move || {
            let mask = matcher.advance(token).and_then(|()| matcher.mask());
            Turn { matcher, mask }
        });
    }

    /// The tokens that may come next; waits for them.
    ///
    /// # Errors
    /// A dead end, which ends the sequence.
    pub(super) fn mask(&mut self) -> Result<&TokenMask> {
        let turn = self.take()?;
        self.turn.insert(turn).mask.as_ref().map_err(Clone::clone)
    }

    fn take(&mut self) -> Result<Turn> {
        let turn = match (self.turn.take(), self.coming.take()) {
            (Some(turn), _) => Some(turn),
            (None, Some(coming)) => coming.recv().ok(),
            (None, None) => None,
        };
        turn.ok_or_else(|| Error::internal("the guide of the request has failed"))
    }

    fn send(&mut self, work: impl FnOnce() -> Turn + Send + 'static) {
        let (done, coming) = channel();
        let job: Job = Box::new(move || {
            if let Ok(turn) = catch_unwind(AssertUnwindSafe(work)) {
                // Nobody waits for a sequence that has ended.
                let _ = done.send(turn);
            }
        });
        self.coming = Some(coming);
        match &*THREADS {
            Some(threads) => {
                if let Err(refused) = threads.jobs.send(job) {
                    (refused.0)();
                }
            }
            None => job(),
        }
    }
}

impl std::fmt::Debug for GuideRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GuideRow")
    }
}
