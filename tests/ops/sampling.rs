//! Sampling of whole batches against the arithmetic of `decode::sample`, a row at a time.

use crate::devices;
use crate::harness::Random;
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::decode::logits::scale;
use triton_trtllm::decode::sample::{SampleScratch, choose};
use triton_trtllm::device::{DType, RowMode, RowSample, RowSampling, Sample, SharedDevice, Tensor, TopTokens};

const VOCABULARIES: [usize; 7] = [1, 5, 127, 1000, 4099, 32_000, 128_256];
/// What nobody wrote.
const POISON: i32 = 0x5a5a_5a5a;
const SLOTS: usize = 64;

fn upload(device: &SharedDevice, rows: usize, words: &[i32]) -> Tensor {
    let tensor = Tensor::zeros(device, rows, words.len() / rows, DType::I32, "a test").unwrap();
    device.upload(&tensor, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
    tensor
}

fn words(device: &SharedDevice, tensor: &Tensor) -> Vec<i32> {
    let mut bytes = vec![0; tensor.bytes()];
    device.download(tensor, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| i32::from_ne_bytes(b.try_into().unwrap())).collect()
}

/// Runs the rows on a device: what came out and the table of sampled tokens.
fn run(device: &SharedDevice, logits: &[Vec<f32>], rows: &[RowSampling]) -> (Vec<Vec<i32>>, Vec<i32>) {
    let tensor = Tensor::zeros(device, logits.len(), logits[0].len(), DType::F32, "a test").unwrap();
    device.upload(&tensor, &logits.iter().flatten().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
    let params = upload(device, rows.len(), &rows.iter().flat_map(RowSampling::encode).collect::<Vec<_>>());
    let out = upload(device, rows.len(), &vec![POISON; rows.len() * RowSample::WORDS]);
    let sampled = upload(device, 1, &[POISON; SLOTS]);
    device
        .sample(&Sample {
            logits: &tensor,
            edited: None,
            params: &params,
            out: &out,
            narrowed: true,
            sampled: &sampled,
        })
        .unwrap();
    (words(device, &out).chunks_exact(RowSample::WORDS).map(<[i32]>::to_vec).collect(), words(device, &sampled))
}

fn expected(logits: &[f32], params: &SamplingParams, position: usize) -> RowSample {
    let mut scaled = logits.to_vec();
    scale(&mut scaled, params.inverse_temperature());
    RowSample(choose(&scaled, params, position, &mut SampleScratch::default()))
}

/// Logits as models make them: a few far above the rest; every other row with many equals. Of some, most cannot come, as behind
/// a guide.
fn row(random: &mut Random, vocab: usize, ties: bool) -> Vec<f32> {
    let spread = [0.01, 1.0, 4.0, 90.0][random.below(4)];
    let mut logits: Vec<f32> = (0..vocab).map(|_| ((random.number() + random.number()) * spread) as f32).collect();
    for _ in 0..random.below(6) {
        logits[random.below(vocab)] += 6.0;
    }
    if ties {
        logits.iter_mut().for_each(|x| *x = (*x * 4.0).round() / 4.0);
    }
    if random.below(4) == 0 {
        logits[random.below(vocab)] = f32::NEG_INFINITY;
        logits[0] = -0.0;
    }
    if random.below(3) == 0 {
        let left = [1, 3, vocab.div_ceil(10)][random.below(3)];
        let mut allowed = vec![false; vocab];
        for _ in 0..left {
            let id = random.below(vocab);
            (allowed[id], logits[id]) = (true, logits[id].max(-1.0));
        }
        logits.iter_mut().zip(allowed).filter(|(_, allowed)| !allowed).for_each(|(x, _)| *x = f32::NEG_INFINITY);
    }
    logits
}

fn params(random: &mut Random, vocab: usize) -> SamplingParams {
    SamplingParams {
        temperature: [1.0, 0.0, 0.3, 1.7][random.below(4)],
        top_k: [0, 0, 1, 2, 50, vocab as u32, 3_000_000][random.below(7)],
        top_p: [None, Some(1.0), Some(0.9), Some(0.37), Some(1e-6)][random.below(5)],
        min_p: [0.0, 0.0, 0.02, 0.5, 1.0][random.below(5)],
        typical_p: [1.0, 1.0, 0.95, 0.3, 1e-6][random.below(5)],
        seed: random.bits() << 11 ^ random.bits(),
        log_probs: random.below(2) == 0,
        ..Default::default()
    }
}

#[test]
fn whole_batches_get_the_tokens_of_single_rows() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        let mut differing = Vec::new();
        for vocab in VOCABULARIES {
            let num_rows = if vocab > 10_000 { 24 } else { 48 };
            let logits: Vec<_> = (0..num_rows).map(|r| row(&mut random, vocab, r % 2 == 0)).collect();
            let params: Vec<_> = (0..num_rows).map(|_| params(&mut random, vocab)).collect();
            let slot = |r: usize| (r * 5 + 3) % SLOTS;
            let rows: Vec<_> = params.iter().enumerate().map(|(r, p)| RowSampling::new(p, 7 * r, slot(r))).collect();
            let (out, sampled) = run(&device, &logits, &rows);
            for (r, params) in params.iter().enumerate() {
                let case = format!("{name}, seed {}: row {r} of {vocab}: {params:?}", random.seed);
                let got = RowSample::decode(&out[r], params.log_probs).unwrap().0.unwrap();
                let want = expected(&logits[r], params, 7 * r).0.unwrap();
                assert_eq!(sampled[slot(r)], got.id, "{case}");
                if got.id != want.id {
                    assert!(!params.is_greedy(), "{case}: {got:?}, not {want:?}");
                    differing.push(format!("{case}: {got:?}, not {want:?}"));
                } else if let (Some(got), Some(want)) = (got.log_prob, want.log_prob) {
                    let close = |a: f32, b: f32| (a - b).abs() < 2e-4 * (1.0 + b.abs());
                    let both = close(got.full, want.full) && close(got.candidates, want.candidates);
                    assert!(both, "{case}: {got:?}, not {want:?}");
                }
            }
        }
        // A number drawn on the border between two tokens may fall to either side.
        assert!(differing.len() <= 1, "{}", differing.join("\n"));
    }
}

