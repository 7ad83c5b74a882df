//! Tensors from mapped files to the device, by several threads, piece by piece: what the host holds at a time is one
//! piece for each thread.

use super::formats::StoredTensor;
use crate::device::{SharedDevice, Tensor};
use crate::error::Result;
use std::ops::Range;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Bytes that are read, cast and copied at once; one row where that is longer.
pub(super) const PIECE_BYTES: usize = 4 << 20;
/// More threads do not read faster.
const MAX_THREADS: usize = 16;

/// A tensor on its way.
pub(super) struct Copy<'a> {
    pub out: Tensor,
    pub stored: StoredTensor<'a>,
}

impl Copy<'_> {
    /// Rows of the stored tensor that make a piece.
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.stored.rows();
        let row_bytes = (self.stored.cols() * self.out.dtype().size()).max(1);
        let at_once = (PIECE_BYTES / row_bytes).max(1);
        (0..rows).step_by(at_once).map(move |start| start..(start + at_once).min(rows))
    }

    /// Copies some rows. The rows of a vector are its elements, which lie in one row of `out`.
    fn run(&self, device: &SharedDevice, rows: Range<usize>, scratch: &mut Vec<u8>) -> Result<()> {
        let part = match self.stored.shape.len() {
            0 | 1 => self.out.columns(rows.start, rows.len()),
            _ => self.out.row_range(rows.start, rows.len()),
        };
        match self.stored.borrow(rows.clone(), part.dtype()) {
            Some(bytes) => device.upload(&part, bytes),
            None => {
                scratch.clear();
                self.stored.read(rows, part.dtype(), scratch);
                device.upload(&part, scratch)
            }
        }
    }
}

/// Copies everything and logs how far it is.
///
/// # Errors
/// The first failed upload; the others are not waited for longer than their piece takes.
pub(super) fn copy_all(device: &SharedDevice, copies: &[Copy<'_>]) -> Result<()> {
    let pieces: Vec<_> = copies.iter().flat_map(|copy| copy.pieces().map(move |rows| (copy, rows))).collect();
    let progress = Progress::new(copies.iter().map(|copy| copy.out.bytes()).sum());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Result<()> {
        let mut scratch = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let Some((copy, rows)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let bytes = rows.len() * copy.stored.cols() * copy.out.dtype().size();
            copy.run(device, rows.clone(), &mut scratch).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            progress.add(bytes);
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(pieces.len());
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
