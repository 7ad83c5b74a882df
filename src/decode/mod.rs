//! How tokens are chosen and when generation ends. Pure: randomness comes in as a seed and a position.

mod params;

pub use params::{SamplingParams, StopCriteria};
