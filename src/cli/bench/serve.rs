//! `trtllm bench serve`: requests to a running Triton server, all at once or at a rate.

use super::load_test::{Measured, RequestTimes, prompt};
use super::statistics::Statistics;
use super::triton_client::TritonClient;
use crate::error::{Error, Result};
use clap::Args;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The server's gRPC port.
    #[arg(long, default_value = "localhost:8001")]
    url: String,
    /// Name of the model in the server's repository.
    #[arg(long, default_value = "tensorrt_llm")]
    model: String,
    /// Tokens of each prompt.
    #[arg(long, visible_alias = "input_len", default_value_t = 128)]
    isl: usize,
    /// Tokens generated for each request; end ids are off.
    #[arg(long, visible_alias = "output_len", default_value_t = 128)]
    osl: usize,
    /// Number of requests.
    #[arg(long, visible_alias = "num_requests", default_value_t = 32)]
    requests: usize,
    /// Requests that are in flight at most; 0: as many as there are.
    #[arg(long, default_value_t = 0)]
    concurrency: usize,
    /// Requests a second, evenly spaced; 0: at once.
    #[arg(long, default_value_t = 0.0)]
    request_rate: f64,
    /// Requests that run one by one before anything is measured.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Prompts are random ids below this one.
    #[arg(long, default_value_t = 32_000)]
    vocab_size: usize,
    /// Connections that the requests share.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// First number of the prompts: another one gives other prompts, which no cache holds.
    #[arg(long, default_value_t = 0)]
    seed: usize,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

impl ServeArgs {
    /// Measures and prints.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses a request.
    pub fn run(&self) -> Result<()> {
        let counts = [
            ("--isl", self.isl),
            ("--osl", self.osl),
            ("--requests", self.requests),
            ("--vocab-size", self.vocab_size),
            ("--connections", self.connections),
        ];
        if let Some((name, _)) = counts.into_iter().find(|&(_, value)| value == 0) {
            return Err(Error::invalid(format!("{name} is 0; it must be at least 1")));
        }
        if !(self.request_rate >= 0.0 && self.request_rate.is_finite()) {
            return Err(Error::invalid(format!("--request-rate is {}; it must be 0 or more", self.request_rate)));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::internal(format!("the client's threads: {error}")))?;
        let measured = runtime.block_on(self.measure())?;
        let report = ServeReport::new(self, &measured);
        if self.json {
            println!("{}", report.to_json());
        } else {
            print!("{report}");
        }
        Ok(())
    }

    async fn measure(&self) -> Result<Measured> {
        let mut clients = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            clients.push(TritonClient::connect(&self.url, &self.model).await?);
        }
        for number in 0..self.warmup {
            clients[0].generate(&self.prompt(number), self.osl).await?;
        }
        let permits = if self.concurrency == 0 { self.requests } else { self.concurrency };
        let permits = Arc::new(Semaphore::new(permits));
        let prompts: Vec<_> = (self.warmup..self.warmup + self.requests).map(|number| self.prompt(number)).collect();
        let mut running = JoinSet::new();
        let start = Instant::now();
        for (number, prompt) in prompts.into_iter().enumerate() {
            if self.request_rate > 0.0 {
                let due = start + Duration::from_secs_f64(number as f64 / self.request_rate);
                tokio::time::sleep_until(due.into()).await;
            }
            let (client, osl) = (clients[number % clients.len()].clone(), self.osl);
            let closed = |_| Error::internal("the client's queue is closed");
            let permit = permits.clone().acquire_owned().await.map_err(closed)?;
            running.spawn(async move {
                let times = client.generate(&prompt, osl).await;
                drop(permit);
                times
            });
        }
        let mut measured = Measured::default();
        while let Some(ended) = running.join_next().await {
            let (times, gaps_ms) = ended.map_err(|error| Error::internal(format!("a request: {error}")))??;
            measured.requests.push(times);
            measured.gaps_ms.extend(gaps_ms);
        }
        measured.seconds = start.elapsed().as_secs_f64();
        Ok(measured)
    }

    fn prompt(&self, number: usize) -> Vec<i32> {
        prompt(self.seed + number, self.isl, self.vocab_size)
    }
}

/// All figures of one run.
#[derive(Debug, Serialize)]
struct ServeReport {
    num_requests: usize,
    request_rate: f64,
    avg_input_length: usize,
    avg_output_length: usize,
    total_latency_ms: f64,
    request_throughput_req_s: f64,
    output_throughput_tok_s: f64,
    total_token_throughput_tok_s: f64,
    ttft_ms: Statistics,
    tpot_ms: Statistics,
    itl_ms: Statistics,
    request_latency_ms: Statistics,
}

impl ServeReport {
    fn new(args: &ServeArgs, measured: &Measured) -> Self {
        let rate = |count: usize| count as f64 / measured.seconds;
        let times = |value: fn(&RequestTimes) -> f64| Statistics::of(measured.requests.iter().map(value).collect());
        Self {
            num_requests: args.requests,
            request_rate: args.request_rate,
            avg_input_length: args.isl,
            avg_output_length: args.osl,
            total_latency_ms: measured.seconds * 1e3,
            request_throughput_req_s: rate(args.requests),
            output_throughput_tok_s: rate(args.requests * args.osl),
            total_token_throughput_tok_s: rate(args.requests * (args.isl + args.osl)),
            ttft_ms: times(|request| request.first_token_ms),
            tpot_ms: times(RequestTimes::tpot_ms),
            itl_ms: Statistics::of(measured.gaps_ms.clone()),
            request_latency_ms: times(|request| request.last_token_ms),
        }
    }

    fn to_json(&self) -> String {
        // Plain numbers cannot fail to serialize.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl fmt::Display for ServeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Requests:                       {}", self.num_requests)?;
        writeln!(f, "Input, output length (tokens):  {}, {}", self.avg_input_length, self.avg_output_length)?;
        writeln!(f, "Request throughput (req/s):     {:>12.2}", self.request_throughput_req_s)?;
        writeln!(f, "Output throughput (tokens/s):   {:>12.2}", self.output_throughput_tok_s)?;
        writeln!(f, "Total token throughput (tok/s): {:>12.2}", self.total_token_throughput_tok_s)?;
        writeln!(f, "Total latency (ms):             {:>12.2}\n", self.total_latency_ms)?;
        write!(f, "{:<10}", "ms")?;
        for name in ["AVERAGE", "P50", "P90", "P95", "P99", "MINIMUM", "MAXIMUM"] {
            write!(f, "{name:>10}")?;
        }
        writeln!(f)?;
        let rows = [
            ("TTFT", self.ttft_ms),
            ("TPOT", self.tpot_ms),
            ("ITL", self.itl_ms),
            ("Latency", self.request_latency_ms),
        ];
        for (name, s) in rows {
            write!(f, "{name:<10}")?;
            for value in [s.avg, s.p50, s.p90, s.p95, s.p99, s.min, s.max] {
                write!(f, "{value:>10.2}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
