//! The metric families: names, labels, HELP texts and the JSON line of one iteration, in one table.
//!
//! A row's series reads one number of a [`Snapshot`]. The families of the C++ backend, `nv_trt_llm_*`, also give the keys
//! of the JSON line, so that both always have the same count; what this engine counts beyond them has other names and a
//! JSON line of its own. Histograms are observed once per request, not per iteration.

mod docs;
mod json;
mod snapshot;
mod table;

pub use docs::metrics_markdown;
pub use json::{iteration_json, totals_json};
pub use snapshot::{MAX_WINDOWS, Snapshot, Totals, WindowBlocks};
pub use table::{FAMILIES, INPUT_TOKENS, OUTPUT_TOKENS};

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
    /// A whole number of a pool of windows: one series for each, with the label [`WINDOW_LABEL`].
    Window(fn(&WindowBlocks) -> u64),
    /// Observed per request.
    Observed,
}

/// How many tokens the layers of a pool see.
pub const WINDOW_LABEL: &str = "window_tokens";

/// Upper bounds of the histograms' buckets.
pub const BUCKETS: [f64; 5] = [10.0, 50.0, 100.0, 500.0, 1000.0];

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
            Value::Window(_) | Value::Observed => None,
        }
    }
}
