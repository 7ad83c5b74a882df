//! How tokens are chosen and when generation ends. Pure: randomness comes in as a seed and a position.

pub mod beam;
pub mod draft;
pub mod guided;
pub mod logits;
mod params;
pub mod rank;
pub mod sample;
mod stop;

pub use params::{DraftLogits, PassOrder, SamplingParams, StopCriteria};
pub use stop::StopVerdict;
