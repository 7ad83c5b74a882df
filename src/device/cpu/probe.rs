//! The machine's limits, measured: what `trtllm bench` sets beside its figures.

use super::CpuDevice;
use super::Isa;
use super::simd::{Float, Kernel, LINE_BYTES, MAX_LANES, Simd, dispatch};
use crate::device::{Buffer, SharedDevice};
use crate::error::Result;
use half::bf16;
use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that are read: many times any cache's size.
const BUFFER_BYTES: usize = 512 << 20;
/// Bytes of a task.
const PIECE_BYTES: usize = 1 << 20;
/// Tasks that are timed together: about one matrix of a model, so that a moment without neighbours is enough.
const SLICE_PIECES: usize = 32;
/// Lines read at once: enough independent additions that memory is what they wait for.
const LINES: usize = 8;
/// Bytes that the prefetch runs ahead.
const AHEAD_BYTES: usize = 8 << 10;
/// Independent additions in flight: latency × throughput of any CPU so far.
const CHAINS: usize = 12;
const FMA_STEPS: usize = 1 << 20;
const PRODUCT_STEPS: usize = 1 << 10;
/// The instruction spares the widening of weights, so that it may be a little slower itself.
const SLOWER_AT_MOST: f64 = 1.1;
/// Time for one figure.
const BUDGET: Duration = Duration::from_millis(300);

/// Bytes per second that all threads of the device together read from memory, on huge pages where the system has them.
///
/// # Errors
/// When there is no memory for the buffer.
pub fn read_bandwidth_bytes_per_s(device: &Arc<CpuDevice>) -> Result<f64> {
    let shared: SharedDevice = device.clone();
    let buffer = Buffer::new(&shared, BUFFER_BYTES, "measuring the memory's read bandwidth")?;
    let start = buffer.raw().addr as usize;
    device.pool.run(BUFFER_BYTES / PIECE_BYTES, &|piece| {
        // SAFETY: pieces are disjoint parts of the buffer.
        unsafe { std::ptr::write_bytes((start + piece * PIECE_BYTES) as *mut u8, 1, PIECE_BYTES) };
    })?;
    let mut first = 0;
    let seconds = best_seconds(|| {
        let slice = start + first * PIECE_BYTES;
        first = (first + SLICE_PIECES) % (BUFFER_BYTES / PIECE_BYTES);
        device.pool.run(SLICE_PIECES, &|piece| {
            let piece = slice + piece * PIECE_BYTES;
            // SAFETY: the device has this instruction set; the piece lies in the buffer.
            unsafe { dispatch(device.isa, Read { bytes: piece..piece + PIECE_BYTES }) };
        })
    })?;
    Ok((SLICE_PIECES * PIECE_BYTES) as f64 / seconds)
}

/// f32 operations per second, a fused multiply-add being two, that all threads of the device together reach in
/// registers.
///
/// # Errors
/// When a thread fails.
pub fn fma_flops_per_s(device: &CpuDevice) -> Result<f64> {
    let threads = device.pool.num_threads();
    // SAFETY: the device has this instruction set.
    let flops = |task: usize| unsafe { dispatch(device.isa, Multiply { seed: task as f32 }) };
    let flops_of_a_task = flops(0);
    let seconds = best_seconds(|| {
        device.pool.run(threads, &|task| {
            black_box(flops(task));
        })
    })?;
    Ok((flops_of_a_task * threads) as f64 / seconds)
}

/// Whether dot products of bf16 weights take no longer by the instruction for them than by multiply-adds. Takes less than
/// a millisecond. Asked on CPUs that have it.
pub(super) fn is_bf16_dot_product_fast() -> bool {
    const RUNS: usize = 16;
    let seconds = |isa: Isa| {
        let run = || {
            let start = Instant::now();
            // SAFETY: this CPU has both instruction sets.
            unsafe { dispatch(isa, Products) };
            start.elapsed().as_secs_f64()
        };
        (0..RUNS).map(|_| run()).fold(f64::INFINITY, f64::min)
    };
    seconds(Isa::Avx512Bf16) < SLOWER_AT_MOST * seconds(Isa::Avx512)
}

/// The shortest of as many runs as fit into the budget.
fn best_seconds(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while best == f64::INFINITY || begin.elapsed() < BUDGET {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Reads addresses once, which the kernel's user vouches for.
struct Read {
    bytes: Range<usize>,
}

impl Kernel for Read {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let lanes_of_line = LINE_BYTES / size_of::<f32>();
        // SAFETY: by the field's contract; prefetches may leave the range.
        unsafe {
            let mut sums = [S::splat(0.0); LINES];
            for start in self.bytes.step_by(LINES * LINE_BYTES) {
                for (line, sum) in sums.iter_mut().enumerate() {
                    let address = start + line * LINE_BYTES;
                    S::prefetch((address + AHEAD_BYTES) as *const u8);
                    for lane in (0..lanes_of_line).step_by(S::LANES) {
                        *sum = S::add(*sum, S::load((address as *const f32).add(lane)));
                    }
                }
            }
            for sum in sums {
                black_box(S::sum(sum));
            }
        }
    }
}

/// Dot products of bf16 weights, in registers.
struct Products;

impl Kernel for Products {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: two vectors of weights are there.
        unsafe {
            let weights = black_box([bf16::ONE; 2 * MAX_LANES]);
            let x = [bf16::arrange::<S>(S::splat(black_box(1.0)), S::splat(black_box(2.0))); CHAINS];
            let mut sums = [S::splat(0.0); CHAINS];
            for _ in 0..PRODUCT_STEPS {
                bf16::add_products::<S, CHAINS>(&mut sums, weights.as_ptr(), &x);
            }
            for sum in sums {
                black_box(S::sum(sum));
            }
        }
    }
}

/// Fused multiply-adds in registers. How many operations they were.
struct Multiply {
    seed: f32,
}

impl Kernel for Multiply {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // SAFETY: no memory but the stack's.
        unsafe {
            let factor = S::splat(black_box(0.999 + self.seed * 1e-6));
            let mut sums = [S::splat(black_box(self.seed)); CHAINS];
            for _ in 0..FMA_STEPS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, factor, factor);
                }
            }
            for sum in sums {
                black_box(S::sum(sum));
            }
        }
        2 * FMA_STEPS * CHAINS * S::LANES
    }
}

#[cfg(test)]
mod tests {
    use super::super::CpuOptions;
    use super::*;

    #[test]
    fn the_limits_are_positive_numbers() {
        let device = CpuDevice::new(CpuOptions::default()).unwrap();
        for limit in [read_bandwidth_bytes_per_s(&device).unwrap(), fma_flops_per_s(&device).unwrap()] {
            assert!(limit.is_finite() && limit > 1e6, "{limit}");
        }
    }
}
