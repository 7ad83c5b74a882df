//! The engine: which sequences run in which step, with which memory, and who is told what.

mod blocks;
mod config;
mod core;
pub mod fake;
mod gate;
mod handle;
mod kv;
mod policy;
mod prefix;
mod request;
mod scheduler;
mod sequence;
mod stats;

pub use config::{EngineConfig, SchedulerPolicy};
pub use core::{EngineCore, IterationHook, Progress};
pub use handle::Engine;
pub use request::{Delta, Finish, FinishReason, Request, RequestSink, RequestStats};
pub use stats::{EngineStats, EngineTotals, IterationStats, KvStats};
