//! `linear`.

use crate::devices;
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
