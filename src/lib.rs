//! A native Triton Inference Server backend for large language models, with its own engine.
//!
//! [`cli`] is the command line tool. The layers, top to bottom (`tests/layering.rs` holds who may name whom):
//! [`triton`] the C ABI · [`adapter`] requests and responses of the model roles · [`engine`] scheduling ·
//! [`runner`] one rank's execution · [`decode`] how tokens are chosen · [`text`] tokens to text and back ·
//! [`model`] families and checkpoints · [`ops`] the verbs a family is written in · [`device`] the hardware.

pub mod adapter;
pub mod cli;
pub mod config;
pub mod decode;
pub mod device;
pub mod engine;
pub mod error;
pub mod ids;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod runner;
pub mod step;
pub mod tensors;
pub mod text;
pub mod triton;
