//! The table as a page of the documentation.

use super::{BUCKETS, FAMILIES, Family, Kind, Series};
use crate::config::BatchingType;

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
