//! An iteration as a line of the log.

use super::{Family, Snapshot, Value};
use crate::config::BatchingType;

/// One iteration as a JSON object on one line, one key for each gauge and counter of the C++ backend.
pub fn iteration_json(snapshot: &Snapshot, batching: BatchingType) -> String {
    json_line(snapshot, batching, false)
}

/// The other gauges and counters as a JSON object on one line.
pub fn totals_json(snapshot: &Snapshot, batching: BatchingType) -> String {
    json_line(snapshot, batching, true)
}

fn json_line(snapshot: &Snapshot, batching: BatchingType, totals: bool) -> String {
    let is_total = |value: &Value| matches!(value, Value::Total(_) | Value::TotalShare(_));
    let pairs = Family::of(batching)
        .flat_map(|family| family.series)
        .filter(|series| is_total(&series.value) == totals)
        .filter_map(|series| Some(format!("\"{}\":{}", series.json_key, series.value.json(snapshot)?)));
    format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
}

impl Value {
    fn json(&self, snapshot: &Snapshot) -> Option<String> {
        match self {
            Value::Count(read) | Value::Total(read) => Some(read(snapshot).to_string()),
            Value::Fraction(read) | Value::TotalShare(read) => Some(format!("{:.6}", read(snapshot))),
            Value::Timestamp => Some(format!("\"{}\"", calendar(snapshot.timestamp_us))),
            Value::Window(_) | Value::Observed => None,
        }
    }
}

/// `MM-DD-YYYY HH:MM:SS.ffffff` in UTC.
fn calendar(timestamp_us: u64) -> String {
    let (seconds, micros) = (timestamp_us / 1_000_000, timestamp_us % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hours, minutes) = (second / 3600, second / 60 % 60);
    format!("{month:02}-{day:02}-{year:04} {hours:02}:{minutes:02}:{:02}.{micros:06}", second % 60)
}

/// Year, month and day of a day count since 1970-01-01, by eras of 400 years that start on March 1.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Totals;

    /// Series that upstream's tools count.
    fn gauges(batching: BatchingType) -> usize {
        let theirs = Family::of(batching).filter(|family| family.name.starts_with("nv_trt_llm_"));
        theirs.map(|family| family.series.len()).sum()
    }

    #[test]
    fn the_json_line_has_one_key_for_each_series() {
        for (batching, series) in [(BatchingType::Inflight, 22), (BatchingType::Static, 21)] {
            assert_eq!(gauges(batching), series);
            let line = iteration_json(&Snapshot::default(), batching);
            let json: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(json.as_object().unwrap().len(), series);
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn what_the_cpp_backend_does_not_count_has_a_line_of_its_own() {
        let totals = Totals { prompt_tokens: 8, cached_tokens: 2, preemptions: 3, ..Totals::default() };
        let line = totals_json(&Snapshot { totals, ..Snapshot::default() }, BatchingType::Inflight);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((json["Prefix Cache Hit Rate"].as_f64(), json["Preemptions"].as_u64()), (Some(0.25), Some(3)));
        assert!(json.get("Active Request Count").is_none());
    }

    #[test]
    fn static_models_have_no_inflight_family_and_the_reverse() {
        let names = |batching| Family::of(batching).map(|family| family.name).collect::<Vec<_>>();
        assert!(!names(BatchingType::Static).contains(&"nv_trt_llm_inflight_batcher_metrics"));
        assert!(!names(BatchingType::Inflight).contains(&"nv_trt_llm_v1_metrics"));
    }

    #[test]
    fn the_timestamp_is_month_day_year_and_time_with_microseconds() {
        let snapshot = Snapshot { timestamp_us: 1_709_210_096_000_042, ..Snapshot::default() };
        let json: serde_json::Value = serde_json::from_str(&iteration_json(&snapshot, BatchingType::Inflight)).unwrap();
        assert_eq!(json["Timestamp"], "02-29-2024 12:34:56.000042");
    }

    #[test]
    fn the_fraction_is_used_over_max_and_zero_without_blocks() {
        let fraction = |used_blocks, max_blocks| {
            let snapshot = Snapshot { used_blocks, max_blocks, ..Snapshot::default() };
            let json: serde_json::Value =
                serde_json::from_str(&iteration_json(&snapshot, BatchingType::Inflight)).unwrap();
            json["Fraction used KV cache blocks"].as_f64().unwrap()
        };
        assert_eq!(fraction(1, 4), 0.25);
        assert_eq!(fraction(0, 0), 0.0);
    }
}
