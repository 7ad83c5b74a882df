//! One engine behind one Triton instance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::active::{Active, Control};
use super::metrics::{InstanceMetrics, Updater, idle_snapshot};
use super::request::{Call, Generate, Rules};
use super::responder::{OpenCall, Responder, RowSink};
use super::response::Row;
use crate::engine::{Engine, RequestSink};
use crate::error::{Error, ErrorKind, Result};
use crate::triton::{InstanceHandler, ParameterValue, Request, Response, Timings, monotonic_ns};

/// How long an unload waits for requests. The server has none left by then; this only bounds what should be at once.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves requests with one engine.
pub struct LlmInstance {
    rules: Arc<Rules>,
    engine: Engine,
    active: Arc<Active>,
    next_call: AtomicU64,
    threads: Mutex<Option<Threads>>,
}

/// Dropped in this order: the gauges see the engine's last state.
struct Threads {
    _updater: Option<Updater>,
    responder: Responder,
}

/// How often gauges are updated; `None`: never.
pub type StatsPeriod = Option<Duration>;

impl LlmInstance {
    /// Starts the threads around a running engine.
    ///
    /// # Errors
    /// `Internal` when there is no thread.
    pub fn start(rules: Arc<Rules>, engine: Engine, metrics: InstanceMetrics, period: StatsPeriod) -> Result<Self> {
        let active = Arc::new(Active::default());
        let responder = Responder::start(active.clone(), metrics.clone())?;
        metrics.update(idle_snapshot(&engine));
        let updater = period.map(|period| Updater::start(metrics, engine.clone(), period)).transpose()?;
        let threads = Mutex::new(Some(Threads { _updater: updater, responder }));
        Ok(Self { rules, engine, active, next_call: AtomicU64::new(0), threads })
    }

    fn serve(&self, request: Request) {
        let exec_start_ns = request.received_ns();
        let call = match self.parse(&request) {
            Ok(call) => call,
            Err(error) => return fail(request, error, exec_start_ns),
        };
        match call {
            Call::Stop => self.stop(request),
            Call::Generate(generate) => self.generate(request, generate, exec_start_ns),
        }
    }

    fn parse(&self, request: &Request) -> Result<Call> {
        if request.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the request was cancelled before it ran"));
        }
        let mut call = Call::parse(&self.rules, &request.inputs()?, &request.requested_outputs()?)?;
        check_request_type(&request.parameters()?)?;
        let timeout_us = request.timeout_us()?;
        if let Call::Generate(generate) = &mut call
            && timeout_us > 0
        {
            let deadline_ns = self.engine.now_ns().saturating_add(timeout_us.saturating_mul(1000));
            generate.items.iter_mut().for_each(|item| item.request.deadline_ns = Some(deadline_ns));
        }
        Ok(call)
    }

    /// Ends the newest request with the same id. The reply has no tensors and is in no statistics.
    fn stop(&self, request: Request) {
        match request.id().map(str::to_owned) {
            Ok(id) if id.is_empty() => {
                request.fail(Error::invalid("cannot send a stop request: request ID is not provided"), None);
            }
            Ok(id) => {
                self.active.stop(&id);
                request.into_sink().finish(Ok(Response::default()), None);
            }
            Err(error) => request.fail(error, None),
        }
    }

    fn generate(&self, request: Request, generate: Generate, exec_start_ns: u64) {
        let Generate { plan, items } = generate;
        let id = request.id().unwrap_or_default().to_owned();
        let control = Control::new(&id, items.len());
        let tokenizer = self.rules.text.as_ref().map(|text| &text.tokenizer);
        let threads = self.threads.lock();
        let Some(Threads { responder, .. }) = &*threads else {
            return fail(request, Error::unavailable("the model is being unloaded"), exec_start_ns);
        };
        let open = OpenCall {
            rows: items.iter().map(|item| Row::new(&plan, item, tokenizer)).collect(),
            prompt_tokens: items.iter().filter(|item| item.sequence_index == 0).map(|i| i.request.prompt.len()).sum(),
            sink: request.into_sink(),
            plan,
            control: control.clone(),
            exec_start_ns,
            compute_start_ns: monotonic_ns(),
        };
        self.active.insert(&control);
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        let sinks = responder.open(call, open);
        let boxed = |sink: RowSink| -> Box<dyn RequestSink> { Box::new(sink) };
        let requests = items.into_iter().map(|item| item.request).zip(sinks.into_iter().map(boxed)).collect();
        if let Err(error) = self.engine.submit_all(requests) {
            responder.refuse(call, error);
        }
    }
}

impl InstanceHandler for LlmInstance {
    fn execute(&self, requests: Vec<Request>) {
        requests.into_iter().for_each(|request| self.serve(request));
    }

    fn ready(&self) -> Result<()> {
        self.engine.health()
    }

    fn shutdown(&self) {
        if !self.engine.drain(DRAIN) {
            tracing::warn!("requests were still running after {DRAIN:?}; they were ended");
        }
        self.engine.shutdown();
        drop(self.threads.lock().take());
    }
}

/// The request parameter `request_type`. Another word than the three counts as none, another type too.
///
/// # Errors
/// `Unsupported` for one half of a disaggregated request.
fn check_request_type(parameters: &BTreeMap<String, ParameterValue>) -> Result<()> {
    match parameters.get("request_type") {
        Some(ParameterValue::Text(text)) => match text.as_str() {
            "context_and_generation" => Ok(()),
            "context_only" | "generation_only" => {
                Err(Error::unsupported(format!("request_type {text} is not supported by this version")))
            }
            _ => {
                tracing::error!(
                    "request_type is {text:?}, expected context_and_generation, context_only or generation_only: \
                     taken as context_and_generation"
                );
                Ok(())
            }
        },
        _ => Ok(()),
    }
}

fn fail(request: Request, error: Error, exec_start_ns: u64) {
    let now = monotonic_ns();
    tracing::debug!("request {:?} refused: {error}", request.id().unwrap_or_default());
    let timings = Timings { exec_start_ns, compute_start_ns: now, compute_end_ns: now };
    request.fail(error, Some(timings));
}
