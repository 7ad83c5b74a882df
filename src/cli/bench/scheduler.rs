//! What a step costs before and after the device has it.

use super::SchedulerArgs;
use super::statistics::Statistics;
use crate::engine::SchedulerPolicy;
use crate::engine::bench::{SchedulerBench, prefix_match};
use crate::error::{Error, Result};
use serde_json::json;
use std::time::Instant;

const POLICIES: [(&str, SchedulerPolicy); 3] = [
    ("guaranteed_no_evict", SchedulerPolicy::GuaranteedNoEvict),
    ("balanced", SchedulerPolicy::Balanced),
    ("max_utilization", SchedulerPolicy::MaxUtilization),
];

/// Mean output of the sequences that come and go.
const CHURN_OUTPUT_TOKENS: usize = 64;

/// Look-ups of the long prompt.
const MATCHES: usize = 20;

/// Measures on one thread and prints, in microseconds.
pub(super) fn run(args: &SchedulerArgs) -> Result<()> {
    for (name, value) in [("--sequences", args.sequences), ("--steps", args.steps), ("--prompt", args.prompt)] {
        if value == 0 {
            return Err(Error::invalid(format!("{name} is 0; it must be at least 1")));
        }
    }
    let mut rows = Vec::new();
    for (name, policy) in POLICIES {
        let decoding = SchedulerBench::decoding(policy, args.sequences)?;
        rows.push((format!("{name}, {} sequences generate", args.sequences), steps(decoding, args.steps)?));
        let churning = SchedulerBench::churning(policy, args.sequences, CHURN_OUTPUT_TOKENS)?;
        rows.push((format!("{name}, {} sequences come and go", args.sequences), steps(churning, args.steps / 10 + 1)?));
    }
    let origin = Instant::now();
    let clock = || origin.elapsed().as_nanos() as u64;
    let matches: Result<Vec<_>> = (0..MATCHES).map(|_| prefix_match(args.prompt, &clock)).collect();
    rows.push((format!("prefix match of {} tokens", args.prompt), Statistics::of(microseconds(matches?))));
    if args.json {
        let rows: Vec<_> = rows.iter().map(|(what, us)| json!({ "what": what, "microseconds": us })).collect();
        println!("{:#}", json!(rows));
        return Ok(());
    }
    for (what, us) in rows {
        println!("{what:<52} p50 {:8.1} µs   p99 {:8.1} µs   max {:8.1} µs", us.p50, us.p99, us.max);
    }
    Ok(())
}

fn steps(mut bench: SchedulerBench, steps: usize) -> Result<Statistics> {
    let origin = Instant::now();
    let clock = || origin.elapsed().as_nanos() as u64;
    let costs: Result<Vec<_>> = (0..steps).map(|_| Ok(bench.step(&clock)?.0)).collect();
    Ok(Statistics::of(microseconds(costs?)))
}

fn microseconds(nanoseconds: Vec<u64>) -> Vec<f64> {
    nanoseconds.into_iter().map(|ns| ns as f64 / 1e3).collect()
}
