//! An iteration as a line of the log.

use jiff::Timestamp;
use jiff::tz::TimeZone;

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
            Value::Timestamp => Some(format!("\"{}\"", calendar(snapshot.timestamp_us, TimeZone::system()))),
            Value::Window(_) | Value::Observed => None,
        }
    }
}

/// `MM-DD-YYYY HH:MM:SS.ffffff`, the clock on the wall there. What reads it takes it for local time.
fn calendar(timestamp_us: u64, zone: TimeZone) -> String {
    let instant = Timestamp::from_microsecond(timestamp_us as i64).unwrap_or(Timestamp::UNIX_EPOCH);
    instant.to_zoned(zone).strftime("%m-%d-%Y %H:%M:%S%.6f").to_string()
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
    fn s5_2_the_timestamp_is_month_day_year_and_local_time_with_microseconds() {
        let timestamp_us = 1_709_210_096_000_042;
        let offset =
            |hours, minutes| TimeZone::fixed(jiff::tz::Offset::from_seconds(hours * 3600 + minutes * 60).unwrap());
        for (zone, text) in [
            (TimeZone::UTC, "02-29-2024 12:34:56.000042"),
            (offset(5, 30), "02-29-2024 18:04:56.000042"),
            (offset(-13, 0), "02-28-2024 23:34:56.000042"),
            (TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap(), "02-29-2024 13:34:56.000042"),
        ] {
            assert_eq!(calendar(timestamp_us, zone), text);
        }
        let summer_us = timestamp_us + 120 * 86_400_000_000;
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        assert_eq!(calendar(summer_us, berlin), "06-28-2024 14:34:56.000042", "daylight saving time");
        let snapshot = Snapshot { timestamp_us, ..Snapshot::default() };
        let json: serde_json::Value = serde_json::from_str(&iteration_json(&snapshot, BatchingType::Inflight)).unwrap();
        assert_eq!(json["Timestamp"], calendar(timestamp_us, TimeZone::system()));
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
