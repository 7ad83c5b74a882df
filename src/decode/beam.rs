//! Beam search: which continuations of several hypotheses are followed, and when none can become better than those that
//! are complete.
//!
//! Source: the scores are TensorRT-LLM's, `cum_log_prob / length ^ len_penalty`; what counts as complete and when the
//! search ends is as in Hugging Face transformers, whose results this equals.

use std::sync::Arc;

use super::sample::SampleFault;
use super::{StopCriteria, StopVerdict};
use crate::ids::TokenId;

/// When a search ends before the longest output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// 1: as soon as there are as many complete hypotheses as the beam is wide.
    #[default]
    WhenFull,
    /// 0: when the best hypothesis that goes on, scored at its present length, is no better than the worst complete one.
    Heuristic,
    /// Any other number: when it could not become better at any length.
    Never,
}

impl From<i32> for EarlyStopping {
    fn from(number: i32) -> Self {
        match number {
            1 => Self::WhenFull,
            0 => Self::Heuristic,
            _ => Self::Never,
        }
    }
}

/// How a beam search is done.
#[derive(Clone, Debug, PartialEq)]
pub struct BeamParams {
    /// Most hypotheses that are followed, at least 1; as many complete ones are kept.
    pub width: usize,
    /// How many are followed after the first token, the second and so on, each 1 to `width`; the last number goes for all
    /// further tokens. Empty: `width`.
    pub widths: Vec<usize>,
    /// Exponent of the length in a score: above 0 favours long answers.
    pub len_penalty: f32,
    pub early_stopping: EarlyStopping,
    /// Added to the ranking of each continuation, times the rank of the hypothesis that it continues.
    pub diversity_rate: f32,
    /// Best hypotheses that are returned, 1 to `width`.
    pub num_return: usize,
    /// Whether the hypotheses so far are reported after every token.
    pub stream: bool,
}

impl BeamParams {
    /// Hypotheses that are followed after so many tokens.
    fn width_after(&self, tokens: usize) -> usize {
        self.widths.get(tokens - 1).or(self.widths.last()).copied().unwrap_or(self.width)
    }
}

/// An answer, or its beginning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hypothesis {
    /// Generated tokens without the end token.
    pub tokens: Vec<TokenId>,
    /// Natural log-probability of each token within the whole vocabulary, after all passes.
    pub log_probs: Vec<f32>,
    /// Sum of all log-probabilities, that of the end token included.
    pub cum_log_prob: f32,
    /// What hypotheses are compared by.
    pub score: f32,
    /// Why it is complete; `None`: it is not, or was not when the search was ended.
    pub verdict: Option<StopVerdict>,
    /// The hypothesis of the step before that this one continues.
    pub parent: usize,
    /// `[V]` for each token: what it was chosen from, before any pass. Empty unless the outlooks have them.
    pub logits: Vec<Arc<[f32]>>,
}

/// How a live hypothesis may go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// Most likely next tokens, best first, with their natural log-probabilities: [`BeamSearch::num_candidates`], or fewer
    /// where no more are possible.
    pub top: Vec<(TokenId, f32)>,
    /// `[V]`, before any pass; where hypotheses keep them.
    pub logits: Option<Arc<[f32]>>,
}

/// The state of one search.
#[derive(Debug)]
pub struct BeamSearch {
    params: BeamParams,
    stop: StopCriteria,
    prompt: Vec<TokenId>,
    /// Followed, best first, all of the same length.
    live: Vec<Hypothesis>,
    /// Complete, best first, at most `width`.
    complete: Vec<Hypothesis>,
    is_over: bool,
}

/// A continuation of a live hypothesis.
struct Candidate {
    parent: usize,
    token: TokenId,
    log_prob: f32,
    cum_log_prob: f32,
    /// With the diversity.
    rank: f32,
}

impl BeamSearch {
    /// A search that has not said anything.
    pub fn new(params: BeamParams, stop: StopCriteria, prompt: Vec<TokenId>) -> Self {
        Self { params, stop, prompt, live: vec![Hypothesis::default()], complete: Vec::new(), is_over: false }
    }

    pub fn params(&self) -> &BeamParams {
        &self.params
    }

    pub fn prompt(&self) -> &[TokenId] {
        &self.prompt
    }

