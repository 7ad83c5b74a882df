//! Tensors from mapped files to the device, by several threads, piece by piece: what the host holds at a time is one
//! piece for each thread.

use super::formats::{MappedBytes, StoredTensor, push};
use super::pieces::View;
use crate::device::{DType, SharedDevice, Tensor};
use crate::error::Result;
use half::{bf16, f16};
use std::ops::Range;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Bytes that are read, cast and copied at once; one row where that is longer.
pub(super) const PIECE_BYTES: usize = 4 << 20;
/// More threads do not read faster.
const MAX_THREADS: usize = 16;

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

    fn run(&self, device: &SharedDevice, rows: Range<usize>, scratch: &mut Vec<u8>) -> Result<()> {
        let (part, dtype) = (self.out.row_range(rows.start, rows.len()), self.out.dtype());
        scratch.clear();
        if self.is_contiguous() {
            let first = self.view.offset / self.out.cols();
            let rows = first + rows.start..first + rows.end;
            match self.stored.borrow(rows.clone(), dtype).filter(|_| self.change == Change::None) {
                Some(mapped) => return upload(device, &part, &mapped),
                None => self.stored.read(rows, dtype, scratch),
            }
        } else {
            let (span, cols) = (self.view.span(self.out.cols()), self.stored.cols());
            let stored_rows = span.start / cols..span.end.div_ceil(cols);
            let mut elements = Vec::new();
            self.stored.read(stored_rows.clone(), dtype, &mut elements);
            self.view.gather(&elements, stored_rows.start * cols, dtype.size(), self.out.cols(), scratch);
        }
        match self.change {
            Change::None => {}
            Change::PlusOne => {
                let more: Vec<f32> = floats(scratch, DType::F32).map(|value| value + 1.0).collect();
                replace(scratch, &more, dtype);
            }
            Change::UnitRows => {
                let mut values: Vec<f32> = floats(scratch, dtype).collect();
                values.chunks_mut(self.out.cols().max(1)).for_each(scale_to_unit);
                replace(scratch, &values, dtype);
            }
        }
        device.upload(&part, scratch)
    }
}

/// Bytes of a file, unchanged.
fn upload(device: &SharedDevice, part: &Tensor, mapped: &MappedBytes<'_>) -> Result<()> {
    let in_place = mapped.file.and_then(|file| device.fill(part, &mut |out| file.read(mapped.bytes, out)));
    in_place.unwrap_or_else(|| device.upload(part, mapped.bytes))
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
    values.iter().for_each(|&value| push(value, dtype, bytes));
}

fn scale_to_unit(row: &mut [f32]) {
    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(LEAST_LENGTH);
    row.iter_mut().for_each(|x| *x /= length);
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
            let bytes = rows.len() * copy.out.cols() * copy.out.dtype().size();
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