#[test]
fn rows_without_a_token_and_rows_left_out_stand_alone() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for vocab in [6, 5000] {
            let mut logits: Vec<_> = (0..5).map(|_| row(&mut random, vocab, false)).collect();
            logits[0][3] = f32::NAN;
            logits[0][1] = f32::NAN;
            logits[1][4] = f32::INFINITY;
            logits[2].fill(f32::NEG_INFINITY);
            let params = SamplingParams { top_p: Some(0.8), seed: 5, ..Default::default() };
            let mut rows: Vec<_> = (0..5).map(|r| RowSampling::new(&params, 9, r)).collect();
            rows[3].mode = RowMode::Skip;
            let (out, sampled) = run(&device, &logits, &rows);
            for r in [0, 1, 2, 4] {
                let got = RowSample::decode(&out[r], false).unwrap();
                assert_eq!(got, expected(&logits[r], &params, 9), "{name}: row {r} of {vocab}");
                assert_eq!(sampled[r], got.token(), "{name}: row {r}");
            }
            assert_eq!(out[3], [POISON; 4], "{name}: a row that is not sampled was written");
            assert_eq!(sampled[3], POISON, "{name}");
        }
    }
}

/// The `count` most likely tokens of each row and their log-probabilities.
fn top(device: &SharedDevice, logits: &[Vec<f32>], rows: Option<&[RowSampling]>, count: usize) -> Vec<Vec<(i32, f32)>> {
    let tensor = Tensor::zeros(device, logits.len(), logits[0].len(), DType::F32, "a test").unwrap();
    device.upload(&tensor, &logits.iter().flatten().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
    let words_of = |rows: &[RowSampling]| rows.iter().flat_map(RowSampling::encode).collect::<Vec<_>>();
    let params = rows.map(|rows| upload(device, rows.len(), &words_of(rows)));
    let ids = upload(device, logits.len(), &vec![POISON; logits.len() * count]);
    let log_probs = Tensor::zeros(device, logits.len(), count, DType::F32, "a test").unwrap();
    let poison: Vec<u8> = (0..logits.len() * count).flat_map(|_| POISON.to_ne_bytes()).collect();
    device.upload(&log_probs, &poison).unwrap();
    let args = TopTokens { logits: &tensor, edited: None, params: params.as_ref(), ids: &ids, log_probs: &log_probs };
    device.top_tokens(&args).unwrap();
    let values = words(device, &log_probs).into_iter().map(|bits| f32::from_bits(bits as u32));
    let found: Vec<_> = words(device, &ids).into_iter().zip(values).collect();
    found.chunks_exact(count).map(<[_]>::to_vec).collect()
}

/// By a sort of all of them, in f64.
fn sorted(logits: &[f32], factor: f32, count: usize) -> Vec<(i32, f32)> {
    let scaled: Vec<f32> = logits.iter().map(|x| if factor == 1.0 { *x } else { x * factor }).collect();
    let mut order: Vec<usize> = (0..scaled.len()).collect();
    order.sort_by(|&a, &b| scaled[b].partial_cmp(&scaled[a]).unwrap());
    let total: f64 = scaled.iter().map(|&x| f64::from(x - scaled[order[0]]).exp()).sum();
    let log_prob = |id: usize| (f64::from(scaled[id] - scaled[order[0]]) - total.ln()) as f32;
    let absent = std::iter::repeat((-1, f32::NEG_INFINITY));
    order.iter().map(|&id| (id as i32, log_prob(id))).chain(absent).take(count).collect()
}

#[test]
fn the_most_likely_tokens_come_in_order_with_their_log_probs() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        for vocab in VOCABULARIES {
            for count in [1, 5, 64, 300] {
                let num_rows = if vocab > 10_000 { 5 } else { 16 };
                let logits: Vec<_> = (0..num_rows).map(|r| row(&mut random, vocab, r % 2 == 0)).collect();
                let scaled: Vec<_> = (0..num_rows).map(|_| params(&mut random, vocab)).collect();
                let rows: Vec<_> = scaled.iter().map(|params| RowSampling::new(params, 3, 0)).collect();
                let rows = (count > 1).then_some(rows.as_slice());
                let found = top(&device, &logits, rows, count);
                for (r, (got, logits)) in found.iter().zip(&logits).enumerate() {
                    let factor = rows.map_or(1.0, |rows| rows[r].inverse_temperature);
                    let case = format!("{name}, seed {}: row {r} of {vocab}, {count} tokens", random.seed);
                    for (place, (got, want)) in got.iter().zip(sorted(logits, factor, count)).enumerate() {
                        let close = got.1 == want.1 || (got.1 - want.1).abs() < 2e-4 * (1.0 + want.1.abs());
                        assert!(got.0 == want.0 && close, "{case}: place {place} is {got:?}, not {want:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_that_nothing_can_be_chosen_from_have_no_likely_tokens() {
    let mut random = Random::fresh();
    for (name, device) in devices() {
        let mut logits: Vec<_> = (0..5).map(|_| row(&mut random, 700, false)).collect();
        logits[0][3] = f32::NAN;
        logits[1][4] = f32::INFINITY;
        logits[2].fill(f32::NEG_INFINITY);
        let mut rows = vec![RowSampling::new(&SamplingParams::default(), 1, 0); 5];
        rows[3].mode = RowMode::Skip;
        let found = top(&device, &logits, Some(&rows), 8);
        for (r, got) in found[..3].iter().enumerate() {
            assert_eq!(*got, [(-1, f32::NEG_INFINITY); 8], "{name}: row {r}");
        }
        assert_eq!(found[3], [(POISON, f32::from_bits(POISON as u32)); 8], "{name}: a row left out was written");
        assert_eq!(
            found[4].iter().map(|f| f.0).collect::<Vec<_>>(),
            sorted(&logits[4], 1.0, 8).iter().map(|f| f.0).collect::<Vec<_>>()
        );
    }
}

#[test]
fn tokens_in_flight_are_taken_from_where_they_were_sampled() {
    for (name, device) in devices() {
        let tokens = upload(&device, 1, &[4, -1, 0, -3, -2, 900]);
        device.resolve_tokens(&tokens, &upload(&device, 1, &[11, 12, 13])).unwrap();
        assert_eq!(words(&device, &tokens), [4, 11, 0, 13, 12, 900], "{name}");
    }
}
