//! The device's operations against plain loops in f64: one table of operation × shape × type, run on every device.
//!
//! Inputs are random, fresh in each run; a failure prints the seed, and `OPS_SEED=<seed>` brings it back. Outputs start
//! as not-a-number and are views inside wider tensors, so that what is not written, or written beside, shows.
//! A further device is one more entry of [`devices`].

#[path = "ops/attention.rs"]
mod attention;
#[path = "ops/edits.rs"]
mod edits;
#[path = "ops/experts.rs"]
mod experts;
#[path = "ops/functions.rs"]
mod functions;
#[path = "ops/harness.rs"]
mod harness;
#[path = "ops/invariance.rs"]
mod invariance;
#[path = "ops/linear.rs"]
mod linear;
#[path = "ops/sampling.rs"]
mod sampling;
#[path = "ops/small.rs"]
mod small;

use std::io::Write;
use std::sync::{Arc, OnceLock};
use triton_trtllm::device::cpu::{CpuDevice, CpuOptions, Isa};
use triton_trtllm::device::{DeviceKind, DeviceOptions, SharedDevice, open};

/// Every device that this machine has, by name. `OPS_DEVICE=cpu` or `cuda` leaves the others out.
fn devices() -> Vec<(String, SharedDevice)> {
    match std::env::var("OPS_DEVICE").as_deref() {
        Ok("cpu") => host_devices(),
        Ok("cuda") => vec![("CUDA".into(), cuda().expect("OPS_DEVICE=cuda needs a GPU"))],
        Ok(other) => panic!("OPS_DEVICE is {other}, not cpu or cuda"),
        Err(_) => host_devices().into_iter().chain(cuda().map(|device| ("CUDA".into(), device))).collect(),
    }
}

/// The first GPU. Where there is none, the reason is printed once, past the test runner's capture.
fn cuda() -> Option<SharedDevice> {
    static CUDA: OnceLock<Option<SharedDevice>> = OnceLock::new();
    let opened = || match open(DeviceKind::Cuda, &[], &DeviceOptions::default()) {
        Ok(device) => {
            tell(&format!("checked on {}", device.info().description));
            Some(device)
        }
        Err(why) => {
            tell(&format!("CUDA was NOT checked: {why}"));
            None
        }
    };
    CUDA.get_or_init(opened).clone()
}

/// A line on the standard error stream that the test runner does not hold back.
fn tell(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The CPU in all its variants: what the host can look into, and what checks ids and blocks as it goes.
fn host_devices() -> Vec<(String, SharedDevice)> {
    let mut devices: Vec<(String, SharedDevice)> = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 3] {
            let device = CpuDevice::new(CpuOptions { threads: Some(threads), isa: Some(isa) }).unwrap();
            devices.push((format!("{isa}, {threads} threads"), device));
        }
    }
    devices
}

/// A device with all options at their defaults.
fn default_device() -> Arc<CpuDevice> {
    CpuDevice::new(CpuOptions::default()).unwrap()
}
