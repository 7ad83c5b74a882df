//! `trtllm bench`: throughput and latency of the engine, and the single operations, beside what the machine could do.

mod guides;
mod limits;
mod load;
mod load_test;
mod machine;
mod ops;
mod report;
mod repository;
mod sampling;
mod scheduler;
mod serve;
mod statistics;
mod triton_client;

use crate::device::bench::Limits;
use crate::device::{DType, DeviceKind, SharedDevice};
use crate::error::{Error, Result};
use crate::runner::{LoadedModel, LocalExecutor, ModelOptions, ModelSource, load_on};
use clap::{Args, Subcommand, ValueEnum};
use load_test::{LoadTest, run_load_test};
use report::Report;
use sampling::Choice;
use std::path::PathBuf;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Many requests at once: tokens per second.
    Throughput(ThroughputArgs),
    /// One request after the other: time to the first token and between tokens.
    Latency(LatencyArgs),
    /// A running server, through its gRPC port: as `throughput` or `latency`, or at a given rate.
    Serve(serve::ServeArgs),
    /// Writes a model repository that serves a well-known shape with made-up weights.
    Repository(repository::RepositoryArgs),
    /// Loading a model, beside reading its files.
    Load(load::LoadArgs),
    /// Single operations of the device, at the shapes of an 8B model.
    Ops(OpsArgs),
    /// The scheduler without a model: what a step costs on the CPU besides the device's work.
    Scheduler(SchedulerArgs),
    /// Guided decoding without a model: how long the masks of a batch take beside a step.
    Guides(GuidesArgs),
}

#[derive(Debug, Args)]
pub struct ThroughputArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Number of requests.
    #[arg(long, visible_alias = "num_requests", default_value_t = 32)]
    requests: usize,
    /// Requests that are in flight at most; 0: all at once.
    #[arg(long, default_value_t = 0)]
    concurrency: usize,
}

#[derive(Debug, Args)]
pub struct LatencyArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Number of requests.
    #[arg(long, visible_alias = "num_requests", default_value_t = 8)]
    requests: usize,
    /// Requests that are in flight at most.
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
}

