//! The metric families: names, labels, HELP texts and the JSON line of one iteration, in one table.
//!
//! A row's series reads one number of a [`Snapshot`]. The families of the C++ backend, `nv_trt_llm_*`, also give the keys
//! of the JSON line, so that both always have the same count; what this engine counts beyond them has other names and a
//! JSON line of its own. Histograms are observed once per request, not per iteration.

use crate::config::BatchingType;

/// How a family's values move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric family.
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// Key of the category label, beside `model` and `version`.
    pub label: &'static str,
    /// The batching type that has this family; `None`: both.
    pub batching: Option<BatchingType>,
    pub series: &'static [Series],
}

/// One series of a family.
pub struct Series {
    /// Value of the category label.
    pub label_value: &'static str,
    /// Key in the JSON line.
    pub json_key: &'static str,
    /// What the number counts, for `docs/metrics.md`.
    pub meaning: &'static str,
    pub value: Value,
}

/// Where a series' number comes from.
pub enum Value {
    /// A whole number of the iteration.
    Count(fn(&Snapshot) -> u64),
    /// A sum since start that the C++ backend does not have.
    Total(fn(&Snapshot) -> u64),
    /// A share of such sums.
    TotalShare(fn(&Snapshot) -> f64),
    /// A share, written with 6 decimals.
    Fraction(fn(&Snapshot) -> f64),
    /// The iteration's time: microseconds since the epoch as a metric, a text in the JSON line.
    Timestamp,
    /// Observed per request.
    Observed,
}

/// One iteration as the metrics see it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub active_requests: u64,
    pub max_requests: u64,
    pub scheduled_requests: u64,
    pub context_requests: u64,
    pub generation_requests: u64,
    pub waiting_requests: u64,
    pub paused_requests: u64,
    pub total_context_tokens: u64,
    pub total_generation_tokens: u64,
    pub empty_generation_slots: u64,
    pub micro_batch_id: u64,
    pub cpu_bytes: u64,
    pub gpu_bytes: u64,
    pub pinned_bytes: u64,
    pub max_blocks: u64,
    pub free_blocks: u64,
    pub used_blocks: u64,
    pub tokens_per_block: u64,
    pub reused_blocks: u64,
    pub iteration: u64,
    /// Microseconds since the epoch.
    pub timestamp_us: u64,
    pub totals: Totals,
}

/// Sums since the model was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub completed_requests: u64,
    pub cancelled_requests: u64,
    pub timed_out_requests: u64,
    pub failed_requests: u64,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Prompt tokens that the prefix cache made unnecessary to compute.
    pub cached_tokens: u64,
    pub preemptions: u64,
    pub evicted_blocks: u64,
    /// Leaks that an idle engine found.
    pub failed_checks: u64,
    /// Blocks that moved from the device to a tier behind it.
    pub offloaded_blocks: u64,
    /// Blocks that came back.
    pub onboarded_blocks: u64,
    /// Blocks of a tier behind the device that were given up for other content.
    pub dropped_blocks: u64,
    pub failed_transfers: u64,
    /// Blocks written to disk.
    pub stored_blocks: u64,
    /// Blocks read from disk.
    pub loaded_blocks: u64,
}

impl std::ops::Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            completed_requests: self.completed_requests + other.completed_requests,
            cancelled_requests: self.cancelled_requests + other.cancelled_requests,
            timed_out_requests: self.timed_out_requests + other.timed_out_requests,
            failed_requests: self.failed_requests + other.failed_requests,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            generated_tokens: self.generated_tokens + other.generated_tokens,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            preemptions: self.preemptions + other.preemptions,
            evicted_blocks: self.evicted_blocks + other.evicted_blocks,
            failed_checks: self.failed_checks + other.failed_checks,
            offloaded_blocks: self.offloaded_blocks + other.offloaded_blocks,
            onboarded_blocks: self.onboarded_blocks + other.onboarded_blocks,
            dropped_blocks: self.dropped_blocks + other.dropped_blocks,
            failed_transfers: self.failed_transfers + other.failed_transfers,
            stored_blocks: self.stored_blocks + other.stored_blocks,
            loaded_blocks: self.loaded_blocks + other.loaded_blocks,
        }
    }
}

