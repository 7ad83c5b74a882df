//! What else is in the batch, how a prompt is cut and how many threads there are changes no bit of a row's result.

use crate::attention::{Filled, Shape, attend};
use crate::harness::{FLOATS, Host, OnDevice, Random};
use crate::{default_device, host_devices};
use triton_trtllm::device::cpu::{CpuDevice, CpuOptions, Isa};
use triton_trtllm::device::{DType, Device, SharedDevice, Weight};

fn linear(device: &SharedDevice, x: &Host, weight: &Weight) -> Host {
    let x = OnDevice::new(device, x, DType::F32, 0);
    let out = OnDevice::poisoned(device, x.view.rows(), weight.out_features(), DType::F32, 0);
    device.linear(&out.view, &x.view, weight, None).unwrap();
    out.read(device)
}

#[test]
fn a_row_of_linear_has_the_same_bits_in_every_batch() {
    let (n, total) = (61, 41);
    let mut random = Random::fresh();
    for (name, device) in host_devices() {
        for (dtype, k) in FLOATS.into_iter().flat_map(|dtype| [(dtype, 203), (dtype, 2177)]) {
            let weight = random.matrix(n, k).rounded(dtype);
            let weight = Weight::Dense(OnDevice::new(&device, &weight, dtype, 0).view);
            let x = random.matrix(total, k).rounded(DType::F32);
            let together = linear(&device, &x, &weight);
            for tokens in [1, 2, 5, 16, 17] {
                for first in (0..total - tokens).step_by(7) {
                    let rows = Host { rows: tokens, cols: k, data: x.data[first * k..][..tokens * k].to_vec() };
                    let alone = linear(&device, &rows, &weight);
                    let expected = &together.data[first * n..][..tokens * n];
                    assert_eq!(alone.data, expected, "{name}, seed {}: {dtype}, {tokens} rows of {total}", random.seed);
                }
            }
        }
    }
}

#[test]
fn attention_has_the_same_bits_however_a_prompt_is_cut() {
    let mut random = Random::fresh();
    for (name, device) in host_devices() {
        for (dtype, window) in [(DType::F32, None), (DType::BF16, Some(50)), (DType::F16, None)] {
            let shape = Shape { kv_heads: 2, group: 3, dim: 40, block: 16, window, sink_tokens: 0, softcap: None };
            let (len, width) = (150, 2 * 3 * 40);
            let filled = Filled::new(&device, &mut random, shape, &[len], dtype);
            let q = random.matrix(len, width).rounded(DType::F32);
            let whole = attend(&device, &filled, &q, &[(0, len)], DType::F32);
            for step in [1, 13, 64] {
                for first in (0..len).step_by(step) {
                    let n = step.min(len - first);
                    let part = Host { rows: n, cols: width, data: q.data[first * width..][..n * width].to_vec() };
                    let part = attend(&device, &filled, &part, &[(first, n)], DType::F32);
                    let expected = &whole.data[first * width..][..n * width];
                    assert_eq!(part.data, expected, "{name}, seed {}: {dtype}, {n} tokens at {first}", random.seed);
                }
            }
        }
    }
}

#[test]
fn the_device_takes_the_best_of_the_machine_and_says_so() {
    let device = default_device();
    assert_eq!(device.isa(), Isa::fastest());
    assert!(Isa::available().contains(&device.isa()));
    let info = device.info();
    assert!(info.description.starts_with("CPU: ") && info.host_accessible, "{info:?}");
    assert!(info.free_bytes > 0 && info.free_bytes <= info.total_bytes, "{info:?}");
}

#[test]
fn no_threads_is_an_error() {
    let error = CpuDevice::new(CpuOptions { threads: Some(0), ..CpuOptions::default() }).err().unwrap();
    assert!(error.message().contains("at least 1 thread"), "{error}");
}
