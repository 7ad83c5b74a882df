//! Prints how fast every CUDA kernel is on the first GPU, beside the limits measured in the same run.

#[cfg(feature = "cuda")]
fn main() -> triton_trtllm::error::Result<()> {
    use triton_trtllm::device::cuda::CudaDevice;
    use triton_trtllm::device::{CudaOptions, Device};

    let device = CudaDevice::open(0, &CudaOptions::default())?;
    println!("{}", device.info().description);
    let limits = device.measure_limits()?;
    println!(
        "limits: read {:.0} GB/s, copy {:.0} GB/s (read and written), 8192^3 bf16 product {:.0} TFLOP/s",
        limits.read_bytes_per_second / 1e9,
        limits.copy_bytes_per_second / 1e9,
        limits.bf16_flops / 1e12
    );
    device.bench_ops(limits, &mut |figure| println!("{figure}"))
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("built without CUDA");
}
