//! Guides of sequences: threads that advance them while the device computes the next step.
//!
//! As soon as a token of a guided sequence is known, its matcher goes to a thread that takes the token and works out
//! which may follow; the mask is waited for where the next token is sampled, behind the step's forward pass.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::thread;

use parking_lot::{Condvar, Mutex};

use crate::decode::guided::{Guide, GuideMatcher, TokenMask};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Most threads that work on masks. Masks mostly take microseconds, those of the loosest grammars over a vocabulary of 128,000 a
/// millisecond: these keep up with 64 streams.
const MAX_THREADS: usize = 16;

/// Of the process: models rarely compute at the same instant, and threads without work cost nothing.
static QUEUE: LazyLock<Arc<Queue>> = LazyLock::new(Queue::start);

/// What is to be worked out, oldest first.
#[derive(Default)]
struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    came: Condvar,
}

struct Job {
    work: Work,
    guide: Guide,
    answer: Arc<Answer>,
}

enum Work {
    /// An answer that any of these tokens ends.
    Begin(Vec<TokenId>),
    Advance(Box<GuideMatcher>, TokenId),
}

/// The state of a guided sequence behind a token.
struct Turn {
    matcher: Box<GuideMatcher>,
    mask: Result<TokenMask>,
}

/// Where a sequence waits for its next turn.
#[derive(Default)]
struct Answer {
    turn: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Default)]
enum Waiting {
    #[default]
    Coming,
    Here(Turn),
    /// The work has panicked, or the turn was taken.
    Gone,
}

impl Queue {
    fn start() -> Arc<Self> {
        let queue = Arc::<Self>::default();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for index in 0..(cores - cores / 4).clamp(1, MAX_THREADS) {
            let jobs = queue.clone();
            let thread = thread::Builder::new().name(format!("guide-{index}"));
            if let Err(error) = thread.spawn(move || jobs.work()) {
                // Who waits for a mask works too.
                tracing::warn!("cannot start a thread for masks: {error}");
            }
        }
        queue
    }

    fn push(&self, job: Job) {
        self.jobs.lock().push_back(job);
        self.came.notify_one();
    }

    fn work(&self) {
        loop {
            let job = {
                let mut jobs = self.jobs.lock();
                self.came.wait_while(&mut jobs, |jobs| jobs.is_empty());
                jobs.pop_front()
            };
            job.into_iter().for_each(Job::run);
        }
    }
}

impl Job {
    fn run(self) {
        let Self { work, guide, answer } = self;
        let turn = catch_unwind(AssertUnwindSafe(|| work.run(&guide)));
        if Arc::strong_count(&answer) == 1 {
            // Nobody waits: the sequence has ended.
            return turn.into_iter().for_each(|turn| guide.take_back(*turn.matcher));
        }
        *answer.turn.lock() = turn.map_or(Waiting::Gone, Waiting::Here);
        answer.came.notify_one();
    }
}

impl Work {
    fn run(self, guide: &Guide) -> Turn {
        let (mut matcher, token) = match self {
            Self::Begin(end_ids) => (Box::new(guide.matcher(&end_ids)), None),
            Self::Advance(matcher, token) => (matcher, Some(token)),
        };
        let advanced = token.map_or(Ok(()), |token| matcher.advance(token));
        let mask = advanced.and_then(|()| matcher.mask());
        Turn { matcher, mask }
    }
}

impl Answer {
    /// Waits, and works meanwhile: a queue whose threads are busy has something to do.
    fn take(&self) -> Waiting {
        loop {
            let mut turn = self.turn.lock();
            if !matches!(*turn, Waiting::Coming) {
                return std::mem::replace(&mut *turn, Waiting::Gone);
            }
            let job = QUEUE.jobs.lock().pop_front();
            let Some(job) = job else {
                self.came.wait(&mut turn);
                continue;
            };
            drop(turn);
            job.run();
        }
    }
}

/// The guide of one sequence.
pub(super) struct GuideRow {
    guide: Guide,
    turn: Option<Turn>,
    answer: Arc<Answer>,
}

impl GuideRow {
    /// At the beginning of an answer that any of `end_ids` ends.
    pub(super) fn start(guide: &Guide, end_ids: &[TokenId]) -> Self {
        let mut row = Self { guide: guide.clone(), turn: None, answer: Arc::default() };
        row.send(Work::Begin(end_ids.to_vec()));
        row
    }

    /// Takes the sequence's next token.
    pub(super) fn advance(&mut self, token: TokenId) {
        // A guide that has failed says so when its next mask is asked for.
        let Ok(Turn { matcher, mask }) = self.take() else { return };
        match mask {
            Ok(_) => self.send(Work::Advance(matcher, token)),
            Err(_) => self.turn = Some(Turn { matcher, mask }),
        }
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
        let turn = self.turn.take().map_or_else(|| self.answer.take(), Waiting::Here);
        match turn {
            Waiting::Here(turn) => Ok(turn),
            Waiting::Coming | Waiting::Gone => Err(Error::internal("the guide of the request has failed")),
        }
    }

    fn send(&mut self, work: Work) {
        *self.answer.turn.lock() = Waiting::Coming;
        QUEUE.push(Job { work, guide: self.guide.clone(), answer: self.answer.clone() });
    }
}

/// Guided rows of a batch without a model, for measurements of what their masks cost beside a step.
pub struct GuidedRows {
    rows: Vec<GuideRow>,
    guide: Guide,
}

impl GuidedRows {
    /// So many rows at the beginning of their answers.
    pub fn new(guide: &Guide, rows: usize) -> Self {
        Self { rows: (0..rows).map(|_| GuideRow::start(guide, &[])).collect(), guide: guide.clone() }
    }

    /// The mask of each row; waits for them. One without a token: the answer is complete.
    ///
    /// # Errors
    /// A dead end.
    pub fn masks(&mut self) -> Result<Vec<&TokenMask>> {
        self.rows.iter_mut().map(GuideRow::mask).collect()
    }

    /// Gives each row its next token; `None` begins a new answer.
    pub fn advance(&mut self, tokens: &[Option<TokenId>]) {
        for (row, token) in self.rows.iter_mut().zip(tokens) {
            match token {
                Some(token) => row.advance(*token),
                None => *row = GuideRow::start(&self.guide, &[]),
            }
        }
    }
}

impl Drop for GuideRow {
    fn drop(&mut self) {
        let here = match std::mem::replace(&mut *self.answer.turn.lock(), Waiting::Gone) {
            Waiting::Here(turn) => Some(turn),
            Waiting::Coming | Waiting::Gone => None,
        };
        if let Some(turn) = self.turn.take().or(here) {
            self.guide.take_back(*turn.matcher);
        }
    }
}

impl std::fmt::Debug for GuideRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GuideRow")
    }
}