    /// What is followed: the hypotheses whose outlook is wanted, best first.
    pub fn live(&self) -> &[Hypothesis] {
        &self.live
    }

    /// Tokens of an outlook: as many as there must be for the beam to go on when every complete hypothesis is better.
    pub fn num_candidates(&self) -> usize {
        (1 + self.stop.end_ids.len().max(1)) * self.params.width_after(self.length())
    }

    /// Chooses the next tokens by an outlook for each live hypothesis. Whether the search goes on.
    ///
    /// # Errors
    /// When nothing is complete and nothing can be continued.
    pub fn advance(&mut self, outlooks: &[Outlook]) -> Result<bool, SampleFault> {
        let length = self.length();
        let width = self.params.width_after(length);
        let mut next: Vec<Hypothesis> = Vec::with_capacity(width);
        for (rank, candidate) in self.candidates(outlooks).iter().enumerate() {
            let verdict = self.stop.judge(&self.live[candidate.parent].tokens, candidate.token);
            let logits = outlooks[candidate.parent].logits.as_ref();
            if verdict == StopVerdict::Continue {
                if next.len() < width {
                    next.push(self.extend(candidate, None, logits));
                }
            } else if rank < width {
                let hypothesis = self.extend(candidate, Some(verdict), logits);
                let at = self.complete.partition_point(|other| other.score >= hypothesis.score);
                self.complete.insert(at, hypothesis);
                self.complete.truncate(self.params.width);
            }
        }
        if next.is_empty() && self.complete.is_empty() {
            return Err(SampleFault::NoToken);
        }
        self.live = next;
        self.is_over = self.is_done(length);
        Ok(!self.is_over)
    }

    /// The best hypotheses, best first: while the search goes on, those that are not complete included.
    pub fn best(&self) -> Vec<Hypothesis> {
        let live = if self.is_over { &[][..] } else { &self.live };
        let mut all: Vec<_> = self.complete.iter().chain(live).collect();
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all.into_iter().take(self.params.num_return).cloned().collect()
    }

    /// Of the hypotheses after the next token.
    fn length(&self) -> usize {
        1 + self.live.first().map_or(0, |hypothesis| hypothesis.tokens.len())
    }

