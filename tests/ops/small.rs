//! The operations that touch each activation once.

use crate::functions::ACTIVATIONS;
use crate::harness::{FLOATS, Host, OnDevice, Random, assert_close, ids, round, unit};
use crate::{cuda, devices, host_devices};
use triton_trtllm::device::{
    Activation, DType, Feature, KvLayer, RopeKvWrite, RopeStyle, RopeTable, SharedDevice, SinkQueries, Tensor,
};
use triton_trtllm::ids::{BlockId, HostBlockId};
use triton_trtllm::step::{BlockCopy, TierCopy};

const WIDTHS: [usize; 6] = [8, 16, 31, 96, 257, 1030];

#[test]
fn embed_takes_scaled_rows() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for (width, dtype) in WIDTHS.into_iter().flat_map(|width| FLOATS.map(|dtype| (width, dtype))) {
            let activations = device.activation_dtype(dtype);
            let table = random.matrix(11, width).rounded(dtype);
            let wanted_ids: Vec<i32> = (0..7).map(|_| random.below(11) as i32).collect();
            let scale = [1.0, 2.5][random.below(2)];
            let out = OnDevice::poisoned(&device, 7, width, activations, random.gap());
            let table_device = OnDevice::new(&device, &table, dtype, 0).view;
            device.embed(&out.view, &table_device, &ids(&device, &wanted_ids), scale).unwrap();
            let mut want = Host::zeros(7, width);
            for (t, &id) in wanted_ids.iter().enumerate() {
                let row = table.row(id as usize).iter().map(|value| value * f64::from(scale));
                want.row_mut(t).copy_from_slice(&row.collect::<Vec<_>>());
            }
            let case = format!("{name}, seed {}: embed {dtype} {width}", random.seed);
            assert_close(&case, &out.read(&device), &want, |i| want.data[i].abs() * unit(activations));
        }
    }
}

#[test]
fn an_id_outside_the_table_is_an_error() {
    for (name, device) in host_devices() {
        let table = OnDevice::new(&device, &Host::zeros(5, 8), DType::F32, 0).view;
        let out = OnDevice::poisoned(&device, 1, 8, DType::F32, 0).view;
        for id in [-1, 5] {
            let error = device.embed(&out, &table, &ids(&device, &[id]), 1.0).unwrap_err();
            assert!(error.message().contains(&format!("{id} of 5")), "{name}: {error}");
        }
    }
}

fn normalized(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let group = |x: &[f64]| {
        let rms = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt();
        x.iter().zip(weight).map(|(x, w)| x / rms * w).collect::<Vec<_>>()
    };
    x.chunks(weight.len()).flat_map(group).collect()
}

#[test]
fn rms_norm_of_rows_and_of_heads_also_in_place() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for (width, dtype) in WIDTHS.into_iter().flat_map(|width| FLOATS.map(|dtype| (width, dtype))) {
            let activations = device.activation_dtype(dtype);
            let heads = 1 + random.below(4);
            let x = random.matrix(5, heads * width).rounded(activations);
            let weight = random.matrix(1, width).rounded(dtype);
            let mut want = Host::zeros(5, heads * width);
            (0..5).for_each(|t| want.row_mut(t).copy_from_slice(&normalized(x.row(t), &weight.data, 1e-5)));
            let weight = OnDevice::new(&device, &weight, dtype, 0).view;
            let x = OnDevice::new(&device, &x, activations, random.gap());
            let out = OnDevice::poisoned(&device, 5, heads * width, activations, random.gap());
            device.rms_norm(&out.view, &x.view, &weight, 1e-5).unwrap();
            device.rms_norm(&x.view, &x.view, &weight, 1e-5).unwrap();
            let case = format!("{name}, seed {}: rms_norm {dtype} {heads} x {width}", random.seed);
            // 1e-7: half the distance of the smallest float16 numbers, and more.
            let tolerance = |i: usize| want.data[i].abs() * (1e-6 + unit(activations)) + 1e-7;
            assert_close(&case, &out.read(&device), &want, tolerance);
            assert_close(&format!("{case} in place"), &x.read(&device), &want, tolerance);
        }
    }
}

