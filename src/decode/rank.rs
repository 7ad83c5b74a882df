//! Log-probabilities of tokens within a row of logits.

use crate::ids::TokenId;

/// `ln Σ exp(logit)` of a row `[V]`, summed in f64: `logit - log_sum_exp` is a natural log-probability.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// The natural log-probability of `token` in a row `[V]`; -∞ outside the vocabulary.
pub fn log_prob(logits: &[f32], token: TokenId) -> f32 {
    let logit = usize::try_from(token).ok().and_then(|token| logits.get(token));
    logit.map_or(f32::NEG_INFINITY, |&logit| (f64::from(logit) - log_sum_exp(logits)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let row = [1.0_f32, 2.0, 3.0];
        let sum: f32 = row.iter().map(|logit| logit.exp()).sum();
        for (token, logit) in row.iter().enumerate() {
            assert!((log_prob(&row, token as TokenId) - (logit.exp() / sum).ln()).abs() < 1e-6);
        }
        assert!((log_prob(&[1000.0, 1000.0], 1) + 2.0_f32.ln()).abs() < 1e-6);
        assert_eq!(log_prob(&row, 3), f32::NEG_INFINITY);
        assert_eq!(log_prob(&row, -1), f32::NEG_INFINITY);
    }
}
