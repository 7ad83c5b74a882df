use super::*;

fn params(top_k: u32, top_p: Option<f32>) -> SamplingParams {
    SamplingParams { top_k, top_p, log_probs: true, ..Default::default() }
}

fn draw_one(logits: &[f32], params: &SamplingParams, position: usize) -> SampledToken {
    sample(logits, params, position, &mut SampleScratch::default()).unwrap()
}

/// Natural logarithms of probabilities, so that the softmax gives them back.
fn logs(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

/// How often each token is drawn over many positions.
fn histogram(logits: &[f32], params: &SamplingParams, draws: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let mut scratch = SampleScratch::default();
    for position in 0..draws {
        counts[sample(logits, params, position, &mut scratch).unwrap().id as usize] += 1;
    }
    counts
}

fn chi_square(counts: &[usize], probabilities: &[f32]) -> f64 {
    let draws: usize = counts.iter().sum();
    counts
        .iter()
        .zip(probabilities)
        .filter(|(_, p)| **p > 0.0)
        .map(|(&count, &p)| {
            let expected = f64::from(p) * draws as f64;
            (count as f64 - expected).powi(2) / expected
        })
        .sum()
}

#[test]
fn philox_gives_the_published_vectors() {
    assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
}

#[test]
fn nothing_set_is_greedy_with_the_lowest_index_on_ties() {
    assert_eq!(draw_one(&[1.0, 3.0, 3.0, 0.0], &params(0, None), 5).id, 1);
    assert_eq!(draw_one(&[1.0, 3.0, 3.0, 0.0], &params(1, Some(0.5)), 5).id, 1);
    let cold = SamplingParams { temperature: 0.0, ..params(50, Some(0.9)) };
    assert_eq!(draw_one(&[1.0, 2.0, 3.0], &cold, 5).id, 2);
}

#[test]
fn greedy_log_probs_are_those_of_the_whole_vocabulary() {
    let got = draw_one(&logs(&[0.2, 0.7, 0.1]), &params(0, None), 0).log_prob.unwrap();
    assert!((got.full - 0.7_f32.ln()).abs() < 1e-6);
    assert_eq!(got.full, got.candidates);
}

#[test]
fn log_probs_know_the_vocabulary_and_the_candidates() {
    let token = draw_one(&logs(&[0.4, 0.3, 0.2, 0.1]), &params(2, None), 3);
    let p = [0.4_f32, 0.3][token.id as usize];
    let got = token.log_prob.unwrap();
    assert!((got.full - p.ln()).abs() < 1e-5, "{got:?}");
    assert!((got.candidates - (p / 0.7).ln()).abs() < 1e-5, "{got:?}");
    assert_eq!(draw_one(&[0.0], &SamplingParams { top_k: 5, ..Default::default() }, 0).log_prob, None);
}

#[test]
fn the_distribution_is_the_softmax() {
    let p = [0.05, 0.4, 0.25, 0.2, 0.1];
    let counts = histogram(&logs(&p), &params(0, Some(1.0)), 20_000);
    // 4 degrees of freedom: 18.5 is the 0.999 quantile
    assert!(chi_square(&counts, &p) < 18.5, "{counts:?}");
}

#[test]
fn top_k_keeps_exactly_k_and_renormalizes() {
    let counts = histogram(&logs(&[0.05, 0.4, 0.25, 0.2, 0.1]), &params(3, None), 20_000);
    let expected = [0.0, 0.4 / 0.85, 0.25 / 0.85, 0.2 / 0.85, 0.0];
    assert_eq!((counts[0], counts[4]), (0, 0));
    assert!(chi_square(&counts, &expected) < 13.8, "{counts:?}");
}

#[test]
fn top_k_prefers_the_lower_id_on_ties() {
    let counts = histogram(&[1.0, 1.0, 1.0, 1.0, 0.0], &params(2, None), 2_000);
    assert!(counts[0] > 800 && counts[1] > 800 && counts[2..].iter().all(|&c| c == 0), "{counts:?}");
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_the_mass() {
    let logits = logs(&[0.05, 0.4, 0.25, 0.2, 0.1]);
    let kept = |top_p| {
        let counts = histogram(&logits, &params(0, Some(top_p)), 5_000);
        counts.iter().enumerate().filter(|(_, c)| **c > 0).map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(kept(0.3), [1]);
    assert_eq!(kept(0.41), [1, 2]);
    assert_eq!(kept(0.7), [1, 2, 3]);
    assert_eq!(kept(0.9), [1, 2, 3, 4]);
    assert_eq!(kept(0.99), [0, 1, 2, 3, 4]);
    assert_eq!(kept(1e-9), [1]);
}

#[test]
fn top_p_works_within_the_mass_of_top_k() {
    // of the three kept by top-k, 0.5 of their mass (0.85) is reached by the first two only
    let counts = histogram(&logs(&[0.05, 0.4, 0.25, 0.2, 0.1]), &params(3, Some(0.5)), 5_000);
    assert!(counts[1] > 0 && counts[2] > 0 && counts[3] == 0, "{counts:?}");
}

#[test]
fn nucleus_agrees_with_sorting() {
    for size in 1..40_u32 {
        for step in 1..20 {
            let top_p = f64::from(step) / 20.0;
            let mut candidates: Vec<_> = (0..size)
                .map(|id| {
                    let logit = ((id * 7919 + size * 31) % 13) as f32 * 0.37;
                    Candidate { logit, weight: logit.exp(), id }
                })
                .collect();
            let mut sorted = candidates.clone();
            sorted.sort_by(|a, b| b.cmp(a));
            let mass: f64 = sorted.iter().map(|c| f64::from(c.weight)).sum();
            let mut cumulative = 0.0;
            let expected = 1 + sorted
                .iter()
                .take_while(|c| {
                    cumulative += f64::from(c.weight);
                    cumulative < top_p * mass - 1e-9
                })
                .count();
            let kept = nucleus(&mut candidates, top_p - 1e-12);
            let mut front = candidates[..kept].to_vec();
            front.sort_by(|a, b| b.cmp(a));
            assert_eq!(front, sorted[..expected.min(sorted.len())], "size {size} top_p {top_p}");
        }
    }
}

#[test]
fn the_draw_depends_on_seed_and_position_only() {
    let logits = logs(&[0.25; 4]);
    let with_seed = |seed| SamplingParams { seed, ..params(0, Some(1.0)) };
    let stream = |seed| (0..64).map(|position| draw_one(&logits, &with_seed(seed), position).id).collect::<Vec<_>>();
    assert_eq!(stream(7), stream(7));
    assert_ne!(stream(7), stream(8));
    assert_ne!(stream(7), stream(7 | 1 << 40));
    let reversed: Vec<_> = (0..64).rev().map(|position| draw_one(&logits, &with_seed(7), position).id).collect();
    assert_eq!(reversed.into_iter().rev().collect::<Vec<_>>(), stream(7));
}

#[test]
fn masked_tokens_are_never_drawn() {
    let counts = histogram(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0], &params(0, Some(1.0)), 2_000);
    assert!(counts[0] == 0 && counts[2] == 0, "{counts:?}");
}

#[test]
fn rows_without_numbers_are_errors() {
    let run = |logits: &[f32]| sample(logits, &params(0, None), 0, &mut SampleScratch::default()).unwrap_err();
    assert!(run(&[0.0, f32::NAN, 1.0]).message().contains("1 of 3 logits are NaN"));
    assert!(run(&[0.0, f32::INFINITY]).message().contains("infinite"));
    assert!(run(&[f32::NEG_INFINITY; 3]).message().contains("no token"));
}