#[test]
fn add_rms_norm_updates_the_residual_and_normalizes_it() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for (width, dtype) in WIDTHS.into_iter().flat_map(|width| FLOATS.map(|dtype| (width, dtype))) {
            let activations = device.activation_dtype(dtype);
            let x = random.matrix(4, width).rounded(activations);
            let residual = random.matrix(4, width).rounded(activations);
            let weight = random.matrix(1, width).rounded(dtype);
            let mut sum = residual.clone();
            sum.data.iter_mut().zip(&x.data).for_each(|(sum, x)| *sum = round(*sum + x, activations));
            let mut want = Host::zeros(4, width);
            (0..4).for_each(|t| want.row_mut(t).copy_from_slice(&normalized(sum.row(t), &weight.data, 1e-6)));
            let weight = OnDevice::new(&device, &weight, dtype, 0).view;
            let residual = OnDevice::new(&device, &residual, activations, random.gap());
            let x = OnDevice::new(&device, &x, activations, random.gap());
            let out = OnDevice::poisoned(&device, 4, width, activations, random.gap());
            device.add_rms_norm(&out.view, &residual.view, &x.view, &weight, 1e-6).unwrap();
            let case = format!("{name}, seed {}: add_rms_norm {dtype} {width}", random.seed);
            assert_close(&case, &residual.read(&device), &sum, |_| 0.0);
            let tolerance = |i: usize| want.data[i].abs() * (1e-6 + unit(activations)) + 1e-7;
            assert_close(&case, &out.read(&device), &want, tolerance);
        }
    }
}

#[test]
fn gated_activations() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for (width, weights) in [1, 16, 37, 2049, 4100].into_iter().flat_map(|width| FLOATS.map(|dtype| (width, dtype)))
        {
            for activation in ACTIVATIONS.into_iter().filter(|&activation| device.supports(Feature::Gated(activation)))
            {
                let dtype = device.activation_dtype(weights);
                let mut gate_up = random.matrix(3, 2 * width);
                gate_up.data.iter_mut().for_each(|value| *value *= 12.0);
                let gate_up = gate_up.rounded(dtype);
                let mut want = Host::zeros(3, width);
                for t in 0..3 {
                    let (gate, up) = gate_up.row(t).split_at(width);
                    let change = |up: f64| match activation {
                        Activation::ClampedSwish => up.clamp(-7.0, 7.0) + 1.0,
                        _ => up,
                    };
                    let value = gate.iter().zip(up).map(|(&gate, &up)| activate(activation, gate) * change(up));
                    want.row_mut(t).copy_from_slice(&value.collect::<Vec<_>>());
                }
                let gate_up = OnDevice::new(&device, &gate_up, dtype, random.gap());
                let out = OnDevice::poisoned(&device, 3, width, dtype, random.gap());
                device.gated_activation(&out.view, &gate_up.view, activation).unwrap();
                let case = format!("{name}, seed {}: {activation:?} {dtype} {width}", random.seed);
                // The error of Φ, times gate and up.
                let absolute = if activation == Activation::Gelu { 3e-5 } else { 1e-6 };
                let tolerance = |i: usize| want.data[i].abs() * (2e-6 + unit(dtype)) + absolute;
                assert_close(&case, &out.read(&device), &want, tolerance);
            }
        }
    }
}

pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            0.5 * x * (1.0 + (root * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::Gelu => x * normal(x),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0) * x.max(0.0),
        Activation::ClampedSwish => x.min(7.0) / (1.0 + (-1.702 * x.min(7.0)).exp()),
    }
}