impl Snapshot {
    /// Several instances as one: what is counted adds up, what numbers or dates something is the largest.
    pub fn sum(snapshots: impl IntoIterator<Item = Self>) -> Self {
        let add = |a: Self, b: Self| Self {
            active_requests: a.active_requests + b.active_requests,
            max_requests: a.max_requests + b.max_requests,
            scheduled_requests: a.scheduled_requests + b.scheduled_requests,
            context_requests: a.context_requests + b.context_requests,
            generation_requests: a.generation_requests + b.generation_requests,
            waiting_requests: a.waiting_requests + b.waiting_requests,
            paused_requests: a.paused_requests + b.paused_requests,
            total_context_tokens: a.total_context_tokens + b.total_context_tokens,
            total_generation_tokens: a.total_generation_tokens + b.total_generation_tokens,
            empty_generation_slots: a.empty_generation_slots + b.empty_generation_slots,
            micro_batch_id: a.micro_batch_id.max(b.micro_batch_id),
            cpu_bytes: a.cpu_bytes + b.cpu_bytes,
            gpu_bytes: a.gpu_bytes + b.gpu_bytes,
            pinned_bytes: a.pinned_bytes + b.pinned_bytes,
            max_blocks: a.max_blocks + b.max_blocks,
            free_blocks: a.free_blocks + b.free_blocks,
            used_blocks: a.used_blocks + b.used_blocks,
            tokens_per_block: a.tokens_per_block.max(b.tokens_per_block),
            reused_blocks: a.reused_blocks + b.reused_blocks,
            iteration: a.iteration.max(b.iteration),
            timestamp_us: a.timestamp_us.max(b.timestamp_us),
            totals: a.totals + b.totals,
        };
        snapshots.into_iter().fold(Self::default(), add)
    }
}

/// Upper bounds of the histograms' buckets.
pub const BUCKETS: [f64; 5] = [10.0, 50.0, 100.0, 500.0, 1000.0];

