//! Whole models against references: tiny random checkpoints with logits and greedy tokens from another implementation,
//! under every way the engine may cut the work into steps; and checkpoints that must not load.

#[path = "models/bad_checkpoints.rs"]
mod bad_checkpoints;
#[path = "models/beams.rs"]
mod beams;
#[path = "models/disk.rs"]
mod disk;
#[path = "models/driver.rs"]
mod driver;
#[path = "models/engine.rs"]
mod engine;
#[path = "models/formats.rs"]
mod formats;
#[path = "models/fp8.rs"]
mod fp8;
#[path = "models/fuzz.rs"]
mod fuzz;
#[path = "models/gguf.rs"]
mod gguf;
#[path = "models/golden.rs"]
mod golden;
#[path = "models/inspect.rs"]
mod inspect;
#[path = "models/mixed.rs"]
mod mixed;
#[path = "models/native.rs"]
mod native;
#[path = "models/prompt_tables.rs"]
mod prompt_tables;
#[path = "models/released.rs"]
mod released;
#[path = "models/rotation.rs"]
mod rotation;
#[path = "models/sampling.rs"]
mod sampling;
#[path = "models/sinks.rs"]
mod sinks;
#[path = "models/windows.rs"]
mod windows;
