//! Tensors from mapped files to the device, by several threads, piece by piece in the order of the files: what the host
//! holds at a time is a few pieces for each thread.

use super::formats::{MappedBytes, StoredTensor, append};
use super::pieces::View;
use crate::device::{DType, SharedDevice, Tensor, Transfers};
use crate::error::Result;
use half::{bf16, f16};
use parking_lot::{Condvar, Mutex};
use std::ops::Range;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Bytes that are read, cast and copied at once; one row where that is longer.
pub(super) const PIECE_BYTES: usize = 4 << 20;
/// More threads do not read faster.
const MAX_THREADS: usize = 16;
/// Bytes of files that the system reads while those before them are copied: enough for a fast disk to be busy.
const READ_AHEAD_BYTES: usize = 64 << 20;
/// Host memory that all threads together take for tensors which are put together or turned, if one alone does not take
/// more.
const MAX_SCRATCH_BYTES: usize = 1 << 30;
/// Pieces of one thread on their way to a device that is not the host.
const PIECES_IN_FLIGHT: usize = 2;

/// Rows on their way.
pub(super) struct Copy<'a> {
    /// `[view.rows, cols]`.
    pub out: Tensor,
    pub stored: StoredTensor<'a>,
    pub view: View,
    pub change: Change,
}

/// What is done to the numbers on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// 1 is added to every element, which is F32.
    PlusOne,
    /// Every row is divided by its length.
    UnitRows,
}

/// The least length that a row is divided by.
const LEAST_LENGTH: f32 = 1e-12;

impl Copy<'_> {
    /// Rows that are copied at once: all, where they do not lie behind each other.
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.view.rows;
        let row_bytes = (self.out.cols() * self.out.dtype().size()).max(1);
        let at_once = if self.is_contiguous() { (PIECE_BYTES / row_bytes).max(1) } else { rows.max(1) };
        (0..rows).step_by(at_once).map(move |start| start..(start + at_once).min(rows))
    }

    fn is_contiguous(&self) -> bool {
        self.stored.cols() == self.out.cols() && self.view.is_contiguous(self.out.cols())
    }

    /// Rows of the stored tensor among which `rows` are.
    fn stored_rows(&self, rows: &Range<usize>) -> Range<usize> {
        if self.is_contiguous() {
            let first = self.view.offset / self.out.cols();
            return first + rows.start..first + rows.end;
        }
        let (span, cols) = (self.view.span(self.out.cols()), self.stored.cols());
        span.start / cols..span.end.div_ceil(cols)
    }

    /// Host memory that [`Copy::run`] takes beyond a piece or two.
    fn scratch_bytes(&self, rows: &Range<usize>) -> usize {
        let elements = if self.is_contiguous() { 0 } else { self.stored_rows(rows).len() * self.stored.cols() };
        elements * self.out.dtype().size() * 2
    }

    /// Copies `rows`; unchanged bytes go from the file to where the device takes them.
    fn run(&self, to: &mut Destination<'_>, rows: &Range<usize>) -> Result<()> {
        let (part, stored) = (self.out.row_range(rows.start, rows.len()), self.stored_rows(rows));
        let in_place = self.is_contiguous() && self.change == Change::None;
        if let Some(mapped) = self.stored.borrow(stored.clone(), self.out.dtype()).filter(|_| in_place) {
            return to.copy(&part, &mapped);
        }
        self.convert(stored, &mut to.scratch);
        to.copy_scratch(&part)
    }

    /// Puts the elements of `stored_rows` that are asked for into `out`, as the device wants them.
    fn convert(&self, stored_rows: Range<usize>, out: &mut Vec<u8>) {
        let (dtype, cols) = (self.out.dtype(), self.out.cols());
        out.clear();
        if self.is_contiguous() {
            self.stored.read(stored_rows, dtype, out);
        } else {
            let mut elements = Vec::new();
            self.stored.read(stored_rows.clone(), dtype, &mut elements);
            self.view.gather(&elements, stored_rows.start * self.stored.cols(), dtype.size(), cols, out);
        }
        match self.change {
            Change::None => {}
            Change::PlusOne => {
                let more: Vec<f32> = floats(out, DType::F32).map(|value| value + 1.0).collect();
                replace(out, &more, dtype);
            }
            Change::UnitRows => {
                let mut values: Vec<f32> = floats(out, dtype).collect();
                values.chunks_mut(cols.max(1)).for_each(scale_to_unit);
                replace(out, &values, dtype);
            }
        }
    }
}