/// The normal distribution's Φ: its density, integrated by Simpson's rule.
fn normal(x: f64) -> f64 {
    let steps = 2000;
    let width = x / f64::from(steps);
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let sum: f64 = (0..=steps)
        .map(|i| {
            let weight = if i == 0 || i == steps { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
            weight * density(f64::from(i) * width)
        })
        .sum();
    0.5 + sum * width / 3.0
}

#[test]
fn gather_rows_copies_rows_in_the_order_asked_for() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        let x = random.matrix(9, 33).rounded(DType::F32);
        let rows: Vec<i32> = (0..12).map(|_| random.below(9) as i32).collect();
        let x_device = OnDevice::new(&device, &x, device.activation_dtype(DType::F32), 4);
        let out = OnDevice::poisoned(&device, 12, 33, device.activation_dtype(DType::F32), 2);
        device.gather_rows(&out.view, &x_device.view, &ids(&device, &rows)).unwrap();
        let want =
            Host { rows: 12, cols: 33, data: rows.iter().flat_map(|&row| x.row(row as usize).to_vec()).collect() };
        assert_close(&format!("{name}, seed {}: gather_rows", random.seed), &out.read(&device), &want, |_| 0.0);
    }
}

struct Rope {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    rotated: usize,
    block: usize,
    style: Option<RopeStyle>,
    /// Sink tokens, window and chunk.
    sinks: Option<Sinks>,
}

type Sinks = (usize, Option<usize>, Option<usize>);

/// How many of the tokens before `position` are seen from there, counted one by one.
fn in_sight(position: usize, (sink_tokens, window, chunk): Sinks) -> usize {
    let seen = |token: usize| {
        let in_window = window.is_none_or(|window| position - token < window);
        let in_chunk = chunk.is_none_or(|chunk| position / chunk == token / chunk);
        token < sink_tokens || in_window && in_chunk
    };
    (0..position).filter(|&token| seen(token)).count()
}

