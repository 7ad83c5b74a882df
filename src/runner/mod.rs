//! Runs plans: one rank's model, memory and sampler behind [`crate::step::Executor`].

mod disk;
mod graphs;
mod guided;
mod host_rows;
mod input;
mod late;
mod load;
mod local;
mod memory;
mod parameters;
mod results;
mod sequences;
mod tables;
mod tiers;
mod times;

pub use guided::GuidedRows;
pub use input::{StepInput, StepShape};
pub use load::{LoadReport, LoadedModel, ModelOptions, ModelSource, load, load_on, plan, plan_gpu};
pub use local::LocalExecutor;
pub use memory::{KvBudget, KvLimits, KvPlan, KvWindow, WindowPlan};
pub use parameters::{Placement, cuda_options};
pub use times::DecodeTime;