/// One thread's way to the device.
struct Destination<'a> {
    device: &'a SharedDevice,
    transfers: Box<dyn Transfers>,
    piece_bytes: usize,
    scratch: Vec<u8>,
}

impl<'a> Destination<'a> {
    /// For pieces of up to so many bytes; larger ones take another way.
    fn new(device: &'a SharedDevice, piece_bytes: usize) -> Result<Self> {
        let transfers = device.transfers(piece_bytes, 0, PIECES_IN_FLIGHT)?;
        Ok(Self { device, transfers, piece_bytes, scratch: Vec::new() })
    }

    fn copy(&mut self, part: &Tensor, from: &MappedBytes<'_>) -> Result<()> {
        match part.bytes() <= self.piece_bytes {
            true => self.transfers.fill(part, &mut |out| from.file.read(from.bytes, out)),
            false => self.device.upload(part, from.bytes),
        }
    }

    fn copy_scratch(&mut self, part: &Tensor) -> Result<()> {
        if part.bytes() <= self.piece_bytes {
            return self.transfers.upload(part, &self.scratch);
        }
        // Memory for a large tensor is given back at once: the other threads have theirs.
        self.device.upload(part, &std::mem::take(&mut self.scratch))
    }
}

fn floats(bytes: &[u8], dtype: DType) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(dtype.size()).map(move |element| match (dtype, element) {
        (DType::F16, &[a, b]) => f16::from_ne_bytes([a, b]).to_f32(),
        (DType::BF16, &[a, b]) => bf16::from_ne_bytes([a, b]).to_f32(),
        (_, &[a, b, c, d]) => f32::from_ne_bytes([a, b, c, d]),
        _ => 0.0,
    })
}

fn replace(bytes: &mut Vec<u8>, values: &[f32], dtype: DType) {
    bytes.clear();
    append(values, dtype, bytes);
}

fn scale_to_unit(row: &mut [f32]) {
    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(LEAST_LENGTH);
    row.iter_mut().for_each(|x| *x /= length);
}

/// A piece of a copy, and where its bytes come from.
struct Job<'c, 'a> {
    copy: &'c Copy<'a>,
    rows: Range<usize>,
    sources: Vec<MappedBytes<'a>>,
    /// Bytes of the jobs before it.
    position: usize,
}

impl Job<'_, '_> {
    /// On the device.
    fn bytes(&self) -> usize {
        self.rows.len() * self.copy.out.cols() * self.copy.out.dtype().size()
    }
}

/// All pieces in the order of the files, which is the fastest to read.
fn in_file_order<'c, 'a>(copies: &'c [Copy<'a>]) -> Vec<Job<'c, 'a>> {
    let job = |copy: &'c Copy<'a>, rows: Range<usize>| {
        let sources = copy.stored.mapped(copy.stored_rows(&rows));
        Job { copy, rows, sources, position: 0 }
    };
    let mut jobs: Vec<_> = copies.iter().flat_map(|copy| copy.pieces().map(move |rows| job(copy, rows))).collect();
    jobs.sort_by_key(|job| job.sources.first().map_or(0, |source| source.bytes.as_ptr() as usize));
    let mut position = 0;
    for job in &mut jobs {
        job.position = position;
        position += job.sources.iter().map(|source| source.bytes.len()).sum::<usize>();
    }
    jobs
}

