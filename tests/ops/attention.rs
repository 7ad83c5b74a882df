//! `attention`.

use crate::harness::{FLOATS, Host, OnDevice, Random, assert_close, ids, unit};
use crate::{devices, host_devices};
use triton_trtllm::device::{Attention, AttentionBatch, DType, Feature, KvLayer, SharedDevice};

/// Heads and cache of a case.
#[derive(Clone, Copy)]
pub struct Shape {
    pub kv_heads: usize,
    pub group: usize,
    pub dim: usize,
    pub block: usize,
    pub window: Option<usize>,
    /// Seen beside the window.
    pub sink_tokens: usize,
    pub softcap: Option<f32>,
}

/// `(cached tokens, tokens of the chunk)` of each sequence.
pub type Sequences<'a> = &'a [(usize, usize)];

/// A cache with every sequence's keys and values in blocks of random order, on a device and on the host.
pub struct Filled {
    pub layer: KvLayer,
    shape: Shape,
    host: Host,
    tables: Vec<Vec<usize>>,
    /// `[1, H]`.
    sinks: Option<Host>,
    slopes: Option<Host>,
    /// Queries for the first tokens where they lie before the window.
    sink_q: Option<Host>,
}

impl Filled {
    /// Cache slots that belong to no sequence are not-a-number.
    pub fn new(device: &SharedDevice, random: &mut Random, shape: Shape, contexts: &[usize], dtype: DType) -> Self {
        let Shape { kv_heads, dim, block, .. } = shape;
        let num_blocks = contexts.iter().map(|len| len.div_ceil(block)).sum::<usize>() + 2;
        let mut free: Vec<usize> = (0..num_blocks).collect();
        (1..num_blocks).rev().for_each(|i| free.swap(i, random.below(i + 1)));
        let tables = contexts.iter().map(|len| free.split_off(free.len() - len.div_ceil(block))).collect::<Vec<_>>();
        let rows = num_blocks * 2 * kv_heads * block;
        let mut host = Host { rows, cols: dim, data: vec![f64::NAN; rows * dim] };
        for (table, &len) in tables.iter().zip(contexts) {
            for token in 0..len {
                for head in 0..2 * kv_heads {
                    let row = (table[token / block] * 2 * kv_heads + head) * block + token % block;
                    host.row_mut(row).fill_with(|| random.number() * 2.0);
                }
            }
        }
        let host = host.rounded(dtype);
        let data = OnDevice::new(device, &host, dtype, 0).view;
        Self {
            layer: KvLayer { data, kv_heads, block_size_tokens: block, head_dim: dim, keys_only: false },
            shape,
            host,
            tables,
            sinks: None,
            slopes: None,
            sink_q: None,
        }
    }

    fn row(&self, sequence: usize, token: usize, side: usize, head: usize) -> &[f64] {
        let Shape { kv_heads, block, .. } = self.shape;
        let id = self.tables[sequence][token / block];
        self.host.row(((id * 2 + side) * kv_heads + head) * block + token % block)
    }

