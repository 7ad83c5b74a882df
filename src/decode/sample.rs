//! Choosing one token from a row of processed logits: greedy, or drawn from the set that min-p, top-k, top-p and typical-p
//! leave.
//!
//! No sort of the vocabulary: top-k keeps a heap of k, top-p partitions by mass. Randomness is a function of the seed
//! and the position, so a request draws the same numbers alone, in any batch and after a preemption.

use super::SamplingParams;
use super::logits::{self, History, Occurrences};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::step::{SampledToken, TokenLogProb};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Scratch memory of the sampler, reused from row to row.
#[derive(Debug, Default)]
pub struct SampleScratch {
    candidates: Vec<Candidate>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

/// Why nothing can be chosen from a row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleFault {
    NotNumbers { count: u32 },
    Infinite { token: TokenId },
    NoToken,
}

impl SampleFault {
    /// The fault in a sentence, for a vocabulary of `vocab_size`.
    pub fn into_error(self, vocab_size: usize) -> Error {
        match self {
            Self::NotNumbers { count } => {
                Error::internal(format!("{count} of {vocab_size} logits are NaN: no token can be sampled"))
            }
            Self::Infinite { token } => {
                Error::internal(format!("the logit of token {token} is infinite: no token can be sampled"))
            }
            Self::NoToken => Error::invalid(
                "bad_words, embedding_bias, no_repeat_ngram_size, min_tokens and the guide leave no token that could be \
                 sampled",
            ),
        }
    }
}

/// Chooses the token at `position` (tokens before it, prompt included) from processed logits `[V]`.
///
/// # Errors
/// When a logit is NaN or +∞, or no token is left: nothing can be chosen from such a row.
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    position: usize,
    scratch: &mut SampleScratch,
) -> Result<SampledToken> {
    choose(logits, params, position, scratch).map_err(|fault| fault.into_error(logits.len()))
}

/// [`sample`] with the fault as a value.
///
/// # Errors
/// As [`sample`].
pub fn choose(
    logits: &[f32],
    params: &SamplingParams,
    position: usize,
    scratch: &mut SampleScratch,
) -> std::result::Result<SampledToken, SampleFault> {
    let (best, max) = argmax(logits)?;
    if params.is_greedy() {
        let log_prob = params.log_probs.then(|| {
            let full = -(total_weight(logits, max).ln() as f32);
            TokenLogProb { full, candidates: full }
        });
        return Ok(SampledToken { id: best, log_prob });
    }
    narrow(logits, max, params, scratch);
    let candidates = &scratch.candidates;
    let mass = mass_of(candidates);
    let chosen = draw(candidates, uniform(params.seed, position as u64, CHOICE) * mass);
    Ok(sampled(chosen, mass, logits, max, params))
}

/// A token that was drawn from other logits, on its way to be accepted.
#[derive(Clone, Copy, Debug)]
pub struct Drafted<'a> {
    pub token: TokenId,
    /// `[V]`, processed as the target's.
    pub logits: &'a [f32],
    /// As [`super::DraftLogits::threshold`].
    pub threshold: Option<f32>,
}

/// [`choose`] where a token is expected: it is chosen with the probability `p / q`, at most 1, of the target's in the
/// draft's; else another one is drawn from what `p` has more than `q`. So tokens drawn from `q` become tokens of `p`.
///
/// Source: Leviathan et al., "Fast inference from transformers via speculative decoding", ICML 2023.
///
/// # Errors
/// As [`sample`].
pub fn verify(
    logits: &[f32],
    drafted: Drafted<'_>,
    params: &SamplingParams,
    position: usize,
    scratch: &mut SampleScratch,
) -> std::result::Result<SampledToken, SampleFault> {
    let (_, max) = argmax(logits)?;
    let draft_max = argmax(drafted.logits).map(|(_, max)| max);
    let (Ok(draft_max), false) = (draft_max, params.is_greedy()) else {
        return choose(logits, params, position, scratch);
    };
    narrow(drafted.logits, draft_max, params, scratch);
    let draft = std::mem::take(&mut scratch.candidates);
    narrow(logits, max, params, scratch);
    let target = &scratch.candidates;
    let (mass, draft_mass) = (mass_of(target), mass_of(&draft));
    let share = |candidates: &[Candidate], mass: f64, id: u32| {
        let at = candidates.binary_search_by_key(&id, |candidate| candidate.id);
        at.map_or(0.0, |at| f64::from(candidates[at].weight) / mass)
    };
    let id = drafted.token as u32;
    let (p, q) = (share(target, mass, id), share(&draft, draft_mass, id));
    let needed = drafted.threshold.map_or_else(|| uniform(params.seed, position as u64, ACCEPTANCE), f64::from);
    let accepted = target.iter().find(|candidate| candidate.id == id).filter(|_| p > 0.0 && p >= needed * q);
    let chosen = accepted.copied().unwrap_or_else(|| {
        let excess = |candidate: &Candidate| {
            let p = f64::from(candidate.weight) / mass;
            Candidate { weight: (p - share(&draft, draft_mass, candidate.id)).max(0.0) as f32, ..*candidate }
        };
        let rest: Vec<_> = target.iter().map(excess).collect();
        let rest_mass = mass_of(&rest);
        // Nothing is left where both are the same up to rounding.
        let (from, from_mass) = if rest_mass > 0.0 { (&rest, rest_mass) } else { (target, mass) };
        let drawn = draw(from, uniform(params.seed, position as u64, CHOICE) * from_mass);
        Candidate { weight: (drawn.logit - max).exp(), ..drawn }
    });
    Ok(sampled(chosen, mass, logits, max, params))
}

