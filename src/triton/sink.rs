//! Answering a request: exactly one FINAL, whatever happens.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use super::error::ServerError;
use super::ffi::{check, read};
use super::instance::Instance;
use super::monotonic_ns;
use super::response::{RawResponse, Response};
use super::sys;
use crate::error::{Error, Result, ResultExt};

const MORE: u32 = 0;
const FINAL: u32 = sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL;
const POPULATING: &str = "Error encountered while populating response";

/// When a request was worked on, in CLOCK_MONOTONIC nanoseconds. Its end is the time of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Entry of the execute call.
    pub exec_start_ns: u64,
    /// The request goes to the engine.
    pub compute_start_ns: u64,
    /// The last output arrives.
    pub compute_end_ns: u64,
}

/// Sends the responses of one request, from any one thread at a time.
///
/// [`ResponseSink::finish`] sends the one FINAL response and consumes the sink; dropping an unfinished sink does it with
/// an INTERNAL error. The request is released after that, and lives until then. Sending calls the server's frontend in
/// the calling thread, so it belongs to a thread of its own.
///
/// FINAL is sent at once. A server build whose gRPC frontend crashes on a FINAL soon after a cancellation (2.51) wants
/// the caller to wait 100 ms between seeing [`ResponseSink::is_cancelled`] and finishing.
pub struct ResponseSink {
    open: Option<Open>,
}

/// A request without its FINAL. The fields are dropped in this order: release the request, then delete the factory,
/// which keeps the instance alive.
struct Open {
    request: RequestHandle,
    factory: Arc<FactoryHandle>,
    instance: Instance,
    received_ns: u64,
}

struct RequestHandle(*mut sys::TRITONBACKEND_Request);
struct FactoryHandle(*mut sys::TRITONBACKEND_ResponseFactory);

/// Tells any thread whether the client of a request has gone away. It keeps the instance alive, not the request.
#[derive(Clone)]
pub struct CancelProbe(Arc<FactoryHandle>);

// SAFETY: a factory is used by the thread that sends and, through probes, for a question that the server answers from
// an atomic; deleting it is allowed on any thread.
unsafe impl Send for FactoryHandle {}
// SAFETY: as for Send.
unsafe impl Sync for FactoryHandle {}

// SAFETY: the server lets any thread read a request, make responses and send them, as long as this happens one after
// another for one request; `&mut self` and ownership see to that.
unsafe impl Send for ResponseSink {}

impl ResponseSink {
    /// Takes over a request. If no factory can be made, the request is answered with an error, and that is all.
    ///
    /// # Safety
    /// `raw` is a request of `instance` that the server handed to us.
    pub(super) unsafe fn new(
        raw: *mut sys::TRITONBACKEND_Request,
        instance: &Instance,
        received_ns: u64,
    ) -> Option<Self> {
        let request = RequestHandle(raw);
        // SAFETY: the request is ours and alive; the factory written is ours.
        match unsafe { read(ptr::null_mut(), |out| sys::TRITONBACKEND_ResponseFactoryNew(out, raw)) } {
            Ok(factory) => {
                let factory = Arc::new(FactoryHandle(factory));
                Some(Self { open: Some(Open { request, factory, instance: instance.clone(), received_ns }) })
            }
            Err(error) => {
                request.fail(&error.context("response factory"));
                None
            }
        }
    }

    /// Sends a response that is not the last one.
    ///
    /// # Errors
    /// The response could not be built or sent. The client has not seen it; the request is still open.
    pub fn send(&mut self, response: &Response) -> Result<()> {
        self.open().build(response)?.send(MORE, None)
    }

    /// Sends an error that does not end the request, for one of several sequences.
    ///
    /// # Errors
    /// As for [`ResponseSink::send`].
    pub fn send_error(&mut self, error: &Error) -> Result<()> {
        self.open().send_error(error, MORE)
    }

    /// Sends the FINAL response, reports statistics where `timings` are given, and releases the request.
    ///
    /// The report comes first, so that a client that has its answer also finds it counted. A response that cannot be
    /// built becomes an error; failures beyond that are logged, since nobody is left to tell.
    pub fn finish(mut self, outcome: Result<Response>, timings: Option<Timings>) {
        if let Some(open) = self.open.take() {
            open.close(outcome, timings);
        }
    }

