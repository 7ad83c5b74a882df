//! Figures of many measurements.

use serde::Serialize;

/// Average, extremes and percentiles (nearest rank).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Statistics {
    pub(super) avg: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Statistics {
    /// All zero without values.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else { return Self::default() };
        let percentile = |p: f64| values[((p * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
        Self {
            avg: values.iter().sum::<f64>() / values.len() as f64,
            p50: percentile(0.5),
            p90: percentile(0.9),
            p95: percentile(0.95),
            p99: percentile(0.99),
            min,
            max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let statistics = Statistics::of((1..=100).rev().map(f64::from).collect());
        let expected = Statistics { avg: 50.5, p50: 50.0, p90: 90.0, p95: 95.0, p99: 99.0, min: 1.0, max: 100.0 };
        assert_eq!(statistics, expected);
        assert_eq!(Statistics::of(vec![3.0]).p99, 3.0);
        assert_eq!(Statistics::of(Vec::new()), Statistics::default());
    }
}