/// Asks for the bytes of jobs before their turn comes.
struct ReadAhead<'j, 'c, 'a> {
    jobs: &'j [Job<'c, 'a>],
    next: AtomicUsize,
}

impl ReadAhead<'_, '_, '_> {
    /// To be called when `job` begins.
    fn advance(&self, job: &Job<'_, '_>) {
        let until = job.position + READ_AHEAD_BYTES;
        loop {
            let next = self.next.load(Ordering::Relaxed);
            let Some(soon) = self.jobs.get(next).filter(|soon| soon.position < until) else { return };
            if self.next.compare_exchange(next, next + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                soon.sources.iter().for_each(|source| source.file.will_need(source.bytes));
            }
        }
    }
}

/// Bounds what all threads hold: a thread waits until there is room for its next piece, or nobody holds anything.
struct Budget {
    held_bytes: Mutex<usize>,
    given_back: Condvar,
}

impl Budget {
    fn new() -> Self {
        Self { held_bytes: Mutex::new(0), given_back: Condvar::new() }
    }

    fn take(&self, bytes: usize) -> Share<'_> {
        let mut held = self.held_bytes.lock();
        if bytes > 0 {
            self.given_back.wait_while(&mut held, |held| *held > 0 && *held + bytes > MAX_SCRATCH_BYTES);
            *held += bytes;
        }
        Share { budget: self, bytes }
    }
}

/// What one thread holds until it drops it.
struct Share<'b> {
    budget: &'b Budget,
    bytes: usize,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.held_bytes.lock() -= self.bytes;
        self.budget.given_back.notify_all();
    }
}

/// Copies everything and logs how far it is.
///
/// # Errors
/// The first failed upload; the others are not waited for longer than their piece takes.
pub(super) fn copy_all(device: &SharedDevice, copies: &[Copy<'_>]) -> Result<()> {
    let jobs = in_file_order(copies);
    let ahead = ReadAhead { jobs: &jobs, next: AtomicUsize::new(0) };
    let budget = Budget::new();
    let total_bytes = copies.iter().map(|copy| copy.out.bytes()).sum();
    let progress = Progress::new(total_bytes);
    // Page-locked memory is dear to make: a small model takes no more than it has.
    let piece_bytes = jobs.iter().map(Job::bytes).max().unwrap_or(0).min(PIECE_BYTES);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Result<()> {
        let fail = |_: &_| failed.store(true, Ordering::Relaxed);
        let mut destination = Destination::new(device, piece_bytes).inspect_err(fail)?;
        while !failed.load(Ordering::Relaxed) {
            let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            ahead.advance(job);
            let _share = budget.take(job.copy.scratch_bytes(&job.rows));
            job.copy.run(&mut destination, &job.rows).inspect_err(fail)?;
            progress.add(job.bytes());
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let threads = threads.min(jobs.len()).min(total_bytes.div_ceil(PIECE_BYTES));
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let join = |helper: thread::ScopedJoinHandle<'_, Result<()>>| match helper.join() {
            Ok(result) => result,
            Err(payload) => panic::resume_unwind(payload),
        };
        helpers.into_iter().map(join).fold(mine, Result::and)
    })
}

/// Logs every tenth of what is to be loaded.
struct Progress {
    total_bytes: usize,
    done_bytes: AtomicUsize,
}

impl Progress {
    fn new(total_bytes: usize) -> Self {
        Self { total_bytes, done_bytes: AtomicUsize::new(0) }
    }

    fn add(&self, bytes: usize) {
        let before = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        let tenths = |done: usize| done * 10 / self.total_bytes.max(1);
        let done = before + bytes;
        if tenths(done) > tenths(before) {
            tracing::info!(
                "loading weights: {} %, {} of {} MiB",
                tenths(done).min(10) * 10,
                done >> 20,
                self.total_bytes >> 20
            );
        }
    }
}
