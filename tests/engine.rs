//! The engine on `FakeExecutor`: properties under random operation, golden traces of plans, what ends a request, the
//! thread and its handle.

#[path = "engine/beams.rs"]
mod beams;
#[path = "engine/cache.rs"]
mod cache;
#[path = "engine/common.rs"]
mod common;
#[path = "engine/disk.rs"]
mod disk;
#[path = "engine/handle.rs"]
mod handle;
#[path = "engine/lifecycle.rs"]
mod lifecycle;
#[path = "engine/memory.rs"]
mod memory;
#[path = "engine/properties.rs"]
mod properties;
#[path = "engine/scheduling.rs"]
mod scheduling;
#[path = "engine/tiers.rs"]
mod tiers;
#[path = "engine/traces.rs"]
mod traces;
#[path = "engine/windows.rs"]
mod windows;
