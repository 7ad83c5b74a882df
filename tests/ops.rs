//! The device's operations against plain loops in f64: one table of operation × shape × type, run on every device.
//!
//! Inputs are random, fresh in each run; a failure prints the seed, and `OPS_SEED=<seed>` brings it back. Outputs start
//! as not-a-number and are views inside wider tensors, so that what is not written, or written beside, shows.
//! A further device is one more entry of [`devices`].

#[path = "ops/attention.rs"]
mod attention;
#[path = "ops/harness.rs"]
mod harness;
#[path = "ops/invariance.rs"]
mod invariance;
#[path = "ops/linear.rs"]
mod linear;
#[path = "ops/small.rs"]
mod small;

use std::sync::Arc;
use triton_trtllm::device::SharedDevice;
use triton_trtllm::device::cpu::{CpuDevice, CpuOptions, Isa};

/// Every device that this machine has, by name.
fn devices() -> Vec<(String, SharedDevice)> {
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