/// Every family, in the order of the JSON line's keys.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "nv_trt_llm_request_metrics",
        help: "TRT LLM request metrics",
        kind: Kind::Gauge,
        label: "request_type",
        batching: None,
        series: &[
            count(
                "active",
                "Active Request Count",
                "requests that were fetched and have not finished, running and waiting ones",
                |s| s.active_requests,
            ),
            count("max", "Max Request Count", "most requests that can run together", |s| s.max_requests),
            count("scheduled", "Scheduled Requests", "requests in the latest step", |s| s.scheduled_requests),
            count("context", "Context Requests", "requests of the latest step whose prompt is being computed", |s| {
                s.context_requests
            }),
            count(
                "waiting",
                "Waiting Requests",
                "active requests that are not in the latest step: the queue of the engine",
                |s| s.waiting_requests,
            ),
        ],
    },
    Family {
        name: "nv_trt_llm_runtime_memory_metrics",
        help: "TRT LLM runtime memory metrics",
        kind: Kind::Gauge,
        label: "memory_type",
        batching: None,
        series: &[
            count("cpu", "Runtime CPU Memory Usage", "host memory of weights, workspace and KV cache, in bytes", |s| {
                s.cpu_bytes
            }),
            count("gpu", "Runtime GPU Memory Usage", "GPU memory of weights, workspace and KV cache, in bytes", |s| {
                s.gpu_bytes
            }),
            count("pinned", "Runtime Pinned Memory Usage", "page-locked host memory, in bytes", |s| s.pinned_bytes),
        ],
    },
    Family {
        name: "nv_trt_llm_kv_cache_block_metrics",
        help: "TRT LLM KV cache block metrics",
        kind: Kind::Gauge,
        label: "kv_cache_block_type",
        batching: None,
        series: &[
            count("max", "Max KV cache blocks", "blocks of the KV cache", |s| s.max_blocks),
            count(
                "free",
                "Free KV cache blocks",
                "blocks that nobody uses; those with reusable content count as free",
                |s| s.free_blocks,
            ),
            count("used", "Used KV cache blocks", "blocks of running requests", |s| s.used_blocks),
            count("tokens_per", "Tokens per KV cache block", "tokens in one block", |s| s.tokens_per_block),
            count(
                "reused",
                "Reused KV cache blocks",
                "blocks that requests found in the cache, a running total",
                |s| s.reused_blocks,
            ),
            Series {
                label_value: "fraction",
                json_key: "Fraction used KV cache blocks",
                meaning: "used divided by max, 0 to 1",
                value: Value::Fraction(used_fraction),
            },
        ],
    },
    Family {
        name: "nv_trt_llm_disaggregated_serving_metrics",
        help: "TRT LLM disaggregated serving metrics",
        kind: Kind::Counter,
        label: "disaggregated_serving_type",
        batching: None,
        series: &[
            count(
                "kv_cache_transfer_ms",
                "KV cache transfer time",
                "always 0: disaggregated serving is not there yet",
                |_| 0,
            ),
            count("request_count", "Request count", "always 0: disaggregated serving is not there yet", |_| 0),
        ],
    },
    Family {
        name: "nv_trt_llm_inflight_batcher_metrics",
        help: "TRT LLM inflight_batcher-specific metrics",
        kind: Kind::Gauge,
        label: "inflight_batcher_specific_metric",
        batching: Some(BatchingType::Inflight),
        series: &[
            count("total_context_tokens", "Total Context Tokens", "prompt tokens computed in the latest step", |s| {
                s.total_context_tokens
            }),
            count("generation_requests", "Generation Requests", "requests of the latest step that generate", |s| {
                s.generation_requests
            }),
            count("micro_batch_id", "MicroBatch ID", "always 0: there is one pipeline stage", |s| s.micro_batch_id),
            count(
                "paused_requests",
                "Paused Requests",
                "requests that were preempted and wait to be computed again (`max_utilization`)",
                |s| s.paused_requests,
            ),
        ],
    },
    Family {
        name: "nv_trt_llm_v1_metrics",
        help: "TRT LLM v1-specific metrics",
        kind: Kind::Gauge,
        label: "v1_specific_metric",
        batching: Some(BatchingType::Static),
        series: &[
            count("total_context_tokens", "Total Context Tokens", "prompt tokens computed in the latest step", |s| {
                s.total_context_tokens
            }),
            count("total_generation_tokens", "Total Generation Tokens", "tokens generated in the latest step", |s| {
                s.total_generation_tokens
            }),
            count(
                "empty_generation_slots",
                "Empty Generation Slots",
                "places of the static batch that no sequence uses",
                |s| s.empty_generation_slots,
            ),
        ],
    },
    Family {
        name: "nv_trt_llm_general_metrics",
        help: "General TRT LLM metrics",
        kind: Kind::Gauge,
        label: "general_type",
        batching: None,
        series: &[
            Series {
                label_value: "timestamp",
                json_key: "Timestamp",
                meaning: "time of the latest step, microseconds since 1970",
                value: Value::Timestamp,
            },
            count("iteration_counter", "Iteration Counter", "steps since the start", |s| s.iteration),
        ],
    },
    Family {
        name: "nv_llm_requests",
        help: "Requests that have ended",
        kind: Kind::Counter,
        label: "outcome",
        batching: None,
        series: &[
            total("completed", "Completed Requests", "requests that ended by themselves", |s| {
                s.totals.completed_requests
            }),
            total("cancelled", "Cancelled Requests", "requests that their client left or stopped", |s| {
                s.totals.cancelled_requests
            }),
            total("timed_out", "Timed Out Requests", "requests whose deadline passed", |s| s.totals.timed_out_requests),
            total(
                "failed",
                "Failed Requests",
                "requests that ended with an error; those that were refused never began",
                |s| s.totals.failed_requests,
            ),
        ],
    },
    Family {
        name: "nv_llm_tokens",
        help: "Tokens of requests: of prompts, those of them that the prefix cache had, and generated ones",
        kind: Kind::Counter,
        label: "token_type",
        batching: None,
        series: &[
            total("prompt", "Prompt Tokens", "prompt tokens, once for each return sequence", |s| {
                s.totals.prompt_tokens
            }),
            total("cached", "Cached Tokens", "prompt tokens that the prefix cache had", |s| s.totals.cached_tokens),
            total("generated", "Generated Tokens", "generated tokens", |s| s.totals.generated_tokens),
        ],
    },
    Family {
        name: "nv_llm_scheduling",
        help: "Requests that were paused, reusable KV cache blocks that were given up, failed checks of an idle engine",
        kind: Kind::Counter,
        label: "scheduling_event",
        batching: None,
        series: &[
            total("preemption", "Preemptions", "requests that were paused for memory and computed again", |s| {
                s.totals.preemptions
            }),
            total(
                "evicted_block",
                "Evicted KV cache blocks",
                "reusable blocks that were given up for other content",
                |s| s.totals.evicted_blocks,
            ),
            total(
                "failed_check",
                "Failed Checks",
                "checks that found an idle engine out of order: a leak, which is a bug",
                |s| s.totals.failed_checks,
            ),
        ],
    },
    Family {
        name: "nv_llm_kv_cache_tiers",
        help: "Traffic between the KV cache of the device and the memory behind it",
        kind: Kind::Counter,
        label: "tier_event",
        batching: None,
        series: &[
            total("offloaded_block", "Offloaded KV cache blocks", "blocks that moved to host memory", |s| {
                s.totals.offloaded_blocks
            }),
            total("onboarded_block", "Onboarded KV cache blocks", "blocks that came back to the device", |s| {
                s.totals.onboarded_blocks
            }),
            total(
                "dropped_block",
                "Dropped KV cache blocks",
                "blocks of host memory that were given up for other content",
                |s| s.totals.dropped_blocks,
            ),
            total("stored_block", "Stored KV cache blocks", "blocks that were written to disk", |s| {
                s.totals.stored_blocks
            }),
            total("loaded_block", "Loaded KV cache blocks", "blocks that were read from disk", |s| {
                s.totals.loaded_blocks
            }),
            total(
                "failed_transfer",
                "Failed Transfers",
                "transfers that failed: what they carried was computed again",
                |s| s.totals.failed_transfers,
            ),
        ],
    },
    Family {
        name: "nv_llm_prefix_cache",
        help: "Share of all prompt tokens that the prefix cache had",
        kind: Kind::Gauge,
        label: "prefix_cache_metric",
        batching: None,
        series: &[Series {
            label_value: "hit_rate",
            json_key: "Prefix Cache Hit Rate",
            meaning: "cached divided by prompt tokens since the model was loaded",
            value: Value::TotalShare(|snapshot| share(snapshot.totals.cached_tokens, snapshot.totals.prompt_tokens)),
        }],
    },
    Family {
        name: OUTPUT_TOKENS,
        help: "TRT LLM response metrics",
        kind: Kind::Histogram,
        label: "response_metric_type",
        batching: None,
        series: &[observed(
            "total_output_tokens",
            "Total Output Tokens",
            "generated tokens of a request, all its sequences",
        )],
    },
    Family {
        name: INPUT_TOKENS,
        help: "TRT LLM response metrics",
        kind: Kind::Histogram,
        label: "response_metric_type",
        batching: None,
        series: &[observed(
            "total_input_tokens",
            "Total Input Tokens",
            "prompt tokens of a request, all its batch items",
        )],
    },
];

