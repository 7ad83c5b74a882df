//! The report, with the figures of TensorRT-LLM's own benchmark.

use super::limits::ModelCost;
use super::load_test::{LoadTest, Measured, RequestTimes};
use super::statistics::Statistics;
use crate::device::bench::Limits;
use crate::model::ModelConfig;
use crate::runner::{DecodeTime, LoadReport};
use serde::Serialize;
use std::fmt;

/// All figures of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    engine: EngineFigures,
    request_info: RequestFigures,
    machine: MachineFigures,
    performance: Performance,
}

#[derive(Debug, Serialize)]
struct EngineFigures {
    command: &'static str,
    model: String,
    family: &'static str,
    parameters: u64,
    dtype: String,
    kv_cache_dtype: String,
    device: String,
    weight_bytes: usize,
    kv_cache_bytes: usize,
    workspace_bytes: usize,
    max_batch_size: usize,
    max_num_tokens: usize,
    max_sequence_length: usize,
    load_seconds: f64,
}

/// Measured before the run.
#[derive(Debug, Serialize)]
struct MachineFigures {
    read_bytes_per_s: f64,
    flops_per_s: f64,
}

#[derive(Debug, Serialize)]
struct RequestFigures {
    num_requests: usize,
    concurrency: usize,
    avg_input_length: usize,
    avg_output_length: usize,
}

#[derive(Debug, Serialize)]
struct Performance {
    total_latency_ms: f64,
    request_throughput_req_s: Limited,
    output_throughput_tok_s: Limited,
    total_token_throughput_tok_s: Limited,
    ttft_ms: LimitedStatistics,
    tpot_ms: LimitedStatistics,
    itl_ms: LimitedStatistics,
    request_latency_ms: LimitedStatistics,
    output_speed_per_user_tok_s: Statistics,
    /// As the device tells them.
    decode_steps: Option<DecodeFigures>,
}

/// Decode steps behind one another, all with as many sequences as ran together most.
#[derive(Clone, Copy, Debug, Serialize)]
struct DecodeFigures {
    sequences: usize,
    steps: usize,
    /// From a step's first operation to its sampled tokens.
    busy_ms: Statistics,
    /// From there to the first operation of the next step.
    idle_us: Statistics,
}

impl DecodeFigures {
    fn new(times: &[DecodeTime]) -> Option<Self> {
        let sequences = times.iter().map(|time| time.sequences).max()?;
        let largest: Vec<_> = times.iter().filter(|time| time.sequences == sequences).collect();
        Some(Self {
            sequences,
            steps: largest.len(),
            busy_ms: Statistics::of(largest.iter().map(|time| time.busy_seconds * 1e3).collect()),
            idle_us: Statistics::of(largest.iter().map(|time| time.idle_seconds * 1e6).collect()),
        })
    }
}

/// A figure, the machine's limit for it, and the share of it that was reached.
#[derive(Clone, Copy, Debug, Serialize)]
struct Limited {
    value: f64,
    limit: f64,
    share: f64,
}

/// Times, the least possible one, and the share of it that the average is.
#[derive(Clone, Copy, Debug, Serialize)]
struct LimitedStatistics {
    #[serde(flatten)]
    statistics: Statistics,
    limit: f64,
    share: f64,
}

impl Limited {
    fn new(value: f64, limit: f64) -> Self {
        Self { value, limit, share: value / limit }
    }
}

impl LimitedStatistics {
    fn new(values: Vec<f64>, limit: f64) -> Self {
        let statistics = Statistics::of(values);
        Self { statistics, limit, share: if statistics.avg > 0.0 { limit / statistics.avg } else { 0.0 } }
    }
}

impl Report {
    pub(super) fn new(
        command: &'static str,
        test: &LoadTest,
        measured: &Measured,
        machine: &Limits,
        config: &ModelConfig,
        load: &LoadReport,
    ) -> Self {
        Self {
            engine: EngineFigures {
                command,
                model: load.source.clone(),
                family: load.family,
                parameters: load.parameters,
                dtype: load.dtype.to_string(),
                kv_cache_dtype: load.kv_dtype.to_string(),
                device: load.device.description.clone(),
                weight_bytes: load.weight_bytes,
                kv_cache_bytes: load.kv.bytes,
                workspace_bytes: load.workspace_bytes,
                max_batch_size: load.limits.max_step_sequences,
                max_num_tokens: load.limits.max_step_tokens,
                max_sequence_length: load.limits.max_seq_len_tokens,
                load_seconds: load.seconds,
            },
            request_info: RequestFigures {
                num_requests: test.requests,
                concurrency: test.concurrency,
                avg_input_length: test.isl,
                avg_output_length: test.osl,
            },
            machine: MachineFigures { read_bytes_per_s: machine.read_bytes_per_s, flops_per_s: machine.flops_per_s },
            performance: Performance::new(test, measured, machine, &ModelCost::new(config, load), load),
        }
    }

