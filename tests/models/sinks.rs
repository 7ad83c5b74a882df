//! `sink_token_length` against the rule of StreamingLLM, word for word: keys are cached without rotation, what a token
//! sees is numbered from 0 on, and keys and query are rotated by these numbers.

use crate::driver::{Driver, fixtures, load, options};
use safetensors::SafeTensors;
use std::fs;
use triton_trtllm::decode::SamplingParams;
use triton_trtllm::ids::TokenId;
use triton_trtllm::runner::ModelOptions;

const SINKS: usize = 4;
const WINDOW: usize = 20;

/// Sizes of the fixture `llama-gqa`.
const LAYERS: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 8;

#[derive(Clone, Copy, PartialEq)]
enum Rule {
    InCache,
    InSequence,
}

struct Reference {
    bytes: Vec<u8>,
}

impl Reference {
    fn open() -> Self {
        Self { bytes: fs::read(fixtures().join("models/llama-gqa/model.safetensors")).unwrap() }
    }

    fn weight(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(&format!("{name}.weight")).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
        tensor.data().chunks_exact(4).map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap()))).collect()
    }

    /// Logits behind every token.
    fn logits(&self, tokens: &[TokenId], rule: Rule) -> Vec<Vec<f64>> {
        let table = self.weight("model.embed_tokens");
        let width = HEADS * DIM;
        let mut hidden: Vec<_> = tokens.iter().map(|&id| table[id as usize * width..][..width].to_vec()).collect();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let normed = rms_norm(&hidden, &self.weight(&name("input_layernorm")));
            let project = |part: &str| linear(&normed, &self.weight(&name(part)));
            let [q, k, v] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(project);
            add(&mut hidden, &linear(&attention(&q, &k, &v, rule), &self.weight(&name("self_attn.o_proj"))));
            let normed = rms_norm(&hidden, &self.weight(&name("post_attention_layernorm")));
            let [mut gate, up] =
                ["mlp.gate_proj", "mlp.up_proj"].map(|part| linear(&normed, &self.weight(&name(part))));
            for (gate, up) in gate.iter_mut().flatten().zip(up.iter().flatten()) {
                *gate = *gate / (1.0 + (-*gate).exp()) * up;
            }
            add(&mut hidden, &linear(&gate, &self.weight(&name("mlp.down_proj"))));
        }
        linear(&rms_norm(&hidden, &self.weight("model.norm")), &self.weight("lm_head"))
    }
}

fn rms_norm(rows: &[Vec<f64>], weight: &[f64]) -> Vec<Vec<f64>> {
    let norm = |row: &Vec<f64>| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        row.iter().zip(weight).map(|(x, weight)| x / (mean + 1e-5).sqrt() * weight).collect()
    };
    rows.iter().map(norm).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn linear(rows: &[Vec<f64>], weight: &[f64]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| weight.chunks_exact(row.len()).map(|weight| dot(row, weight)).collect()).collect()
}

fn add(to: &mut [Vec<f64>], rows: &[Vec<f64>]) {
    to.iter_mut().flatten().zip(rows.iter().flatten()).for_each(|(to, x)| *to += x);
}

fn rotated(head: &[f64], position: usize) -> Vec<f64> {
    let half = DIM / 2;
    let mut out = head.to_vec();
    for i in 0..half {
        let (sin, cos) = (position as f64 * 10000f64.powf(-(i as f64) / half as f64)).sin_cos();
        (out[i], out[i + half]) = (head[i] * cos - head[i + half] * sin, head[i + half] * cos + head[i] * sin);
    }
    out
}

fn attention(q: &[Vec<f64>], k: &[Vec<f64>], v: &[Vec<f64>], rule: Rule) -> Vec<Vec<f64>> {
    let row = |token: usize| {
        let cache: Vec<usize> = (0..=token).filter(|&key| key < SINKS || token - key < WINDOW).collect();
        let position = |index: usize| if rule == Rule::InCache { index } else { cache[index] };
        let mut out = vec![0.0; HEADS * DIM];
        for (head, out) in out.chunks_exact_mut(DIM).enumerate() {
            let kv = head / (HEADS / KV_HEADS) * DIM..(head / (HEADS / KV_HEADS) + 1) * DIM;
            let query = rotated(&q[token][head * DIM..][..DIM], position(cache.len() - 1));
            let key = |index: usize| rotated(&k[cache[index]][kv.clone()], position(index));
            let weights: Vec<_> =
                (0..cache.len()).map(|index| (dot(&query, &key(index)) / (DIM as f64).sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (&key, weight) in cache.iter().zip(weights) {
                out.iter_mut().zip(&v[key][kv.clone()]).for_each(|(out, v)| *out += weight / sum * v);
            }
        }
        out
    };
    (0..q.len()).map(row).collect()
}

fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).abs()).fold(0.0, f64::max)
}

/// A model whose layers see the first 4 and the last 20 tokens.
fn driver() -> Driver {
    let plain = options(&fixtures().join("models/llama-gqa"), 120);
    Driver::new(
        load(&ModelOptions {
            attention_windows: vec![SINKS + WINDOW],
            sink_tokens: SINKS,
            window_pools: false,
            ..plain
        })
        .executor,
    )
}

fn prompt(len: usize) -> Vec<TokenId> {
    (0..len).map(|at| ((at * at * 7 + at * 37 + 5) % 128) as TokenId).collect()
}

#[test]
fn positions_are_those_in_the_cache_however_a_prompt_is_cut() {
    let (prompt, reference) = (prompt(90), Reference::open());
    let want = reference.logits(&prompt, Rule::InCache).pop().unwrap();
    let in_sequence = reference.logits(&prompt, Rule::InSequence).pop().unwrap();
    let mut driver = driver();
    for chunk in [usize::MAX, 1, 7, 33] {
        let seq = driver.add(&prompt, &SamplingParams::default());
        while driver.step(&[seq], chunk, Vec::new()).is_empty() {}
        let got = driver.executor.last_logits().unwrap().remove(0);
        let (right, wrong) = (distance(&got, &want), distance(&got, &in_sequence));
        assert!(right < 1e-4 && wrong > 1e-2, "chunks of {chunk}: {right} from the rule, {wrong} from the other");
        driver.preempt(seq);
    }
}

#[test]
fn generation_beyond_the_window_goes_on_with_the_positions_in_the_cache() {
    let mut driver = driver();
    let mut tokens = prompt(6);
    let seq = driver.add(&tokens, &SamplingParams::default());
    let mut got = Vec::new();
    for _ in 0..70 {
        tokens.push(driver.step(&[seq], usize::MAX, Vec::new())[0].tokens[0].id);
        got.push(driver.executor.last_logits().unwrap().remove(0));
    }
    let want = Reference::open().logits(&tokens, Rule::InCache);
    for (step, (got, want)) in got.iter().zip(&want[5..]).enumerate() {
        assert!(distance(got, want) < 1e-4, "step {step}: {}", distance(got, want));
    }
}
