//! The engine: which sequences run in which step, with which memory, and who is told what.

mod request;

pub use request::{Delta, Finish, FinishReason, Request, RequestSink, RequestStats};