    pub(super) fn to_json(&self) -> String {
        // Plain numbers and strings cannot fail to serialize.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl Performance {
    fn new(test: &LoadTest, measured: &Measured, machine: &Limits, cost: &ModelCost, load: &LoadReport) -> Self {
        let batch = test.concurrency.min(load.limits.max_step_sequences);
        let least_seconds = cost.total_seconds(machine, test, batch);
        let rate = |count: usize| Limited::new(count as f64 / measured.seconds, count as f64 / least_seconds);
        let times = |value: fn(&RequestTimes) -> f64| measured.requests.iter().map(value).collect::<Vec<_>>();
        let first_ms = cost.prefill_seconds(machine, test.isl) * 1e3;
        let token_ms = cost.token_seconds(machine, test, batch) * 1e3;
        let (outputs, all) = (test.requests * test.osl, test.requests * (test.isl + test.osl));
        Self {
            total_latency_ms: measured.seconds * 1e3,
            request_throughput_req_s: rate(test.requests),
            output_throughput_tok_s: rate(outputs),
            total_token_throughput_tok_s: rate(all),
            ttft_ms: LimitedStatistics::new(times(|request| request.first_token_ms), first_ms),
            tpot_ms: LimitedStatistics::new(times(RequestTimes::tpot_ms), token_ms),
            itl_ms: LimitedStatistics::new(measured.gaps_ms.clone(), token_ms),
            request_latency_ms: LimitedStatistics::new(
                times(|request| request.last_token_ms),
                first_ms + (test.osl - 1) as f64 * token_ms,
            ),
            output_speed_per_user_tok_s: Statistics::of(times(|request| {
                if request.tpot_ms() > 0.0 { 1e3 / request.tpot_ms() } else { 0.0 }
            })),
            decode_steps: measured.decode_times.as_deref().and_then(DecodeFigures::new),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = "=".repeat(100);
        let (engine, requests, speed) = (&self.engine, &self.request_info, &self.performance);
        writeln!(f, "{line}\n= ENGINE DETAILS\n{line}")?;
        writeln!(f, "Model:                          {} ({})", engine.model, engine.family)?;
        writeln!(f, "Parameters:                     {:.1} M, {}", engine.parameters as f64 / 1e6, engine.dtype)?;
        writeln!(f, "Device:                         {}", engine.device)?;
        writeln!(
            f,
            "KV cache:                       {:.1} MiB, {}",
            mib(engine.kv_cache_bytes),
            engine.kv_cache_dtype
        )?;
        writeln!(f, "Max batch size:                 {}", engine.max_batch_size)?;
        writeln!(f, "Max num tokens:                 {}", engine.max_num_tokens)?;
        writeln!(f, "Max sequence length:            {}", engine.max_sequence_length)?;
        writeln!(f, "Read bandwidth (measured):      {:.2} GB/s", self.machine.read_bytes_per_s / 1e9)?;
        writeln!(f, "FMA peak (measured):            {:.1} GFLOP/s", self.machine.flops_per_s / 1e9)?;
        writeln!(f, "{line}\n= REQUEST DETAILS\n{line}")?;
        writeln!(f, "Number of requests:             {}", requests.num_requests)?;
        writeln!(f, "Number of concurrent requests:  {}", requests.concurrency)?;
        writeln!(f, "Input length (tokens):          {}", requests.avg_input_length)?;
        writeln!(f, "Output length (tokens):         {}", requests.avg_output_length)?;
        writeln!(f, "{line}\n= PERFORMANCE OVERVIEW ({})\n{line}", engine.command)?;
        rate(f, "Request throughput (req/s):", &speed.request_throughput_req_s)?;
        rate(f, "Output throughput (tokens/s):", &speed.output_throughput_tok_s)?;
        rate(f, "Total token throughput (tok/s):", &speed.total_token_throughput_tok_s)?;
        writeln!(f, "Total latency (ms):             {:>12.2}", speed.total_latency_ms)?;
        writeln!(f, "Output speed per user (tok/s):  {:>12.2}", speed.output_speed_per_user_tok_s.avg)?;
        writeln!(f)?;
        write!(f, "{:<10}", "ms")?;
        for name in ["AVERAGE", "P50", "P90", "P95", "P99", "MINIMUM", "MAXIMUM", "LIMIT", "REACHED"] {
            write!(f, "{name:>10}")?;
        }
        writeln!(f)?;
        times(f, "TTFT", &speed.ttft_ms)?;
        times(f, "TPOT", &speed.tpot_ms)?;
        times(f, "ITL", &speed.itl_ms)?;
        times(f, "Latency", &speed.request_latency_ms)?;
        if let Some(DecodeFigures { sequences, steps, busy_ms, idle_us }) = &speed.decode_steps {
            write!(f, "\nOn the device, {steps} decode steps of {sequences}: {:.3} ms each (median), ", busy_ms.p50)?;
            writeln!(f, "{:.1} us idle between two (median; p99 {:.1} us)", idle_us.p50, idle_us.p99)?;
        }
        writeln!(
            f,
            "\nTTFT and latency include the time in the queue; their limits are those of a request that does not wait."
        )
    }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn rate(f: &mut fmt::Formatter<'_>, name: &str, figure: &Limited) -> fmt::Result {
    let Limited { value, limit, share } = figure;
    writeln!(f, "{name:<31} {value:>12.2}   limit {limit:>12.2}   reached {:>5.1} %", share * 1e2)
}

fn times(f: &mut fmt::Formatter<'_>, name: &str, figure: &LimitedStatistics) -> fmt::Result {
    let s = &figure.statistics;
    write!(f, "{name:<10}")?;
    for value in [s.avg, s.p50, s.p90, s.p95, s.p99, s.min, s.max, figure.limit] {
        write!(f, "{value:>10.2}")?;
    }
    writeln!(f, "{:>8.1} %", figure.share * 1e2)
}
