//! Model families, their configuration and their checkpoints.

mod block;
mod config;
mod copy;
pub mod families;
pub mod formats;
mod pieces;
mod presets;
mod rope;
mod section;
mod weights;

pub use block::{Decoder, MlpNames, QkvNames, TensorNames};
pub use config::{
    ExpertWeights, Experts, HeadNorm, Latent, LayerRope, ModelConfig, NormKind, QueryGrowth, SharedExpert,
    SpecialTokens,
};
pub use pieces::{Piece, View};
pub use presets::{preset, preset_config, preset_names};
pub use rope::{Rope, RopeScaling};
pub use section::Section;
pub use weights::{VectorKind, WeightLoader, WeightSource};

use crate::device::Tensor;
use crate::error::Result;
use crate::ops::Forward;

/// A model whose weights are on a device.
pub trait Model: Send {
    /// Logits `[R, V]` F32 of the rows that the step samples.
    fn forward(&self, cx: &Forward<'_>) -> Result<Tensor>;
}