/// The chosen token with what was asked for about it.
fn sampled(chosen: Candidate, mass: f64, logits: &[f32], max: f32, params: &SamplingParams) -> SampledToken {
    let log_prob = params.log_probs.then(|| TokenLogProb {
        full: (f64::from(chosen.weight) / total_weight(logits, max)).ln() as f32,
        candidates: (f64::from(chosen.weight) / mass).ln() as f32,
    });
    SampledToken { id: chosen.id as TokenId, log_prob }
}

fn mass_of(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Fills the candidates with what top-k, min-p, top-p and typical-p leave, in the order of ids.
fn narrow(logits: &[f32], max: f32, params: &SamplingParams, scratch: &mut SampleScratch) {
    collect_candidates(logits, max, params.top_k as usize, scratch);
    let candidates = &mut scratch.candidates;
    if params.min_p > 0.0 {
        candidates.retain(|candidate| candidate.weight >= params.min_p);
    }
    if let Some(top_p) = params.top_p.filter(|&p| p < 1.0) {
        let kept = nucleus(candidates, f64::from(top_p));
        candidates.truncate(kept);
    }
    if params.typical_p < 1.0 {
        keep_typical(candidates, max, f64::from(params.typical_p));
    }
    // Drawn in the order of ids: an order of selection would depend on the last bits of unrelated logits.
    let in_order = candidates.len() == logits.len() && params.top_p.is_none_or(|p| p >= 1.0) && params.typical_p >= 1.0;
    if !in_order {
        candidates.sort_unstable_by_key(|candidate| candidate.id);
    }
}

/// The `count` most likely tokens of processed logits `[V]` with their natural log-probabilities within the whole
/// vocabulary: best first, equals by their ids. Fewer where the vocabulary is smaller.
///
/// # Errors
/// As [`sample`].
pub fn most_likely(
    logits: &[f32],
    count: usize,
    scratch: &mut SampleScratch,
) -> std::result::Result<Vec<(TokenId, f32)>, SampleFault> {
    let (_, max) = argmax(logits)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    collect_candidates(logits, max, count, scratch);
    scratch.candidates.sort_unstable_by(|a, b| b.cmp(a));
    let log_total = total_weight(logits, max).ln();
    let log_prob = |candidate: &Candidate| (f64::from(candidate.logit - max) - log_total) as f32;
    Ok(scratch.candidates.iter().map(|candidate| (candidate.id as TokenId, log_prob(candidate))).collect())
}

/// [`most_likely`] behind all passes of a request but its guide, which turn the logits `[V]` after `tokens`, the first
/// `prompt_len` of them its prompt, into those that are chosen from.
///
/// # Errors
/// As [`sample`].
pub fn most_likely_next(
    logits: &mut [f32],
    sampling: &SamplingParams,
    tokens: &[TokenId],
    prompt_len: usize,
    count: usize,
) -> std::result::Result<Vec<(TokenId, f32)>, SampleFault> {
    let occurrences = Occurrences::of(tokens, prompt_len, sampling);
    logits::apply(logits, sampling, &History { tokens, prompt_len, occurrences: &occurrences });
    most_likely(logits, count, &mut SampleScratch::default())
}

/// The lowest index of the largest logit, and its value.
fn argmax(logits: &[f32]) -> std::result::Result<(TokenId, f32), SampleFault> {
    let mut best = 0;
    let mut max = f32::NEG_INFINITY;
    let mut not_numbers = 0_u32;
    for (index, &logit) in logits.iter().enumerate() {
        not_numbers += u32::from(logit.is_nan());
        if logit > max {
            (best, max) = (index, logit);
        }
    }
    if not_numbers > 0 {
        return Err(SampleFault::NotNumbers { count: not_numbers });
    }
    if max == f32::INFINITY {
        return Err(SampleFault::Infinite { token: best as TokenId });
    }
    if max == f32::NEG_INFINITY {
        return Err(SampleFault::NoToken);
    }
    Ok((best as TokenId, max))
}

/// `Σ exp(logit - max)`, summed in f64.
fn total_weight(logits: &[f32], max: f32) -> f64 {
    logits.iter().map(|&logit| f64::from((logit - max).exp())).sum()
}

/// A token and `exp(logit - max)`; greater means more likely, then the lower id.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    weight: f32,
    id: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.logit.total_cmp(&other.logit).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Fills the candidates: the `top_k` most likely tokens, or all (in the order of ids) without a limit.
fn collect_candidates(logits: &[f32], max: f32, top_k: usize, scratch: &mut SampleScratch) {
    let SampleScratch { candidates, heap } = scratch;
    candidates.clear();
    // The sum makes both zeros equal.
    let candidate = |(id, &logit): (usize, &f32)| Candidate { logit: logit + 0.0, weight: 0.0, id: id as u32 };
    let all = logits.iter().enumerate().map(candidate);
    if top_k == 0 || top_k >= logits.len() {
        candidates.extend(all);
    } else {
        heap.clear();
        let mut threshold = f32::NEG_INFINITY;
        for candidate in all {
            if heap.len() < top_k {
                heap.push(Reverse(candidate));
            } else if candidate.logit > threshold {
                heap.pop();
                heap.push(Reverse(candidate));
            } else {
                continue;
            }
            if heap.len() == top_k {
                threshold = heap.peek().map_or(threshold, |lowest| lowest.0.logit);
            }
        }
        candidates.extend(heap.drain().map(|Reverse(candidate)| candidate));
    }
    for candidate in candidates.iter_mut() {
        candidate.weight = (candidate.logit - max).exp();
    }
}

/// Moves the smallest set of most likely candidates with at least `top_p` of the mass to the front; returns its size.
fn nucleus(candidates: &mut [Candidate], top_p: f64) -> usize {
    let mass: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let mut missing = top_p * mass;
    let (mut start, mut end) = (0, candidates.len());
    while end - start > 1 {
        let middle = (end - start) / 2;
        let (front, pivot, _) = candidates[start..end].select_nth_unstable_by(middle, |a, b| b.cmp(a));
        let before: f64 = front.iter().map(|candidate| f64::from(candidate.weight)).sum();
        let through = before + f64::from(pivot.weight);
        if before >= missing {
            end = start + middle;
        } else if through >= missing {
            return start + middle + 1;
        } else {
            missing -= through;
            start += middle + 1;
        }
    }
    end.max(1)
}

/// Keeps the smallest set with at least `typical_p` of the mass of the candidates whose information content is closest
/// to the entropy of all candidates: whose logits are closest to the mean logit.
///
/// Source: Meister et al., "Locally typical sampling", TACL 2023.
fn keep_typical(candidates: &mut Vec<Candidate>, max: f32, typical_p: f64) {
    candidates.retain(|candidate| candidate.weight > 0.0);
    let mass: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let below: f64 =
        candidates.iter().map(|candidate| f64::from(candidate.weight) * f64::from(max - candidate.logit)).sum();
    // ln(mass) is part of both the information and the entropy.
    let center = max - (below / mass) as f32;
    let distance = |candidate: &Candidate| (candidate.logit - center).abs();
    candidates.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id)));
    let mut cumulative = 0.0;
    let before = candidates.iter().take_while(|candidate| {
        cumulative += f64::from(candidate.weight);
        cumulative < typical_p * mass
    });
    let kept = before.count() + 1;
    candidates.truncate(kept);
}

/// The candidate in whose share of the mass `target` falls.
fn draw(candidates: &[Candidate], target: f64) -> Candidate {
    let mut cumulative = 0.0;
    let mut last = candidates[0];
    for &candidate in candidates.iter().filter(|candidate| candidate.weight > 0.0) {
        cumulative += f64::from(candidate.weight);
        last = candidate;
        if target < cumulative {
            break;
        }
    }
    last
}

/// The stream of numbers that tokens are drawn by.
const CHOICE: u32 = 0;
/// The stream of numbers that expected tokens are accepted by.
const ACCEPTANCE: u32 = 1;

/// A number in `[0, 1)` that depends on the seed, the position and the stream only.
fn uniform(seed: u64, position: u64, stream: u32) -> f64 {
    let [low, high, ..] =
        philox4x32([position as u32, (position >> 32) as u32, stream, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

/// Philox4x32-10, a counter-based generator.
///
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests;
