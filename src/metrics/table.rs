//! The table of families and series.

use super::{Family, Kind, Series, Snapshot, Value, WindowBlocks};
use crate::config::BatchingType;

/// Histogram of the generated tokens of a request.
pub const OUTPUT_TOKENS: &str = "nv_llm_output_token_len";
/// Histogram of the prompt tokens of a request.
pub const INPUT_TOKENS: &str = "nv_llm_input_token_len";

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
        name: "nv_llm_kv_cache_windows",
        help: "KV cache blocks of layers that see a window of the context",
        kind: Kind::Gauge,
        label: "kv_cache_block_type",
        batching: None,
        series: &[
            window("max", "blocks of the pool; `window_tokens`, a further label, tells pools apart", |pool| {
                pool.max_blocks
            }),
            window("used", "blocks of the pool that sequences use", |pool| pool.used_blocks),
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

const fn window(label_value: &'static str, meaning: &'static str, read: fn(&WindowBlocks) -> u64) -> Series {
    Series { label_value, json_key: "", meaning, value: Value::Window(read) }
}

const fn observed(label_value: &'static str, json_key: &'static str, meaning: &'static str) -> Series {
    Series { label_value, json_key, meaning, value: Value::Observed }
}

fn used_fraction(snapshot: &Snapshot) -> f64 {
    share(snapshot.used_blocks, snapshot.max_blocks)
}

/// 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