fn rotate(head: &mut [f64], cos_sin: &[f64], style: RopeStyle) {
    let half = cos_sin.len() / 2;
    for i in 0..half {
        let (a, b) = match style {
            RopeStyle::HalfSplit => (i, i + half),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (cos, sin) = (cos_sin[i], cos_sin[i + half]);
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
    }
}

fn check_rope(name: &str, device: &SharedDevice, random: &mut Random, case: &Rope, dtype: DType) {
    let Rope { heads, kv_heads, dim, rotated, block, style, sinks } = *case;
    let (tokens, num_blocks) = (6, 3);
    let activations = device.activation_dtype(dtype);
    let kv_dtype = device.kv_dtype(dtype);
    let mut qkv = random.matrix(tokens, (heads + 2 * kv_heads) * dim).rounded(activations);
    let table = random.matrix(20, rotated).rounded(DType::F32);
    let positions: Vec<i32> = (0..tokens).map(|_| random.below(20) as i32).collect();
    let mut slots: Vec<i32> = (0..tokens).map(|t| (t * 3 * block / tokens) as i32).collect();
    (slots[1], slots[4]) = (-1, -1);

    let whole = OnDevice::new(device, &qkv, activations, random.gap());
    let part = |first: usize, heads: usize| whole.view.columns(first * dim, heads * dim);
    let (q, k, v) = (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads));
    let cache = OnDevice::poisoned(device, num_blocks * 2 * kv_heads * block, dim, kv_dtype, 0);
    let layer =
        KvLayer { data: cache.view.clone(), kv_heads, block_size_tokens: block, head_dim: dim, keys_only: false };
    let sink_q = OnDevice::poisoned(device, tokens, heads * dim, activations, random.gap());
    let cos_sin = OnDevice::new(device, &table, DType::F32, 0).view;
    let rope = style.map(|style| RopeTable { cos_sin, style });
    let (position_ids, slot_ids): (Tensor, Tensor) = (ids(device, &positions), ids(device, &slots));
    let args = RopeKvWrite {
        q: &q,
        k: &k,
        v: &v,
        positions: &position_ids,
        slots: &slot_ids,
        rope: rope.as_ref(),
        cache: &layer,
        num_heads: heads,
        sink_queries: sinks.map(|(sink_tokens, window, chunk)| SinkQueries {
            out: &sink_q.view,
            window,
            chunk,
            sink_tokens,
        }),
    };
    device.rope_kv_write(&args).unwrap();
    let mut want_sink_q = Host { rows: tokens, cols: heads * dim, data: vec![f64::NAN; tokens * heads * dim] };
    for (t, &position) in positions.iter().enumerate().filter(|_| sinks.is_some()) {
        want_sink_q.row_mut(t).copy_from_slice(&qkv.row(t)[..heads * dim]);
        if let Some(style) = style {
            let in_sight = in_sight(position as usize, sinks.unwrap());
            want_sink_q.row_mut(t).chunks_mut(dim).for_each(|head| rotate(head, table.row(in_sight), style));
        }
    }

    let mut want = Host { rows: cache.view.rows(), cols: dim, data: vec![f64::NAN; cache.view.rows() * dim] };
    for t in 0..tokens {
        let row = qkv.row_mut(t);
        if let Some(style) = style {
            let rotated = row[..(heads + kv_heads) * dim].chunks_mut(dim);
            rotated.for_each(|head| rotate(head, table.row(positions[t] as usize), style));
        }
        let Ok(slot) = usize::try_from(slots[t]) else { continue };
        for head in 0..2 * kv_heads {
            let to = (slot / block * 2 * kv_heads + head) * block + slot % block;
            let from = &qkv.row(t)[(heads + head) * dim..][..dim];
            want.row_mut(to).copy_from_slice(from);
        }
    }
    let case = format!(
        "{name}, seed {}: rope {style:?} {dtype} H{heads} K{kv_heads} D{dim} rot{rotated} {sinks:?}",
        random.seed
    );
    let got = sink_q.read(device);
    for (got, want) in got.data.iter().zip(&want_sink_q.data) {
        let close = (got - want).abs() <= 1e-6 + want.abs() * unit(activations);
        assert!(close || got.is_nan() && want.is_nan(), "{case}: sink query {got}, not {want}");
    }
    let got = whole.read(device);
    for t in 0..tokens {
        let (got, want) = (&got.row(t)[..heads * dim], &qkv.row(t)[..heads * dim]);
        let close = got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 1e-6 + want.abs() * unit(activations));
        assert!(close, "{case}: q of token {t}");
    }
    for (i, (got, want)) in cache.read(device).data.iter().zip(&want.data).enumerate() {
        let close = (got - want).abs() <= want.abs() * unit(kv_dtype) * 1.01 + 1e-6;
        assert!(close || got.is_nan() && want.is_nan(), "{case}: cache element {i} is {got}, not {want}");
    }
}

#[test]
fn rope_rotates_and_writes_the_cache_but_not_for_padding() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for dtype in FLOATS {
            for style in [None, Some(RopeStyle::HalfSplit), Some(RopeStyle::Interleaved)] {
                for (heads, kv_heads, dim, rotated, block) in
                    [(1, 1, 8, 8, 16), (6, 2, 64, 64, 16), (4, 4, 20, 12, 32), (8, 1, 128, 32, 64), (2, 1, 80, 80, 64)]
                {
                    for sinks in
                        [None, Some((3, Some(5), None)), Some((2, Some(6), Some(7))), Some((30, Some(4), None))]
                    {
                        let case = Rope { heads, kv_heads, dim, rotated, block, style, sinks };
                        check_rope(&name, &device, &mut random, &case, dtype);
                    }
                }
            }
        }
    }
}