    /// Ends the request with the FINAL flag alone, after responses that were sent before; `success` is for the
    /// statistics.
    pub fn finish_empty(mut self, success: bool, timings: Timings) {
        if let Some(open) = self.open.take() {
            open.report(success, timings);
            log_failure(open.send_flags(FINAL), "sending the final flag");
        }
    }

    /// Whether the client has gone away.
    pub fn is_cancelled(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.factory.is_cancelled())
    }

    /// A view of [`ResponseSink::is_cancelled`] for another thread.
    pub fn cancel_probe(&self) -> Option<CancelProbe> {
        self.open.as_ref().map(|open| CancelProbe(open.factory.clone()))
    }

    /// When the server handed the request over, in CLOCK_MONOTONIC nanoseconds.
    pub fn received_ns(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.received_ns)
    }

    pub(super) fn raw_request(&self) -> *mut sys::TRITONBACKEND_Request {
        self.open.as_ref().map_or(ptr::null_mut(), |open| open.request.0)
    }

    fn open(&mut self) -> &mut Open {
        self.open.as_mut().expect("only finish and drop close a sink, and both end it")
    }
}

impl Drop for ResponseSink {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let now = monotonic_ns();
        let timings =
            Timings { exec_start_ns: open.received_ns, compute_start_ns: open.received_ns, compute_end_ns: now };
        open.close(Err(Error::internal("the request was given up without an answer")), Some(timings));
    }
}

impl fmt::Debug for ResponseSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseSink").field("received_ns", &self.received_ns()).finish_non_exhaustive()
    }
}

impl Open {
    fn close(self, outcome: Result<Response>, timings: Option<Timings>) {
        let response = outcome.and_then(|response| self.build(&response));
        if let Some(timings) = timings {
            self.report(response.is_ok(), timings);
        }
        let sent = match response {
            Ok(response) => response.send(FINAL, None),
            Err(error) => self.send_error(&error, FINAL).or_else(|failure| {
                log_failure(Err(failure), "building an error response");
                self.send_flags(FINAL)
            }),
        };
        log_failure(sent, "sending the final response");
    }

    fn report(&self, success: bool, timings: Timings) {
        // SAFETY: the request is released by the drop of `self`.
        let report = unsafe { self.instance.report(self.request.0, success, timings, monotonic_ns()) };
        log_failure(report, "reporting statistics");
    }

    fn build(&self, response: &Response) -> Result<RawResponse> {
        // SAFETY: the factory is alive and FINAL was not sent: that is what being open means.
        let mut raw = unsafe { RawResponse::new(self.factory.0) }.context(POPULATING)?;
        raw.fill(response).context(POPULATING)?;
        Ok(raw)
    }

    fn send_error(&self, error: &Error, flags: u32) -> Result<()> {
        // SAFETY: as for `build`.
        let response = unsafe { RawResponse::new(self.factory.0) }?;
        response.send(flags, Some(&ServerError::new(error)))
    }

    fn send_flags(&self, flags: u32) -> Result<()> {
        // SAFETY: as for `build`.
        unsafe { check(sys::TRITONBACKEND_ResponseFactorySendFlags(self.factory.0, flags)) }
    }
}

impl CancelProbe {
    /// Whether the client has gone away.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl FactoryHandle {
    fn is_cancelled(&self) -> bool {
        // SAFETY: the factory is alive until `self` is dropped. A server that cannot say has not cancelled.
        unsafe { read(false, |out| sys::TRITONBACKEND_ResponseFactoryIsCancelled(self.0, out)) }.unwrap_or(false)
    }
}

impl RequestHandle {
    fn fail(self, error: &Error) {
        // SAFETY: the request is ours, and nothing was sent for it.
        let sent = unsafe { RawResponse::for_request(self.0) }
            .and_then(|response| response.send(FINAL, Some(&ServerError::new(error))));
        log_failure(sent, "sending the final response");
    }
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        // SAFETY: ours and released only here.
        let released =
            unsafe { check(sys::TRITONBACKEND_RequestRelease(self.0, sys::TRITONSERVER_REQUEST_RELEASE_ALL)) };
        log_failure(released, "releasing the request");
    }
}

impl Drop for FactoryHandle {
    fn drop(&mut self) {
        // SAFETY: ours and deleted only here.
        let deleted = unsafe { check(sys::TRITONBACKEND_ResponseFactoryDelete(self.0)) };
        log_failure(deleted, "deleting the response factory");
    }
}

fn log_failure(result: Result<()>, doing: &str) {
    if let Err(error) = result {
        tracing::error!("{doing}: {error}");
    }
}