/// Histogram of the generated tokens of a request.
pub const OUTPUT_TOKENS: &str = "nv_llm_output_token_len";
/// Histogram of the prompt tokens of a request.
pub const INPUT_TOKENS: &str = "nv_llm_input_token_len";

impl Family {
    /// The families of a model with this batching type.
    pub fn of(batching: BatchingType) -> impl Iterator<Item = &'static Family> {
        FAMILIES.iter().filter(move |family| family.batching.is_none_or(|only| only == batching))
    }
}

impl Value {
    /// The number that the metric is set to; `None` where it is not read from an iteration.
    pub fn read(&self, snapshot: &Snapshot) -> Option<f64> {
        match self {
            Value::Count(read) | Value::Total(read) => Some(read(snapshot) as f64),
            Value::Fraction(read) | Value::TotalShare(read) => Some(read(snapshot)),
            Value::Timestamp => Some(snapshot.timestamp_us as f64),
            Value::Observed => None,
        }
    }

    fn json(&self, snapshot: &Snapshot) -> Option<String> {
        match self {
            Value::Count(read) | Value::Total(read) => Some(read(snapshot).to_string()),
            Value::Fraction(read) | Value::TotalShare(read) => Some(format!("{:.6}", read(snapshot))),
            Value::Timestamp => Some(format!("\"{}\"", calendar(snapshot.timestamp_us))),
            Value::Observed => None,
        }
    }
}

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

