//! The role `bls`: text in, text out by calling the models `preprocessing`, `tensorrt_llm` and `postprocessing` of the
//! same server. What the ensemble does, plus text stop words, whole texts instead of pieces, and no lost blanks.

mod flow;
mod instance;
mod speculation;
mod stops;
mod tensors;

pub use instance::BlsModel;
pub use tensors::{complete, config_template};
