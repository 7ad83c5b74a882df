//! What draws follow: distributions that are known, held by their chi-square statistic.

use triton_trtllm::decode::logits::{self, History, Occurrences};
use triton_trtllm::decode::sample::{SampleScratch, sample};
use triton_trtllm::decode::{PassOrder, SamplingParams};

const DRAWS: usize = 20_000;

/// Logits of these probabilities.
fn logs(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

fn histogram(logits: &[f32], params: &SamplingParams) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let mut scratch = SampleScratch::default();
    for position in 0..DRAWS {
        counts[sample(logits, params, position, &mut scratch).unwrap().id as usize] += 1;
    }
    counts
}

/// Holds the draws to `weights`, of which 0 is never drawn. `limit`: the 0.999 quantile for the degrees of freedom.
fn follows(probabilities: &[f32], params: &SamplingParams, weights: &[f64], limit: f64) {
    let counts = histogram(&logs(probabilities), params);
    let mass: f64 = weights.iter().sum();
    let mut statistic = 0.0;
    for (&count, weight) in counts.iter().zip(weights) {
        let expected = weight / mass * DRAWS as f64;
        assert!(expected > 0.0 || count == 0, "{counts:?} for {weights:?}");
        if expected > 0.0 {
            statistic += (count as f64 - expected).powi(2) / expected;
        }
    }
    assert!(statistic < limit, "{statistic}: {counts:?} for {weights:?}");
}

#[test]
fn min_p_keeps_what_is_likely_enough_beside_the_best() {
    let p = [0.05, 0.4, 0.25, 0.2, 0.1];
    let with = |min_p| SamplingParams { min_p, ..Default::default() };
    follows(&p, &with(0.3), &[0.0, 0.4, 0.25, 0.2, 0.0], 13.8);
    follows(&p, &with(0.2), &[0.0, 0.4, 0.25, 0.2, 0.1], 16.3);
    follows(&p, &with(1.0), &[0.0, 1.0, 0.0, 0.0, 0.0], 1.0);
    let both = SamplingParams { top_p: Some(0.5), ..with(0.3) };
    follows(&p, &both, &[0.0, 0.4, 0.25, 0.0, 0.0], 10.9);
}

#[test]
fn typical_p_keeps_what_is_as_surprising_as_expected() {
    // Entropy 1.418; information of the tokens: 3.0, 0.92, 1.39, 1.61, 2.3.
    let p = [0.05, 0.4, 0.25, 0.2, 0.1];
    let with = |typical_p| SamplingParams { typical_p, ..Default::default() };
    follows(&p, &with(0.2), &[0.0, 0.0, 1.0, 0.0, 0.0], 1.0);
    follows(&p, &with(0.4), &[0.0, 0.0, 0.25, 0.2, 0.0], 10.9);
    follows(&p, &with(0.8), &[0.0, 0.4, 0.25, 0.2, 0.0], 13.8);
    follows(&p, &with(0.99), &[0.05, 0.4, 0.25, 0.2, 0.1], 18.5);
}

#[test]
fn typical_p_works_on_what_the_other_limits_leave() {
    let p = [0.05, 0.4, 0.25, 0.2, 0.1];
    // Of 0.4 and 0.25 alone the entropy is 0.666, and their information 0.486 and 0.956.
    let params = SamplingParams { top_k: 2, typical_p: 0.5, ..Default::default() };
    follows(&p, &params, &[0.0, 1.0, 0.0, 0.0, 0.0], 1.0);
}

#[test]
fn what_is_not_limited_is_the_softmax_at_any_temperature() {
    let p = [0.05_f32, 0.4, 0.25, 0.2, 0.1];
    let params = SamplingParams { top_p: Some(1.0), seed: 3, ..Default::default() };
    follows(&p, &params, &p.map(f64::from), 18.5);
    let warm: Vec<f32> = p.map(|p| p.powf(0.5)).into();
    let weights: Vec<f64> = warm.iter().map(|&w| f64::from(w)).collect();
    follows(&warm, &params, &weights, 18.5);
}

fn passes(params: &SamplingParams, tokens: &[i32], prompt_len: usize) -> Vec<f32> {
    let mut occurrences = Occurrences::default();
    occurrences.add_prompt(&tokens[..prompt_len], params);
    tokens[prompt_len..].iter().for_each(|&token| occurrences.add(token));
    let mut row = vec![2.0; 4];
    logits::apply(&mut row, params, &History { tokens, prompt_len, occurrences: &occurrences });
    row.iter().map(|logit| (logit * 1e3).round() / 1e3).collect()
}

#[test]
fn penalties_act_after_the_temperature_or_before_it() {
    let params = |order| SamplingParams {
        temperature: 0.5,
        presence_penalty: 1.0,
        frequency_penalty: 0.25,
        repetition_penalty: 2.0,
        order,
        ..Default::default()
    };
    // Token 0 in the prompt, token 1 generated twice, token 2 in both.
    let (tokens, prompt_len) = ([0, 2, 1, 1, 2], 2);
    let first = passes(&params(PassOrder::TemperatureFirst), &tokens, prompt_len);
    assert_eq!(first, [2.0 - 1.25, 2.0 - 1.5, 2.0 - 1.5, 4.0]);
    let last = passes(&params(PassOrder::PenaltiesFirst), &tokens, prompt_len);
    assert_eq!(last, [2.0, 2.0 * (1.0 - 1.5), 2.0 * (1.0 - 1.25), 4.0]);
}
