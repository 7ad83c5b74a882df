//! What not every device has.

use super::Activation;
use crate::error::Error;
use std::fmt;

/// An operation, or a variant of one, that a device may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    LayerNorm,
    Elementwise,
    Add,
    /// Routing to experts, their matrices and their sum.
    Experts,
    /// Attention sinks.
    Sinks,
    /// Attention with linear biases.
    Alibi,
    /// Attention over a cache of keys that are values, too.
    LatentAttention,
    /// Attention within chunks of positions.
    ChunkedAttention,
    /// Factors of rows by position.
    PositionFactors,
    /// A gated layer with this activation.
    Gated(Activation),
}

impl Feature {
    /// The error of a device that lacks it.
    pub fn missing(self) -> Error {
        Error::unsupported(format!("this device has no {self} yet, which the model needs"))
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LayerNorm => f.write_str("layer_norm"),
            Self::Elementwise => f.write_str("elementwise functions"),
            Self::Add => f.write_str("add"),
            Self::Experts => f.write_str("mixture of experts"),
            Self::Sinks => f.write_str("attention sinks"),
            Self::Alibi => f.write_str("attention with linear biases (ALiBi)"),
            Self::LatentAttention => f.write_str("latent attention (MLA)"),
            Self::ChunkedAttention => f.write_str("attention within chunks"),
            Self::PositionFactors => f.write_str("factors of queries by position"),
            Self::Gated(activation) => write!(f, "gated_activation with {activation:?}"),
        }
    }
}

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    Activate(Activation),
    Sigmoid,
    /// `x * factor`.
    Scale(f32),
    /// Between minus and plus the bound.
    Clamp(f32),
    /// `cap * tanh(x / cap)`.
    Softcap(f32),
}