    pub fn batch(&self, device: &SharedDevice, sequences: Sequences<'_>) -> AttentionBatch {
        let mut cu_seqlens = vec![0];
        sequences.iter().for_each(|(_, n)| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + *n as i32));
        let context_lens: Vec<i32> = sequences.iter().map(|(cached, n)| (cached + n) as i32).collect();
        let width = self.tables.iter().map(Vec::len).max().unwrap() + 1;
        let mut table =
            Host { rows: sequences.len(), cols: width, data: vec![f64::from(i32::MAX); sequences.len() * width] };
        for (row, blocks) in self.tables.iter().enumerate() {
            table.row_mut(row)[..blocks.len()].iter_mut().zip(blocks).for_each(|(to, &block)| *to = block as f64);
        }
        AttentionBatch {
            cu_seqlens: ids(device, &cu_seqlens),
            context_lens: ids(device, &context_lens),
            block_tables: OnDevice::new(device, &table, DType::I32, 0).view,
            max_query_len: sequences.iter().map(|(_, n)| *n).max().unwrap(),
            max_context_len: sequences.iter().map(|(cached, n)| cached + n).max().unwrap(),
        }
    }

    fn reference(&self, q: &Host, sequences: Sequences<'_>, scale: f64) -> Host {
        let Shape { kv_heads, group, dim, window, sink_tokens, softcap, .. } = self.shape;
        let mut out = Host::zeros(q.rows, q.cols);
        let mut row = 0;
        for (sequence, &(cached, n)) in sequences.iter().enumerate() {
            for position in cached..cached + n {
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                let seen = || (0..sink_tokens.min(first)).chain(first..=position);
                for head in 0..kv_heads * group {
                    let in_sight = seen().count() - 1;
                    let before = |token: usize| token < sink_tokens.min(first);
                    let score = |token: usize| {
                        let key = self.row(sequence, token, 0, head / group);
                        let of_sinks = self.sink_q.as_ref().filter(|_| before(token)).unwrap_or(q);
                        let query = &of_sinks.row(row)[head * dim..][..dim];
                        let score = query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * scale;
                        let slope = self.slopes.as_ref().map_or(0.0, |slopes| slopes.data[head]);
                        let from = if before(token) { in_sight } else { position };
                        let score = score + slope * (token as f64 - from as f64);
                        softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    };
                    let weights: Vec<f64> = seen().map(score).map(f64::exp).collect();
                    let sink = self.sinks.as_ref().map_or(0.0, |sinks| sinks.data[head].exp());
                    let sum: f64 = weights.iter().sum::<f64>() + sink;
                    let to = &mut out.row_mut(row)[head * dim..][..dim];
                    for (token, weight) in seen().zip(weights) {
                        let value = self.row(sequence, token, 1, head / group);
                        to.iter_mut().zip(value).for_each(|(to, value)| *to += weight / sum * value);
                    }
                }
                row += 1;
            }
        }
        out
    }
}

/// Runs attention into poisoned memory, inputs and outputs inside wider rows.
pub fn attend(device: &SharedDevice, filled: &Filled, q: &Host, sequences: Sequences<'_>, dtype: DType) -> Host {
    let shape = filled.shape;
    let q_device = OnDevice::new(device, q, dtype, 24);
    let sink_q = filled.sink_q.as_ref().map(|sink_q| OnDevice::new(device, sink_q, dtype, 8));
    let out = OnDevice::poisoned(device, q.rows, q.cols, dtype, [7, 8][q.rows % 2]);
    let batch = filled.batch(device, sequences);
    let of_heads =
        |values: &Option<Host>| values.as_ref().map(|values| OnDevice::new(device, values, DType::F32, 0).view);
    let (sinks, slopes) = (of_heads(&filled.sinks), of_heads(&filled.slopes));
    let args = Attention {
        out: &out.view,
        q: &q_device.view,
        cache: &filled.layer,
        batch: &batch,
        num_heads: shape.kv_heads * shape.group,
        scale: scale(shape.dim),
        window: shape.window,
        sink_tokens: shape.sink_tokens,
        sink_q: sink_q.as_ref().map(|sink_q| &sink_q.view),
        chunk: None,
        softcap: shape.softcap,
        sinks: sinks.as_ref(),
        alibi: slopes.as_ref(),
    };
    device.attention(&args).unwrap();
    out.read(device)
}

fn scale(dim: usize) -> f32 {
    1.0 / (dim as f32).sqrt()
}