#[test]
fn copy_blocks_copies_the_first_tokens_in_order() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for dtype in FLOATS {
            let (kv_heads, block, dim) = (3, 16, 24);
            let host = random.matrix(4 * 2 * kv_heads * block, dim).rounded(dtype);
            let cache = OnDevice::new(&device, &host, dtype, 0);
            let layer = KvLayer {
                data: cache.view.clone(),
                kv_heads,
                block_size_tokens: block,
                head_dim: dim,
                keys_only: false,
            };
            let copies = [(0, 2, block), (2, 3, 5), (1, 1, 4)];
            let copies =
                copies.map(|(from, to, num_tokens)| BlockCopy { from: BlockId(from), to: BlockId(to), num_tokens });
            device.copy_blocks(&layer, &copies).unwrap();
            let mut want = host;
            for copy in copies {
                for head in 0..2 * kv_heads {
                    for token in 0..copy.num_tokens {
                        let row = |id: BlockId| (id.0 as usize * 2 * kv_heads + head) * block + token;
                        let from = want.row(row(copy.from)).to_vec();
                        want.row_mut(row(copy.to)).copy_from_slice(&from);
                    }
                }
            }
            let case = format!("{name}, seed {}: copy_blocks {dtype}", random.seed);
            assert_close(&case, &cache.read(&device), &want, |_| 0.0);
        }
    }
}

#[test]
fn the_host_tier_gives_back_what_it_got() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for dtype in FLOATS {
            // Keys and values, and keys that are the values.
            let shapes = [(3, 2, 16, 24), (1, 1, 16, 8)];
            let hosts =
                shapes.map(|(heads, sides, block, dim)| random.matrix(4 * sides * heads * block, dim).rounded(dtype));
            let caches = [0, 1].map(|at| OnDevice::new(&device, &hosts[at], dtype, 0));
            let layers = [0, 1].map(|at| {
                let (kv_heads, sides, block_size_tokens, head_dim) = shapes[at];
                KvLayer { data: caches[at].view.clone(), kv_heads, block_size_tokens, head_dim, keys_only: sides == 1 }
            });
            let block_bytes = layers.iter().map(KvLayer::block_bytes).sum();
            let mut tier = device.host_tier(block_bytes, 2).unwrap();
            let offload = |from, to| TierCopy::Offload { from: BlockId(from), to: HostBlockId(to) };
            let onboard = |from, to| TierCopy::Onboard { from: HostBlockId(from), to: BlockId(to) };
            tier.copy(&layers, &[offload(1, 0), offload(3, 1)]).unwrap();
            // Later work may overwrite what was copied.
            let overwrite = BlockCopy { from: BlockId(0), to: BlockId(3), num_tokens: 16 };
            layers.iter().for_each(|layer| device.copy_blocks(layer, &[overwrite]).unwrap());
            let mark = tier.copy(&layers, &[onboard(1, 2), onboard(0, 0)]).unwrap();
            mark.wait().unwrap();
            assert!(mark.is_over().unwrap());
            for at in [0, 1] {
                let (heads, sides, block, _) = shapes[at];
                let rows = sides * heads * block;
                let mut want = hosts[at].clone();
                for (to, from) in [(3, 0), (2, 3), (0, 1)] {
                    for row in 0..rows {
                        let values = hosts[at].row(from * rows + row).to_vec();
                        want.row_mut(to * rows + row).copy_from_slice(&values);
                    }
                }
                let case = format!("{name}, seed {}: host tier {dtype}, layer {at}", random.seed);
                assert_close(&case, &caches[at].read(&device), &want, |_| 0.0);
            }
        }
    }
}

/// What other libraries of the process have put on a GPU is read as well: Triton hands over such inputs.
#[cfg(feature = "cuda")]
#[test]
fn memory_of_a_gpu_is_copied_to_the_host_or_the_reason_is_told() {
    let Some(device) = cuda() else {
        // SAFETY: nothing is read where there is no GPU.
        let why = unsafe { triton_trtllm::device::cuda::read_memory(0, 0x1000, 4) }.unwrap_err();
        assert!(why.message().contains(' '), "{why}");
        return;
    };
    let tensor = Tensor::zeros(&device, 1, 3, DType::I32, "a test").unwrap();
    let bytes: Vec<u8> = (1..=12).collect();
    device.upload(&tensor, &bytes).unwrap();
    device.synchronize().unwrap();
    // SAFETY: the tensor has as many bytes, and nobody writes to it.
    assert_eq!(unsafe { triton_trtllm::device::cuda::read_memory(0, tensor.addr(), 12) }.unwrap(), bytes);
}
