//! The verbs that a model's forward pass is written in: they check shapes, take outputs from the step's memory and
//! call the device. Legend of shapes: see [`crate::device`].

mod arena;
mod forward;
mod planning;
mod prompt_rows;

pub use arena::{Arena, Scope};
pub use forward::{Forward, LayerAttention, StepTensors, StepWindow};
pub use planning::PlanningDevice;
pub use prompt_rows::{PromptRow, PromptWindow};