fn check(name: &str, device: &SharedDevice, random: &mut Random, shape: Shape, sequences: Sequences<'_>, dtype: DType) {
    let Shape { kv_heads, group, dim, block, window, sink_tokens, softcap } = shape;
    let activations = device.activation_dtype(dtype);
    let contexts: Vec<usize> = sequences.iter().map(|(cached, n)| cached + n).collect();
    let mut filled = Filled::new(device, random, shape, &contexts, device.kv_dtype(dtype));
    let tokens = sequences.iter().map(|(_, n)| n).sum();
    let with_sink_q = sink_tokens > 0 && random.below(2) == 0;
    let mut queries = || random.matrix(tokens, kv_heads * group * dim).rounded(activations);
    let q = queries();
    filled.sink_q = with_sink_q.then(queries);
    let want = filled.reference(&q, sequences, f64::from(scale(dim)));
    let case = format!(
        "{name}, seed {}: attention {dtype} K{kv_heads} G{group} D{dim} B{block} window {window:?} sinks {sink_tokens} ({with_sink_q}) cap {softcap:?} {sequences:?}",
        random.seed
    );
    let got = attend(device, &filled, &q, sequences, activations);
    // A device that computes in the activations' type rounds the weights of the values, which lie within -2 .. 2.
    assert_close(&case, &got, &want, |i| 1e-5 + (want.data[i].abs() + 2.0) * unit(activations));
}

const SEQUENCES: [Sequences<'static>; 7] = [
    &[(0, 1)],
    &[(200, 1)],
    &[(63, 1), (64, 1), (65, 1), (15, 1), (16, 1)],
    &[(0, 17), (5, 1), (0, 70)],
    &[(30, 40)],
    &[(127, 3), (0, 0), (10, 2)],
    &[(0, 130)],
];

#[test]
fn attention_of_every_shape() {
    let mut random = Random::fresh();
    let dims = [8, 16, 20, 32, 64, 80, 96, 128, 256];
    for (name, device) in devices() {
        for sequences in SEQUENCES {
            for group in [1, 2, 3, 4, 8] {
                let shape = Shape {
                    kv_heads: 1 + random.below(3),
                    group,
                    dim: dims[random.below(dims.len())],
                    block: [16, 32, 64][random.below(3)],
                    window: [None, Some(1 + random.below(100))][random.below(2)],
                    sink_tokens: [0, 1 + random.below(90)][random.below(2)],
                    softcap: [None, Some(2.5)][random.below(2)],
                };
                let dtype = FLOATS[random.below(3)];
                check(&name, &device, &mut random, shape, sequences, dtype);
            }
        }
    }
}

#[test]
fn attention_of_every_head_size_and_type() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for dtype in FLOATS {
            for dim in [8, 20, 64, 80, 128, 192, 256] {
                let shape =
                    Shape { kv_heads: 2, group: 2, dim, block: 32, window: None, sink_tokens: 0, softcap: None };
                check(&name, &device, &mut random, shape, &[(40, 9), (77, 1)], dtype);
            }
        }
    }
}

#[test]
fn sinks_and_linear_biases_of_every_head() {
    let mut random = Random::fresh();
    let needed = |device: &SharedDevice| device.supports(Feature::Sinks) && device.supports(Feature::Alibi);
    for (name, device) in devices().into_iter().filter(|(_, device)| needed(device)) {
        for (with_sinks, with_slopes) in [(true, false), (false, true), (true, true)] {
            for sequences in SEQUENCES {
                let (window, sink_tokens) =
                    [(None, 0), (Some(1 + random.below(70)), random.below(40))][random.below(2)];
                let shape = Shape { kv_heads: 2, group: 3, dim: 20, block: 16, window, sink_tokens, softcap: None };
                let contexts: Vec<usize> = sequences.iter().map(|(cached, n)| cached + n).collect();
                let mut filled = Filled::new(&device, &mut random, shape, &contexts, DType::F32);
                filled.sinks = with_sinks.then(|| random.matrix(1, 6).rounded(DType::F32));
                filled.slopes = with_slopes.then(|| random.matrix(1, 6).rounded(DType::F32));
                let tokens = sequences.iter().map(|(_, n)| n).sum();
                let q = random.matrix(tokens, 6 * 20).rounded(DType::F32);
                let want = filled.reference(&q, sequences, f64::from(scale(20)));
                let got = attend(&device, &filled, &q, sequences, device.activation_dtype(DType::F32));
                let case = format!(
                    "{name}, seed {}: sinks {with_sinks} slopes {with_slopes} {window:?} {sink_tokens}",
                    random.seed
                );
                assert_close(&case, &got, &want, |_| 2e-5);
            }
        }
    }
}