    fn candidates(&self, outlooks: &[Outlook]) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (parent, (hypothesis, outlook)) in self.live.iter().zip(outlooks).enumerate() {
            candidates.extend(outlook.top.iter().map(|&(token, log_prob)| {
                let cum_log_prob = hypothesis.cum_log_prob + log_prob;
                let rank = cum_log_prob + self.params.diversity_rate * parent as f32;
                Candidate { parent, token, log_prob, cum_log_prob, rank }
            }));
        }
        candidates.retain(|candidate| candidate.token >= 0 && candidate.log_prob > f32::NEG_INFINITY);
        let order = |candidate: &Candidate| (candidate.parent, candidate.token);
        candidates.sort_by(|a, b| b.rank.total_cmp(&a.rank).then(order(a).cmp(&order(b))));
        candidates.truncate(self.num_candidates());
        candidates
    }

    fn extend(&self, candidate: &Candidate, verdict: Option<StopVerdict>, logits: Option<&Arc<[f32]>>) -> Hypothesis {
        let &Candidate { parent, token, log_prob, cum_log_prob, .. } = candidate;
        let from = &self.live[parent];
        let score = self.score(cum_log_prob, from.tokens.len() + 1);
        let mut hypothesis = Hypothesis { cum_log_prob, score, verdict, parent, ..from.clone() };
        if verdict != Some(StopVerdict::EndId) {
            hypothesis.tokens.push(token);
            hypothesis.log_probs.push(log_prob);
            hypothesis.logits.extend(logits.cloned());
        }
        hypothesis
    }

    fn score(&self, cum_log_prob: f32, length: usize) -> f32 {
        cum_log_prob / (length as f32).powf(self.params.len_penalty)
    }

    fn is_done(&self, length: usize) -> bool {
        let Some(best) = self.live.first() else { return true };
        if self.complete.len() < self.params.width {
            return false;
        }
        let Some(worst) = self.complete.last() else { return true };
        let length = match self.params.early_stopping {
            EarlyStopping::WhenFull => return true,
            EarlyStopping::Never if self.params.len_penalty > 0.0 => self.stop.max_tokens,
            EarlyStopping::Never | EarlyStopping::Heuristic => length,
        };
        self.score(best.cum_log_prob, length) <= worst.score
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::rank::log_sum_exp;
    use crate::decode::sample::{SampleScratch, most_likely};

    const VOCAB: usize = 4;
    const END: TokenId = 0;

    /// Logits of a made-up model: a function of the last two tokens.
    fn row(seed: u32, tokens: &[TokenId]) -> Vec<f32> {
        let last =
            tokens.iter().rev().take(2).fold(seed, |hash, &token| hash.wrapping_mul(31).wrapping_add(token as u32 + 7));
        (0..VOCAB as u32).map(|id| (last.wrapping_mul(2_654_435_761).rotate_left(id * 7) % 97) as f32 / 20.0).collect()
    }

    fn params(width: usize, len_penalty: f32, early_stopping: EarlyStopping) -> BeamParams {
        let (widths, diversity_rate, num_return, stream) = (Vec::new(), 0.0, width, false);
        BeamParams { width, widths, len_penalty, early_stopping, diversity_rate, num_return, stream }
    }

    /// The outlooks of all live hypotheses by a row of logits for each.
    fn advance(search: &mut BeamSearch, rows: &[Vec<f32>]) -> Result<bool, SampleFault> {
        let mut scratch = SampleScratch::default();
        let mut look = |row: &Vec<f32>| {
            let top = most_likely(row, search.num_candidates(), &mut scratch).unwrap_or_default();
            Outlook { top, logits: None }
        };
        let outlooks: Vec<_> = rows.iter().map(&mut look).collect();
        search.advance(&outlooks)
    }

    fn search(seed: u32, params: BeamParams, max_tokens: usize) -> Vec<Hypothesis> {
        let stop = StopCriteria { max_tokens, end_ids: vec![END], stop_words: Vec::new() };
        let mut search = BeamSearch::new(params, stop, vec![1]);
        loop {
            let rows = |hypothesis: &Hypothesis| row(seed, &[&[1], &hypothesis.tokens[..]].concat());
            let rows: Vec<_> = search.live().iter().map(rows).collect();
            assert!(rows.len() <= search.params().width);
            if !advance(&mut search, &rows).unwrap() {
                return search.best();
            }
        }
    }

    /// Every answer of up to `left` more tokens with its score.
    fn answers(
        seed: u32,
        tokens: &mut Vec<TokenId>,
        cum: f32,
        left: usize,
        len_penalty: f32,
        all: &mut Vec<(f32, Vec<TokenId>)>,
    ) {
        let row = row(seed, &[&[1], &tokens[..]].concat());
        let norm = log_sum_exp(&row);
        for token in 0..VOCAB as TokenId {
            let cum = cum + (f64::from(row[token as usize]) - norm) as f32;
            let length = tokens.len() as f32 + 1.0;
            if token == END {
                all.push((cum / length.powf(len_penalty), tokens.clone()));
                continue;
            }
            tokens.push(token);
            match left {
                1 => all.push((cum / length.powf(len_penalty), tokens.clone())),
                _ => answers(seed, tokens, cum, left - 1, len_penalty, all),
            }
            tokens.pop();
        }
    }

    #[test]
    fn a_beam_that_holds_everything_finds_the_best_answers() {
        for seed in 0..40 {
            for len_penalty in [0.0, 1.0, 2.0] {
                let mut all = Vec::new();
                answers(seed, &mut Vec::new(), 0.0, 3, len_penalty, &mut all);
                all.sort_by(|a, b| b.0.total_cmp(&a.0));
                let found = search(seed, params(64, len_penalty, EarlyStopping::Never), 3);
                assert_eq!(found.len(), all.len().min(64));
                for (found, (score, _)) in found.iter().zip(&all) {
                    assert!((found.score - score).abs() < 1e-5, "seed {seed}: {} is not {score}", found.score);
                }
                assert_eq!(found[0].tokens, all[0].1, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_beam_of_one_is_greedy() {
        for seed in 0..40 {
            let found = search(seed, params(1, 0.0, EarlyStopping::WhenFull), 6);
            let mut tokens = Vec::new();
            for _ in 0..6 {
                let row = row(seed, &[&[1], &tokens[..]].concat());
                let best = (0..VOCAB).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as TokenId;
                if best == END {
                    break;
                }
                tokens.push(best);
            }
            assert_eq!(found[0].tokens, tokens, "seed {seed}");
        }
    }

    #[test]
    fn later_ends_find_no_worse_answers() {
        let score = |seed, early_stopping| search(seed, params(2, 1.0, early_stopping), 8)[0].score;
        let mut differs = 0;
        for seed in 0..60 {
            let [full, heuristic, never] = [EarlyStopping::WhenFull, EarlyStopping::Heuristic, EarlyStopping::Never]
                .map(|early| score(seed, early));
            assert!(full <= heuristic + 1e-6 && heuristic <= never + 1e-6, "{full} {heuristic} {never}");
            differs += usize::from(full < never);
        }
        assert!(differs > 0);
    }

    #[test]
    fn scores_are_the_sums_of_the_log_probabilities_by_length() {
        for beam in search(3, params(3, 1.5, EarlyStopping::Heuristic), 6) {
            let sum: f32 = beam.log_probs.iter().sum();
            let ended = beam.verdict == Some(StopVerdict::EndId);
            assert!(if ended { beam.cum_log_prob < sum } else { (beam.cum_log_prob - sum).abs() < 1e-5 }, "{beam:?}");
            let length = (beam.tokens.len() + usize::from(ended)) as f32;
            assert!((beam.score - beam.cum_log_prob / length.powf(1.5)).abs() < 1e-5, "{beam:?}");
        }
    }

    #[test]
    fn diversity_favours_the_continuations_of_lower_ranks() {
        let roots = |diversity_rate| {
            let found = search(5, BeamParams { diversity_rate, ..params(3, 0.0, EarlyStopping::Never) }, 4);
            found.into_iter().map(|beam| beam.tokens).collect::<Vec<_>>()
        };
        assert_ne!(roots(0.0), roots(5.0));
    }

    #[test]
    fn the_width_may_change_from_token_to_token() {
        let stop = StopCriteria { max_tokens: 6, end_ids: Vec::new(), stop_words: Vec::new() };
        let params = BeamParams { widths: vec![3, 1, 2], ..params(3, 0.0, EarlyStopping::Never) };
        let mut search = BeamSearch::new(params, stop, vec![1]);
        let mut widths = Vec::new();
        loop {
            let rows: Vec<_> = search.live().iter().map(|h| row(9, &[&[1], &h.tokens[..]].concat())).collect();
            if !advance(&mut search, &rows).unwrap() {
                break;
            }
            widths.push(search.live().len());
        }
        assert_eq!(widths, [3, 1, 2, 2, 2]);
        assert_eq!(search.best().len(), 2);
    }

    #[test]
    fn a_hypothesis_that_cannot_go_on_leaves_the_others_alone() {
        let stop = StopCriteria { max_tokens: 3, ..Default::default() };
        let mut search = BeamSearch::new(params(2, 0.0, EarlyStopping::Never), stop, vec![1]);
        let inf = f32::NEG_INFINITY;
        assert_eq!(advance(&mut search, &[vec![2.0, 1.0, inf]]), Ok(true));
        assert_eq!(advance(&mut search, &[vec![inf; 3], vec![inf, inf, 0.0]]), Ok(true));
        assert_eq!(search.live().iter().map(|h| &h.tokens[..]).collect::<Vec<_>>(), [[1, 2]]);
    }

    #[test]
    fn hypotheses_keep_the_logits_of_their_tokens() {
        let stop = StopCriteria { max_tokens: 3, ..Default::default() };
        let mut search = BeamSearch::new(params(2, 0.0, EarlyStopping::Never), stop, vec![1]);
        for number in 0..3 {
            let logits = |at: usize| Arc::from([number as f32, at as f32]);
            let outlook = |at| Outlook { top: vec![(1, -0.1 - at as f32), (0, -1.0)], logits: Some(logits(at)) };
            let outlooks: Vec<_> = (0..search.live().len()).map(outlook).collect();
            assert_eq!(search.advance(&outlooks), Ok(number < 2));
        }
        let best = &search.best()[0];
        assert_eq!((&best.tokens[..], best.logits.len()), (&[1, 1, 1][..], 3));
        assert!(best.logits.iter().enumerate().all(|(at, logits)| **logits == [at as f32, 0.0]));
    }
}