/// A series of whole numbers.
const fn count(
    label_value: &'static str,
    json_key: &'static str,
    meaning: &'static str,
    read: fn(&Snapshot) -> u64,
) -> Series {
    Series { label_value, json_key, meaning, value: Value::Count(read) }
}

const fn total(
    label_value: &'static str,
    json_key: &'static str,
    meaning: &'static str,
    read: fn(&Snapshot) -> u64,
) -> Series {
    Series { label_value, json_key, meaning, value: Value::Total(read) }
}

const fn observed(label_value: &'static str, json_key: &'static str, meaning: &'static str) -> Series {
    Series { label_value, json_key, meaning, value: Value::Observed }
}

/// `docs/metrics.md`.
pub fn metrics_markdown() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         At `/metrics` of the server's metrics port. Every series has the labels `model` and `version` and one label of its family. Gauges are\n\
         updated every `stats_check_period_ms` and, with several instances of a model, add up; what numbers or dates something is the largest.\n\
         They exist, with zeros, from the moment the model begins to load. With verbose logging (`log_verbose_level` 1) every step is also one line\n\
         of JSON in the log, with the keys of the last column; those of `nv_llm_*` have a line of their own. The server's own `nv_inference_*` families come beside these.\n\n\
         | Family | Type | HELP | Label | Value | Meaning | JSON key |\n|---|---|---|---|---|---|---|\n",
    );
    for family in FAMILIES {
        for series in family.series {
            text.push_str(&metrics_line(family, series));
        }
    }
    let bounds = BUCKETS.map(|bound| bound.to_string()).join(", ");
    text.push_str(&format!("\nUpper bounds of the histograms' buckets: {bounds} and infinity.\n"));
    text
}

fn metrics_line(family: &Family, series: &Series) -> String {
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let only = match family.batching {
        Some(BatchingType::Inflight) => " (in-flight batching)",
        Some(BatchingType::Static) => " (static batching, `V1`)",
        None => "",
    };
    let key = if family.kind == Kind::Histogram { "" } else { series.json_key };
    format!(
        "| `{}`{only} | {kind} | {} | `{}` | `{}` | {} | {key} |\n",
        family.name, family.help, family.label, series.label_value, series.meaning
    )
}

fn used_fraction(snapshot: &Snapshot) -> f64 {
    share(snapshot.used_blocks, snapshot.max_blocks)
}

/// 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
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