#[test]
fn a_group_larger_than_a_tile_works() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        let shape = Shape { kv_heads: 1, group: 71, dim: 16, block: 16, window: None, sink_tokens: 0, softcap: None };
        check(&name, &device, &mut random, shape, &[(20, 3)], DType::F32);
    }
}

/// A step padded to a bucket, as a GPU runs it, ends in a sequence of more queries than context: its rows hold nothing of
/// use, the others are right.
#[test]
fn padding_does_not_reach_the_other_rows() {
    let mut random = Random::fresh();
    for (name, device) in devices().into_iter().filter(|(_, device)| !device.info().host_accessible) {
        for (dtype, dim) in FLOATS.into_iter().flat_map(|dtype| [64, 128].map(|dim| (dtype, dim))) {
            let shape = Shape { kv_heads: 2, group: 4, dim, block: 16, window: None, sink_tokens: 0, softcap: None };
            let activations = device.activation_dtype(dtype);
            let filled = Filled::new(&device, &mut random, shape, &[50, 40, 1], device.kv_dtype(dtype));
            let q = random.matrix(1 + 12 + 60, 8 * dim).rounded(activations);
            let real = Host { rows: 13, cols: q.cols, data: q.data[..13 * q.cols].to_vec() };
            let want = filled.reference(&real, &[(49, 1), (28, 12)], f64::from(scale(dim)));
            let mut batch = filled.batch(&device, &[(49, 1), (28, 12), (0, 1)]);
            batch.cu_seqlens = ids(&device, &[0, 1, 13, 73]);
            batch.max_query_len = 60;
            let out = OnDevice::poisoned(&device, 73, q.cols, activations, 0);
            let args = Attention {
                out: &out.view,
                q: &OnDevice::new(&device, &q, activations, 0).view,
                cache: &filled.layer,
                batch: &batch,
                num_heads: 8,
                scale: scale(dim),
                window: None,
                sink_tokens: 0,
                sink_q: None,
                chunk: None,
                softcap: None,
                sinks: None,
                alibi: None,
            };
            device.attention(&args).unwrap();
            let got = out.read(&device);
            let got = Host { rows: 13, cols: got.cols, data: got.data[..13 * got.cols].to_vec() };
            let case = format!("{name}, seed {}: padded attention {dtype} D{dim}", random.seed);
            assert_close(&case, &got, &want, |i| 1e-5 + (want.data[i].abs() + 2.0) * unit(activations));
        }
    }
}

#[test]
fn a_block_outside_the_cache_is_an_error() {
    let mut random = Random::fresh();
    for (name, device) in host_devices() {
        let shape = Shape { kv_heads: 1, group: 1, dim: 16, block: 16, window: None, sink_tokens: 0, softcap: None };
        let filled = Filled::new(&device, &mut random, shape, &[10], DType::F32);
        let mut batch = filled.batch(&device, &[(9, 1)]);
        batch.block_tables = ids(&device, &[3000]);
        let q = OnDevice::poisoned(&device, 1, 16, DType::F32, 0).view;
        let args = Attention {
            out: &q,
            q: &q,
            cache: &filled.layer,
            batch: &batch,
            num_heads: 1,
            scale: 1.0,
            window: None,
            sink_tokens: 0,
            sink_q: None,
            chunk: None,
            softcap: None,
            sinks: None,
            alibi: None,
        };
        let error = device.attention(&args).unwrap_err();
        assert!(error.message().contains("block 3000 of 3"), "{name}: {error}");
    }
}
