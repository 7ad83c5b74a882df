//! The LLM behind other tensors than its own: a role translates the request and forms the responses.

use std::collections::BTreeMap;

use super::request::{Call, Rules};
use super::response::Step;
use crate::engine::FinishReason;
use crate::error::{Error, Result};
use crate::triton::{Input, ParameterValue, Response};

/// What a client sent.
pub struct Asked<'a> {
    pub inputs: &'a [Input<'a>],
    /// The outputs that it lists.
    pub requested: &'a [&'a str],
    pub parameters: &'a BTreeMap<String, ParameterValue>,
}

/// Tensors of another backend's LLM.
pub trait Interface: Send + Sync {
    /// Reads a request; what it generates has a [`Form`].
    ///
    /// # Errors
    /// As for [`Call::parse`].
    fn parse(&self, rules: &Rules, asked: &Asked<'_>) -> Result<Call>;

    /// What the stop command is answered with.
    ///
    /// # Errors
    /// Where the other backend answers with an error.
    fn stopped(&self) -> Result<Response>;

    /// An error in the other backend's words.
    fn error(&self, error: Error) -> Error;
}

/// How one sequence ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// What the engine says; none where it has not ended the sequence (yet).
    pub finish: Option<FinishReason>,
    /// Which of the stop texts ended the sequence.
    pub stop_text: Option<usize>,
}

/// The responses of one request in the tensors of an [`Interface`].
pub trait Form: Send {
    /// What the client gets for a step of one sequence, whose response has the LLM's own tensors.
    fn step(&mut self, row: usize, step: Step, end: End) -> Step;

    /// An error in the other backend's words.
    fn error(&self, error: Error) -> Error;
}
