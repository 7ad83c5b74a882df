//! The role `bls`: text in, text out by calling the models `preprocessing`, `tensorrt_llm` and `postprocessing` of the
//! same server. What the ensemble does, plus text stop words, whole texts instead of pieces, and no lost blanks.

mod complete;
mod flow;
mod instance;
mod speculation;
mod stops;

pub use complete::{complete, config_template};
pub use instance::BlsModel;
