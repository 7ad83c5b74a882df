//! Arguments of the operations of a mixture of experts. E experts, k of them for each token.

use super::{Tensor, Weight};

/// Arguments of [`super::Device::route`].
pub struct Route<'a> {
    /// `[T, k]` I32: the chosen experts, best first; equal scores: the lower number first.
    pub ids: &'a Tensor,
    /// `[T, k]` F32.
    pub weights: &'a Tensor,
    /// `[T, E]` F32.
    pub logits: &'a Tensor,
    /// `[1, E]`, added to the scores for the choice only.
    pub choice_bias: Option<&'a Tensor>,
    pub rule: RoutingRule,
}

/// How scores become a choice and weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoutingRule {
    pub score: Score,
    /// Only experts of the best groups are chosen.
    pub groups: Option<ExpertGroups>,
    /// The weights of a token are divided by their sum.
    pub renormalize: bool,
    /// Factor of the weights.
    pub scale: f32,
}

/// The score of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Over all experts. Renormalized, it is also the softmax over the chosen ones.
    Softmax,
    Sigmoid,
}

/// Experts in groups of equal size, of which `kept` are left to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    pub count: usize,
    pub kept: usize,
    pub score: GroupScore,
}

/// The score of a group, the bias of the choice included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    Largest,
    /// The sum of the two largest.
    TopTwo,
}

/// Arguments of [`super::Device::expert_linear`]: `out[i] = x[i / (T * k / rows of x)] · weight[ids[i]]ᵀ + bias[ids[i]]`.
pub struct ExpertLinear<'a> {
    /// `[T * k, N]`.
    pub out: &'a Tensor,
    /// `[T, K]`, or `[T * k, K]` with a row for each expert of a token.
    pub x: &'a Tensor,
    /// `[E * N, K]`.
    pub weight: &'a Weight,
    /// `[E, N]`.
    pub bias: Option<&'a Tensor>,
    /// `[T, k]` I32.
    pub ids: &'a Tensor,
    /// E.
    pub num_experts: usize,
}
