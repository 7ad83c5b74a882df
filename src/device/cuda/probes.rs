//! What the GPU can do at most, measured: the limits that figures are put beside.

use super::kernels::{ReadArgs, launch};
use super::{CudaDevice, driver};
use crate::device::bench::Limits;
use crate::device::{Buffer, DType, Device, SharedDevice, Tensor, Weight};
use crate::error::Result;
use std::sync::Arc;

impl CudaDevice {
    /// Seconds that the GPU takes for `work`, which only enqueues: the median of `repeats` after one warm-up.
    pub fn seconds(&self, repeats: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        work()?;
        let mut times = Vec::with_capacity(repeats);
        for _ in 0..repeats.max(1) {
            let start = self.context.record_event()?;
            work()?;
            let end = self.context.record_event()?;
            times.push(start.seconds_until(&end)?);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Bytes a second of a kernel that only reads, and operations a second of a large bfloat16 product of random numbers.
    /// Takes a second and 1.4 GB.
    pub fn measure_limits(self: &Arc<Self>) -> Result<Limits> {
        const BYTES: usize = 1 << 30;
        let shared: SharedDevice = self.clone();
        let from = Buffer::new(&shared, BYTES, "a measurement")?;
        let sink = Buffer::new(&shared, 256, "a measurement")?;
        let read = self.seconds(7, &mut || self.read_all(from.raw().addr, BYTES, sink.raw().addr))?;
        Ok(Limits { read_bytes_per_s: BYTES as f64 / read, flops_per_s: self.measure_product()? })
    }

    fn read_all(&self, from: u64, bytes: usize, sink: u64) -> Result<()> {
        let args = ReadArgs { from, vectors: (bytes / 16) as i64, sink };
        let geometry =
            driver::Geometry { grid: (self.properties.multiprocessors * 2, 1, 1), block: (1024, 1), shared_bytes: 0 };
        // SAFETY: the kernel takes this record; the range lies in one allocation.
        unsafe { launch(&self.context, self.kernels.read_bandwidth, geometry, &args, []) }
    }

    fn measure_product(self: &Arc<Self>) -> Result<f64> {
        const N: usize = 8192;
        let shared: SharedDevice = self.clone();
        let matrix = || Tensor::zeros(&shared, N, N, DType::BF16, "a measurement");
        let (x, weight, out) = (matrix()?, matrix()?, matrix()?);
        let noise = noise_bf16(N * N);
        self.upload(&x, &noise)?;
        self.upload(&weight, &noise)?;
        let weight = Weight::Dense(weight);
        let seconds = self.seconds(9, &mut || self.linear(&out, &x, &weight, None))?;
        Ok(2.0 * (N as f64).powi(3) / seconds)
    }
}

/// Numbers between −1 and 1: products of zeros run faster than those of real data.
pub(super) fn noise_bf16(elements: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        half::bf16::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0).to_le_bytes()
    };
    std::iter::repeat_with(next).take(elements).flatten().collect()
}
