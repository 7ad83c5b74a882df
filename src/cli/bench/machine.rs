//! The device that is measured, and its limits.

use crate::device::bench::Limits;
use crate::device::cpu::{CpuDevice, CpuOptions, probe};
use crate::device::{DeviceKind, SharedDevice};
use crate::error::Result;

/// Opens the device and measures what it can do at best.
pub(super) fn open(kind: DeviceKind, threads: Option<usize>) -> Result<(SharedDevice, Limits)> {
    match kind {
        DeviceKind::Cpu => open_cpu(threads),
        DeviceKind::Cuda => open_gpu(),
        DeviceKind::Auto => open_gpu().or_else(|why| {
            tracing::info!("running on the CPU: {why}");
            open_cpu(threads)
        }),
    }
}

fn open_cpu(threads: Option<usize>) -> Result<(SharedDevice, Limits)> {
    let device = CpuDevice::new(CpuOptions { threads, ..Default::default() })?;
    let limits = Limits {
        read_bytes_per_s: probe::read_bandwidth_bytes_per_s(&device)?,
        flops_per_s: probe::fma_flops_per_s(&device)?,
    };
    Ok((device, limits))
}

#[cfg(feature = "cuda")]
fn open_gpu() -> Result<(SharedDevice, Limits)> {
    let device = crate::device::cuda::CudaDevice::open(0, &crate::runner::cuda_options())?;
    let limits = device.measure_limits()?;
    let limits = Limits { read_bytes_per_s: limits.read_bytes_per_second, flops_per_s: limits.bf16_flops };
    Ok((device, limits))
}

#[cfg(not(feature = "cuda"))]
fn open_gpu() -> Result<(SharedDevice, Limits)> {
    Err(crate::error::Error::unsupported("this program was built without CUDA"))
}
