//! The command line tool `trtllm`.

mod bench;
mod check;

use crate::error::Result;
use clap::{Parser, Subcommand};

/// Tools around the Triton backend for large language models: checks a model repository, measures the engine.
#[derive(Debug, Parser)]
#[command(name = "trtllm", version)]
pub struct Cli {
    /// What is logged to stderr: error, warn, info, debug or trace.
    #[arg(long, global = true, default_value = "info")]
    log_level: tracing::Level,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures the engine in this process, without a server.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Checks a model repository without a server: what would keep it from loading, and what it would take.
    Check(check::Check),
}

impl Cli {
    /// Runs the command; its result goes to stdout.
    ///
    /// # Errors
    /// One sentence for the user.
    pub fn run(self) -> Result<()> {
        tracing_subscriber::fmt().with_max_level(self.log_level).with_writer(std::io::stderr).with_target(false).init();
        match self.command {
            Command::Bench(bench) => bench.run(),
            Command::Check(check) => check.run(),
        }
    }
}
