//! Layer norm, functions of single elements, sums; on devices that have them.

use crate::devices;
use crate::harness::{FLOATS, Host, OnDevice, Random, assert_close, unit};
use crate::small::activate;
use triton_trtllm::device::{Activation, DType, Elementwise, Feature, LayerNorm, SharedDevice};

pub const ACTIVATIONS: [Activation; 6] = [
    Activation::Silu,
    Activation::GeluTanh,
    Activation::Gelu,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::ClampedSwish,
];

pub fn devices_with(feature: Feature) -> Vec<(String, SharedDevice)> {
    devices().into_iter().filter(|(_, device)| device.supports(feature)).collect()
}

/// `groups` groups of `width` columns, with parameters for one group or for all.
fn check_layer_norm(random: &mut Random, (width, groups): (usize, usize), of_all: bool, dtype: DType) {
    for (name, device) in devices_with(Feature::LayerNorm) {
        let activations = device.activation_dtype(dtype);
        let x = random.matrix(5, width * groups).rounded(activations);
        let parameters = if of_all { width * groups } else { width };
        let (weight, bias) = (random.matrix(1, parameters).rounded(dtype), random.matrix(1, parameters).rounded(dtype));
        let has_bias = random.below(2) == 1;
        let mut want = Host::zeros(5, width * groups);
        for t in 0..5 {
            for group in 0..groups {
                let x = &x.row(t)[group * width..][..width];
                let mean = x.iter().sum::<f64>() / width as f64;
                let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
                for (i, x) in x.iter().enumerate() {
                    let at = if of_all { group * width + i } else { i };
                    let bias = if has_bias { bias.data[at] } else { 0.0 };
                    want.row_mut(t)[group * width + i] = (x - mean) / (variance + 1e-5).sqrt() * weight.data[at] + bias;
                }
            }
        }
        let weight = OnDevice::new(&device, &weight, dtype, 0).view;
        let bias = OnDevice::new(&device, &bias, dtype, 0).view;
        let x = OnDevice::new(&device, &x, activations, 5);
        let out = OnDevice::poisoned(&device, 5, width * groups, activations, 2);
        for to in [&out, &x] {
            let bias = has_bias.then_some(&bias);
            let args = LayerNorm { out: &to.view, x: &x.view, weight: &weight, bias, group: width, eps: 1e-5 };
            device.layer_norm(&args).unwrap();
        }
        let case = format!("{name}, seed {}: layer_norm {dtype} {groups} x {width}", random.seed);
        let tolerance = |i: usize| 1e-5 + want.data[i].abs() * unit(activations);
        assert_close(&case, &out.read(&device), &want, tolerance);
        assert_close(&format!("{case} in place"), &x.read(&device), &want, tolerance);
    }
}

#[test]
fn layer_norm_of_rows_and_of_heads_also_in_place() {
    let mut random = Random::fresh();
    for dtype in FLOATS {
        for width in [8, 16, 31, 257] {
            for (groups, of_all) in [(1, true), (3, false), (3, true)] {
                check_layer_norm(&mut random, (width, groups), of_all, dtype);
            }
        }
    }
}

fn apply(function: Elementwise, x: f64) -> f64 {
    match function {
        Elementwise::Activate(activation) => activate(activation, x),
        Elementwise::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Elementwise::Scale(factor) => x * f64::from(factor),
        Elementwise::Clamp(bound) => x.clamp(-f64::from(bound), f64::from(bound)),
        Elementwise::Softcap(cap) => f64::from(cap) * (x / f64::from(cap)).tanh(),
    }
}

#[test]
fn functions_of_single_elements() {
    let mut random = Random::fresh();
    let others = [Elementwise::Sigmoid, Elementwise::Scale(-0.3), Elementwise::Clamp(2.5), Elementwise::Softcap(3.0)];
    let functions: Vec<_> = ACTIVATIONS.map(Elementwise::Activate).into_iter().chain(others).collect();
    for (name, device) in devices_with(Feature::Elementwise) {
        for (width, &function) in [1, 37, 2049].into_iter().flat_map(|width| functions.iter().map(move |f| (width, f)))
        {
            let dtype = device.activation_dtype(DType::F32);
            let mut x = random.matrix(3, width);
            x.data.iter_mut().for_each(|value| *value *= 12.0);
            let x = x.rounded(dtype);
            let want = Host { data: x.data.iter().map(|&x| apply(function, x)).collect(), ..x.clone() };
            let x = OnDevice::new(&device, &x, dtype, 3);
            let out = OnDevice::poisoned(&device, 3, width, dtype, 5);
            device.elementwise(&out.view, &x.view, function).unwrap();
            device.elementwise(&x.view, &x.view, function).unwrap();
            let case = format!("{name}, seed {}: {function:?} {width}", random.seed);
            let tolerance = |i: usize| want.data[i].abs() * 2e-6 + 4e-6;
            assert_close(&case, &out.read(&device), &want, tolerance);
            assert_close(&format!("{case} in place"), &x.read(&device), &want, tolerance);
        }
    }
}

#[test]
fn add_sums_rows() {
    let mut random = Random::fresh();
    for (name, device) in devices_with(Feature::Add) {
        let dtype = device.activation_dtype(DType::F32);
        let (sum, x) = (random.matrix(4, 77).rounded(dtype), random.matrix(4, 77).rounded(dtype));
        let want = Host { data: sum.data.iter().zip(&x.data).map(|(a, b)| a + b).collect(), ..sum.clone() };
        let (sum, x) = (OnDevice::new(&device, &sum, dtype, 2), OnDevice::new(&device, &x, dtype, 3));
        device.add(&sum.view, &x.view).unwrap();
        let case = format!("{name}, seed {}: add", random.seed);
        assert_close(&case, &sum.read(&device), &want, |i| want.data[i].abs() * unit(dtype));
    }
}
