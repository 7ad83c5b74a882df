//! The device that is measured, and its limits.

use crate::device::bench::{Limits, OpFigure, bench_ops};
use crate::device::cpu::{CpuDevice, CpuOptions, probe};
use crate::device::{DType, DeviceKind, SharedDevice};
use crate::error::{Error, Result};

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

/// Measures single operations. `report` gets each figure when it is there.
pub(super) fn measure_ops(
    kind: DeviceKind,
    threads: Option<usize>,
    dtype: DType,
    report: &mut dyn FnMut(&OpFigure),
) -> Result<()> {
    let on_cpu = |report: &mut dyn FnMut(&OpFigure)| {
        let (device, limits) = open_cpu(threads)?;
        bench_ops(&device, limits, dtype, report)
    };
    match kind {
        DeviceKind::Cpu => on_cpu(report),
        DeviceKind::Cuda => measure_gpu_ops(dtype, report),
        DeviceKind::Auto if open_gpu().is_ok() => measure_gpu_ops(dtype, report),
        DeviceKind::Auto => on_cpu(report),
    }
}

#[cfg(feature = "cuda")]
fn open_gpu() -> Result<(SharedDevice, Limits)> {
    let device = crate::device::cuda::CudaDevice::open(0, &crate::runner::cuda_options())?;
    let limits = device.measure_limits()?;
    Ok((device, limits))
}

#[cfg(feature = "cuda")]
fn measure_gpu_ops(dtype: DType, report: &mut dyn FnMut(&OpFigure)) -> Result<()> {
    if dtype != DType::BF16 {
        return Err(Error::invalid(format!("--dtype {dtype}: operations on a GPU are measured in bfloat16")));
    }
    let device = crate::device::cuda::CudaDevice::open(0, &crate::runner::cuda_options())?;
    let limits = device.measure_limits()?;
    device.bench_ops(limits, report)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu() -> Result<(SharedDevice, Limits)> {
    Err(Error::unsupported("this program was built without CUDA"))
}

#[cfg(not(feature = "cuda"))]
fn measure_gpu_ops(_dtype: DType, _report: &mut dyn FnMut(&OpFigure)) -> Result<()> {
    open_gpu().map(|_| ())
}