#[derive(Debug, Args)]
pub struct CommonArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of each prompt.
    #[arg(long, visible_alias = "input_len", default_value_t = 128)]
    isl: usize,
    /// Tokens generated for each request.
    #[arg(long, visible_alias = "output_len", default_value_t = 128)]
    osl: usize,
    /// Requests that run before anything is measured.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Most sequences that run together; default: what the concurrency needs, at most 64.
    #[arg(long, visible_alias = "max_batch_size")]
    max_batch_size: Option<usize>,
    /// Most tokens in one step.
    #[arg(long, visible_alias = "max_num_tokens")]
    max_num_tokens: Option<usize>,
    /// Prompt and output together; default: isl + osl.
    #[arg(long, visible_alias = "max_seq_len")]
    max_seq_len: Option<usize>,
    /// How tokens are chosen.
    #[arg(long, value_enum, default_value_t = Choice::Greedy)]
    choice: Choice,
    /// Share of the free memory for the KV cache.
    #[arg(long, visible_alias = "kv_cache_free_gpu_mem_fraction")]
    kv_fraction: Option<f64>,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct OpsArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Type of the weights; default: bfloat16.
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct SchedulerArgs {
    /// Sequences that run together.
    #[arg(long, default_value_t = 1024)]
    sequences: usize,
    /// Steps that are measured; each brings every sequence one token on, which ends at 4032.
    #[arg(long, default_value_t = 1000)]
    steps: usize,
    /// Tokens of the prompt that is looked up in the prefix cache.
    #[arg(long, default_value_t = 100_000)]
    prompt: usize,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct GuidesArgs {
    /// Guided sequences that run together.
    #[arg(long, default_value_t = 64)]
    sequences: usize,
    /// Steps that are measured.
    #[arg(long, default_value_t = 300)]
    steps: usize,
    /// Tokens of the made-up vocabulary.
    #[arg(long, default_value_t = 128_256)]
    vocab_size: usize,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ModelArgs {
    /// A Hugging Face folder, a TensorRT-LLM checkpoint or a GGUF file.
    #[arg(long, required_unless_present = "dummy", conflicts_with = "dummy")]
    model: Option<PathBuf>,
    /// The shape of a well-known model with made-up weights, e.g. llama-3.1-8b.
    #[arg(long)]
    dummy: Option<String>,
    /// Type of the weights; default: the checkpoint's.
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
struct DeviceArgs {
    /// cpu, cuda or auto.
    #[arg(long, default_value_t = DeviceKind::Auto)]
    device: DeviceKind,
    /// Threads of the CPU device; default: all of this process.
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeArg {
    Float32,
    Float16,
    Bfloat16,
}

impl Bench {
    /// Measures and prints.
    ///
    /// # Errors
    /// When the model cannot be loaded or a request fails.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Throughput(args) => measure("throughput", &args.common, args.requests, args.concurrency),
            Self::Latency(args) => measure("latency", &args.common, args.requests, args.concurrency),
            Self::Serve(args) => args.run(),
            Self::Repository(args) => args.run(),
            Self::Load(args) => load::run(&args),
            Self::Ops(args) => ops::run(&args),
            Self::Scheduler(args) => scheduler::run(&args),
            Self::Guides(args) => guides::run(&args),
        }
    }
}

impl ModelArgs {
    fn source(&self) -> Result<ModelSource> {
        match (&self.model, &self.dummy) {
            (Some(folder), None) => Ok(ModelSource::Folder(folder.clone())),
            (None, Some(name)) => Ok(ModelSource::Dummy(name.clone())),
            _ => Err(Error::invalid("give either --model or --dummy")),
        }
    }
}

impl DeviceArgs {
    /// The device, and its limits as measured now.
    fn open(&self) -> Result<(SharedDevice, Limits)> {
        machine::open(self.device, self.threads)
    }
}

fn dtype(arg: DtypeArg) -> DType {
    match arg {
        DtypeArg::Float32 => DType::F32,
        DtypeArg::Float16 => DType::F16,
        DtypeArg::Bfloat16 => DType::BF16,
    }
}

fn measure(command: &'static str, args: &CommonArgs, requests: usize, concurrency: usize) -> Result<()> {
    for (name, value) in [("--isl", args.isl), ("--osl", args.osl), ("--requests", requests)] {
        if value == 0 {
            return Err(Error::invalid(format!("{name} is 0; it must be at least 1")));
        }
    }
    let in_flight = if concurrency == 0 { requests } else { concurrency.min(requests) };
    let (device, machine) = args.model.device.open()?;
    let model = load(&device, args, in_flight)?;
    let test = LoadTest {
        choice: args.choice,
        requests,
        concurrency: in_flight,
        warmup: args.warmup,
        isl: args.isl,
        osl: args.osl,
    };
    let (config, load) = (model.config.clone(), model.report.clone());
    let measured = run_load_test(model, &test)?;
    let report = Report::new(command, &test, &measured, &machine, &config, &load);
    if args.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(())
}

fn load(device: &SharedDevice, args: &CommonArgs, in_flight: usize) -> Result<LoadedModel<LocalExecutor>> {
    let max_batch_size = args.max_batch_size.unwrap_or(in_flight.min(64));
    load_on(
        device,
        &ModelOptions {
            dtype: args.model.dtype.map(dtype),
            max_batch_size: Some(max_batch_size),
            max_seq_len: Some(args.max_seq_len.unwrap_or(args.isl + args.osl)),
            max_step_tokens: args.max_num_tokens,
            kv_free_fraction: args.kv_fraction,
            ..ModelOptions::new(args.model.source()?)
        },
    )
}
