//! The engine: which sequences run in which step, with which memory, and who is told what.

mod ahead;
mod beams;
pub mod bench;
mod blocks;
mod clients;
mod config;
mod core;
mod events;
pub mod fake;
mod forecast;
mod gate;
mod handle;
mod kv;
mod pace;
mod policy;
mod prefix;
mod queue;
mod request;
mod scheduler;
mod sequence;
mod sink;
mod stats;

pub use config::{ChunkingPolicy, EngineConfig, SchedulerPolicy};
pub use core::{EngineCore, IterationHook, Progress};
pub use events::{EventDiff, KvEvent, KvEventBatch, KvEventData, StoredBlock, UniqueToken};
pub use handle::{Engine, HealthProbe};
pub use request::{
    DEFAULT_RETENTION_PRIORITY, Delta, DeltaLogits, Finish, FinishReason, Keep, OutputOptions, Request, RequestSink,
    RequestStats, Retention, RetentionRange, Tenant,
};
pub use stats::{EngineStats, EngineTotals, IterationStats, KvStats, MAX_WINDOW_STATS, TierStats, WindowStats};
