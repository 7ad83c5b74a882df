//! `linear`.

use crate::devices;
use crate::functions::ACTIVATIONS;
use crate::harness::{FLOATS, Host, OnDevice, Random, assert_close, unit};
use triton_trtllm::device::cpu::Isa;
use triton_trtllm::device::{DType, SharedDevice, Weight};

struct Case {
    tokens: usize,
    features_in: usize,
    features_out: usize,
    bias: bool,
    gap: usize,
}

fn cases(random: &mut Random) -> Vec<Case> {
    let shapes = [(64, 48), (1, 1), (31, 7), (33, 13), (96, 1), (100, 25), (128, 36), (257, 67), (515, 131)];
    let tokens = (1..=17).chain([33, 70]);
    let mut cases = Vec::new();
    for tokens in tokens {
        for (features_in, features_out) in shapes {
            let (bias, gap) = (random.below(2) == 0, random.below(2) * (1 + random.below(20)));
            cases.push(Case { tokens, features_in, features_out, bias, gap });
        }
    }
    cases
}

fn reference(x: &Host, weight: &Host, bias: Option<&Host>) -> (Host, Host) {
    let (mut out, mut magnitude) = (Host::zeros(x.rows, weight.rows), Host::zeros(x.rows, weight.rows));
    for t in 0..x.rows {
        for n in 0..weight.rows {
            let bias = bias.map_or(0.0, |bias| bias.data[n]);
            let products = || x.row(t).iter().zip(weight.row(n)).map(|(x, w)| x * w);
            out.row_mut(t)[n] = products().sum::<f64>() + bias;
            magnitude.row_mut(t)[n] = products().map(f64::abs).sum::<f64>() + bias.abs();
        }
    }
    (out, magnitude)
}

fn check(name: &str, device: &SharedDevice, random: &mut Random, case: &Case, dtype: DType) {
    let Case { tokens, features_in, features_out, bias, gap } = *case;
    let activations = device.activation_dtype(dtype);
    let x = random.matrix(tokens, features_in).rounded(activations);
    let weight = random.matrix(features_out, features_in).rounded(dtype);
    let bias = bias.then(|| random.matrix(1, features_out).rounded(dtype));
    let x_device = OnDevice::new(device, &x, activations, gap);
    let weight_device = Weight::Dense(OnDevice::new(device, &weight, dtype, 0).view);
    let bias_device = bias.as_ref().map(|bias| OnDevice::new(device, bias, dtype, 0).view);
    let (want, magnitude) = reference(&x, &weight, bias.as_ref());
    for out_dtype in [activations, DType::F32] {
        let out = OnDevice::poisoned(device, tokens, features_out, out_dtype, gap);
        device.linear(&out.view, &x_device.view, &weight_device, bias_device.as_ref()).unwrap();
        let case = format!(
            "{name}, seed {}: linear [{tokens}, {features_in}] · [{features_out}, {features_in}]ᵀ {dtype}, gap {gap}",
            random.seed
        );
        // A device may round the product to the output's type before it adds the bias.
        let product = |i: usize| bias.as_ref().map_or(0.0, |bias| (want.data[i] - bias.data[i % features_out]).abs());
        // Two bf16 numbers hold an activation to one part in 2¹⁶.
        let splits = dtype == DType::BF16 && name.starts_with(&Isa::Avx512Bf16.to_string());
        let activation = if splits { 2f64.powi(-16) } else { 0.0 };
        let tolerance =
            |i: usize| magnitude.data[i] * (2e-6 + activation) + (want.data[i].abs() + product(i)) * unit(out_dtype);
        assert_close(&case, &out.read(device), &want, tolerance);
    }
}

#[test]
fn linear_is_the_product_and_the_bias() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for case in cases(&mut random) {
            let dtype = FLOATS[random.below(3)];
            check(&name, &device, &mut random, &case, dtype);
        }
    }
}

#[test]
fn linear_of_every_type_on_large_shapes() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for dtype in FLOATS {
            for tokens in [1, 6, 50] {
                for (features_in, features_out) in [(1088, 395), (4205, 64)] {
                    let case = Case { tokens, features_in, features_out, bias: true, gap: 8 };
                    check(&name, &device, &mut random, &case, dtype);
                }
            }
        }
    }
}

#[test]
fn a_product_with_gates_equals_the_product_and_then_the_gates() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for (features_in, features_out) in [(8, 1), (64, 7), (520, 37), (4096, 100), (1032, 2049)] {
            for (tokens, dtype) in (1..=9).flat_map(|tokens| [DType::F16, DType::BF16].map(|dtype| (tokens, dtype))) {
                let activations = device.activation_dtype(dtype);
                let gap = 8 * random.below(3);
                let mut x = random.matrix(tokens, features_in);
                // So that no gate overflows.
                x.data.iter_mut().for_each(|value| *value /= (features_in as f64).sqrt());
                let x = OnDevice::new(&device, &x, activations, gap);
                let weight = random.matrix(2 * features_out, features_in);
                let weight = Weight::Dense(OnDevice::new(&device, &weight, dtype, 0).view);
                if !device.gates_products(&x.view, &weight) {
                    assert!(tokens > 8 || name != "CUDA", "few rows go through one pass on a GPU");
                    continue;
                }
                let activation = ACTIVATIONS[random.below(ACTIVATIONS.len())];
                let both = OnDevice::poisoned(&device, tokens, 2 * features_out, activations, gap);
                device.linear(&both.view, &x.view, &weight, None).unwrap();
                let want = OnDevice::poisoned(&device, tokens, features_out, activations, gap);
                device.gated_activation(&want.view, &both.view, activation).unwrap();
                let out = OnDevice::poisoned(&device, tokens, features_out, activations, gap);
                device.gated_linear(&out.view, &x.view, &weight, activation).unwrap();
                let case = format!(
                    "{name}, seed {}: [{tokens}, {features_in}] · [2 * {features_out}, {features_in}]ᵀ {dtype}, \
                     {activation:?}, gap {gap}",
                    random.seed
                );
                // The compiler joins multiplications and additions of the function its own way in each kernel.
                let want = want.read(&device);
                let tolerance = |i: usize| want.data[i].abs() * 2.0 * unit(activations) + 1e-6;
                assert_close(&case, &out.read(&device), &want, tolerance);
            }
        }
    }
}
