//! What draws follow: distributions that are known, held by their chi-square statistic.

use triton_trtllm::decode::logits::{self, History, Occurrences};
use triton_trtllm::decode::sample::{Drafted, SampleScratch, sample, verify};
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
    are_of(&histogram(&logs(probabilities), params), weights, limit);
}

fn are_of(counts: &[usize], weights: &[f64], limit: f64) {
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

/// How often each token comes of tokens drawn from `q` and verified by `p`, and how many of the drawn ones were taken.
fn verified(p: &[f32], q: &[f32], params: &SamplingParams, threshold: Option<f32>) -> (Vec<usize>, usize) {
    let (target, draft) = (logs(p), logs(q));
    let (mut counts, mut taken) = (vec![0; p.len()], 0);
    let mut scratch = SampleScratch::default();
    for position in 0..DRAWS {
        let by_draft = SamplingParams { seed: 77, ..params.clone() };
        let token = sample(&draft, &by_draft, position, &mut scratch).unwrap().id;
        let drafted = Drafted { token, logits: &draft, threshold };
        let chosen = verify(&target, drafted, params, position, &mut scratch).unwrap().id;
        counts[chosen as usize] += 1;
        taken += usize::from(chosen == token);
    }
    (counts, taken)
}

#[test]
fn verified_drafts_follow_the_target_whatever_they_were_drawn_from() {
    let p = [0.05, 0.4, 0.25, 0.2, 0.1];
    for q in [[0.2; 5], [0.5, 0.1, 0.1, 0.2, 0.1], [0.05, 0.4, 0.25, 0.2, 0.1], [0.96, 0.01, 0.01, 0.01, 0.01]] {
        let all = SamplingParams { top_p: Some(1.0), ..Default::default() };
        let (counts, taken) = verified(&p, &q, &all, None);
        are_of(&counts, &p.map(f64::from), 18.5);
        let overlap: f32 = p.iter().zip(&q).map(|(p, q)| p.min(*q)).sum();
        let rate = taken as f32 / DRAWS as f32;
        assert!((rate - overlap).abs() < 0.02, "{rate} of the drafts are taken, not {overlap}");
        // Both sides are narrowed: what the target's top-k excludes is never said.
        let few = SamplingParams { top_k: 3, ..Default::default() };
        are_of(&verified(&p, &q, &few, None).0, &[0.0, 0.4, 0.25, 0.2, 0.0], 13.8);
    }
}

#[test]
fn a_threshold_takes_the_place_of_chance() {
    let (p, q) = ([0.1, 0.6, 0.3], [0.5, 0.3, 0.2]);
    let all = SamplingParams { top_p: Some(1.0), ..Default::default() };
    // At least 0.1 / 0.5: everything is taken as it was drawn.
    let (counts, taken) = verified(&p, &q, &all, Some(0.19));
    assert_eq!(taken, DRAWS);
    are_of(&counts, &[0.5, 0.3, 0.2], 13.8);
    // Token 0 is not likely enough any more; what takes its place is what the target has more of.
    let (counts, _) = verified(&p, &q, &all, Some(0.21));
    are_of(&counts, &[0.0, 0.3 + 0.5 * 0.75, 0.2 + 0.5 * 0.25], 13.8);
}

#[test]
fn greedy_answers_do_not_depend_on_drafts() {
    let p = [0.1, 0.6, 0.3];
    for token in 0..3 {
        let q = logs(&[0.9, 0.05, 0.05]);
        let drafted = Drafted { token, logits: &q, threshold: Some(0.01) };
        let chosen = verify(&logs(&p), drafted, &SamplingParams::default(), 4, &mut SampleScratch::default()).unwrap();
        assert_eq!(chosen.id, 1);
    }
}
