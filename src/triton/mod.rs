//! The C ABI of Triton: declarations, handles that own what they name, the entry points and the log and metric sinks.
//!
//! Raw pointers never leave this module. The server calls the entry points in `entry`; they hand plain data and owned
//! handles to the [`ModelHandler`] and [`InstanceHandler`] of [`crate::adapter`].

mod entry;
mod error;
/// Lets the unit tests of all layers link and drive whole requests: an executable that reaches this module needs the
/// server's functions.
#[cfg(test)]
#[path = "../../tests/abi/fake.rs"]
pub mod fake;
mod ffi;
mod infer;
mod instance;
mod log;
mod message;
mod metrics;
mod model;
mod request;
mod response;
mod sink;
#[allow(non_camel_case_types, dead_code)]
mod sys {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}
mod tensor;

use std::sync::{Arc, OnceLock};

pub use infer::{InferRequest, InferResponse, InferResponses, Next, Server};
pub use instance::{Instance, InstanceKind};
pub use log::TritonLog;
pub use metrics::{Metric, MetricFamily, MetricKind};
pub use model::{Backend, Model};
pub use request::{CorrelationId, Request};
pub use response::{OutputTensor, ParameterValue, Response};
pub use sink::{CancelProbe, ResponseSink, Timings};
pub use tensor::{DataType, Input, decode_strings, encode_strings};

use serde_json::Value;

use crate::adapter;
use crate::error::Result;

/// What makes handlers of models.
pub trait ModelLoader: Sync {
    /// The model's config with what is missing filled in, or none where nothing is missing.
    ///
    /// # Errors
    /// The load of the model fails with this error.
    fn auto_complete(&self, model: &Model) -> Result<Option<Value>>;

    /// Loads a model.
    ///
    /// # Errors
    /// The load of the model fails with this error.
    fn load(&self, model: &Model) -> Result<Arc<dyn ModelHandler>>;
}

/// What the adapter provides for one loaded model; dropped when the server unloads it.
pub trait ModelHandler: Send + Sync {
    /// Makes the handler of one instance of the model.
    ///
    /// # Errors
    /// The load of the model fails with this error.
    fn instance(self: Arc<Self>, instance: Instance) -> Result<Arc<dyn InstanceHandler>>;
}

/// What the adapter provides for one instance of a model.
pub trait InstanceHandler: Send + Sync {
    /// Takes over `requests` and returns at once. Never called twice at a time. A request that is dropped answers its
    /// client with an error, so that a panic in here loses none.
    fn execute(&self, requests: Vec<Request>);

    /// Whether the instance can serve.
    ///
    /// # Errors
    /// Says why it cannot.
    fn ready(&self) -> Result<()>;

    /// Ends the instance: joins threads and frees memory. The server has no request here any more.
    fn shutdown(&self);
}

static LOADER: OnceLock<&'static dyn ModelLoader> = OnceLock::new();

/// Loads models with `loader` instead of [`crate::adapter`], in tests of the ABI itself. The first one stays.
pub fn set_loader(loader: &'static dyn ModelLoader) {
    LOADER.get_or_init(|| loader);
}

fn loader() -> &'static dyn ModelLoader {
    *LOADER.get_or_init(|| &AdapterLoader)
}

struct AdapterLoader;

impl ModelLoader for AdapterLoader {
    fn auto_complete(&self, model: &Model) -> Result<Option<Value>> {
        adapter::auto_complete(model)
    }

    fn load(&self, model: &Model) -> Result<Arc<dyn ModelHandler>> {
        adapter::load_model(model)
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of Triton's statistics and traces.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result; CLOCK_MONOTONIC always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Ends the process at once, without the exit handlers of the server or of a driver that hangs.
pub fn exit_process(code: i32) -> ! {
    // SAFETY: takes no pointer and does not return; whatever other threads do ends with the process.
    unsafe { libc::_exit(code) }
}
