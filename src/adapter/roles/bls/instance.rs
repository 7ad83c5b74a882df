//! Serves the role: a thread for each request, which spends its time waiting for other models.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use super::flow::{Flow, Inner, Models, Responses, Settings};
use crate::adapter::tensor::NamedTensor;
use crate::config::Parameters;
use crate::error::{Error, Result};
use crate::triton::{
    CancelProbe, InferRequest, InferResponses, Instance, InstanceHandler, Model, ModelHandler, Next, OutputTensor,
    Request, Response, ResponseSink, Server, Timings, monotonic_ns,
};

/// How often a waiting request looks whether its client is still there: the server can only be asked.
const CANCELLATION_PERIOD: Duration = Duration::from_millis(20);
/// How long after its cancellation was noticed the FINAL of a request whose client has gone away is held back; see the
/// LLM's responder, which holds its own back meanwhile.
const CANCELLED_HOLD: Duration = Duration::from_millis(100);
/// A request's thread waits and copies tensors; it computes nothing.
const STACK_BYTES: usize = 512 * 1024;

/// A loaded model of the role `bls`.
pub struct BlsModel {
    settings: Arc<Settings>,
    server: Server,
}

impl BlsModel {
    /// Reads the names of the models. They are asked for with the first request, so the order of loading is free.
    ///
    /// # Errors
    /// None today; the signature is that of the other roles.
    pub fn load(model: &Model, parameters: &Parameters) -> Result<Self> {
        let name = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
        let settings = Settings {
            preprocessing: name(&parameters.preprocessing_model_name.value, "preprocessing"),
            llm: name(&parameters.tensorrt_llm_model_name.value, "tensorrt_llm"),
            postprocessing: name(&parameters.postprocessing_model_name.value, "postprocessing"),
            draft: parameters.tensorrt_llm_draft_model_name.value.clone(),
            decoupled: model.config["model_transaction_policy"]["decoupled"].as_bool().unwrap_or(false),
            accumulate: parameters.accumulate_tokens.value.0,
            before_logits: before_logits(&model.config),
        };
        tracing::info!("{}: the input num_return_sequences is not passed on, as ever in this role", model.name);
        Ok(Self { settings: Arc::new(settings), server: model.server })
    }
}

impl ModelHandler for BlsModel {
    fn instance(self: Arc<Self>, _instance: Instance) -> Result<Arc<dyn InstanceHandler>> {
        let (settings, server) = (self.settings.clone(), self.server);
        Ok(Arc::new(BlsInstance { settings, server, running: Arc::default(), next: AtomicU64::new(0) }))
    }
}

/// Whether the configuration declares inputs and no flag of logits among them, as in version 0.7.
fn before_logits(config: &Value) -> bool {
    let inputs = config["input"].as_array().map_or(&[][..], Vec::as_slice);
    !inputs.is_empty() && !inputs.iter().any(|input| input["name"] == "return_context_logits")
}

struct BlsInstance {
    settings: Arc<Settings>,
    server: Server,
    running: Arc<Running>,
    next: AtomicU64,
}

/// Counts the threads of requests.
#[derive(Default)]
struct Running {
    count: Mutex<usize>,
    ended: Condvar,
}

/// One counted thread.
struct Ticket(Arc<Running>);

impl Ticket {
    fn new(running: &Arc<Running>) -> Self {
        *running.count.lock() += 1;
        Self(running.clone())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.ended.notify_all();
    }
}

impl InstanceHandler for BlsInstance {
    fn execute(&self, requests: Vec<Request>) {
        for request in requests {
            let (settings, server, ticket) = (self.settings.clone(), self.server, Ticket::new(&self.running));
            // The inner requests have an id of their own: a client's id may be in use at the LLM already.
            let id = format!("bls-{:x}-{:x}", monotonic_ns(), self.next.fetch_add(1, Ordering::Relaxed));
            let work = move || {
                serve(&settings, server, &id, request);
                drop(ticket);
            };
            let spawned = thread::Builder::new().name("bls".into()).stack_size(STACK_BYTES).spawn(work);
            if let Err(error) = spawned {
                // The request went with the closure and was answered by its drop.
                tracing::error!("no thread for a request: {error}");
            }
        }
    }

    fn ready(&self) -> Result<()> {
        Ok(())
    }

    fn shutdown(&self) {
        let mut count = self.running.count.lock();
        while *count > 0 {
            self.running.ended.wait(&mut count);
        }
    }
}

fn serve(settings: &Settings, server: Server, id: &str, request: Request) {
    let (exec_start_ns, compute_start_ns) = (request.received_ns(), monotonic_ns());
    let timings = || Timings { exec_start_ns, compute_start_ns, compute_end_ns: monotonic_ns() };
    let read = read(&request);
    let mut sink = request.into_sink();
    let (inputs, requested) = match read {
        Ok(read) => read,
        Err(error) => return sink.finish(Err(error), Some(timings())),
    };
    let Some(probe) = sink.cancel_probe() else { return };
    let gone_since = Cell::new(None);
    let models = ServerModels { settings, server, id, probe: probe.clone(), gone_since: &gone_since };
    let mut only = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut flow = Flow::new(settings, &models, &inputs)?;
        flow.run(inputs, |outputs| {
            let outputs = outputs.into_iter().filter(|output| requested.contains(&output.name));
            let response = Response { outputs: outputs.map(Into::into).collect(), parameters: Vec::new() };
            if settings.decoupled {
                return sink.send(&response);
            }
            only = Some(response);
            Ok(())
        })
    }))
    .unwrap_or_else(|_| Err(Error::internal("answering the request panicked")));
    if let Err(error) = &outcome {
        tracing::debug!("request {id} failed: {error}");
    }
    if probe.is_cancelled() {
        let due = gone_since.get().unwrap_or_else(Instant::now) + CANCELLED_HOLD;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // The HTTP frontend never lets go of a request that was cancelled and ends with the flag alone.
        return sink.finish(Ok(Response::default()), Some(timings()));
    }
    finish(sink, settings.decoupled, outcome.map(|()| only.unwrap_or_default()), timings());
}

/// Decoupled replies end with the FINAL flag alone, after an error too.
fn finish(mut sink: ResponseSink, decoupled: bool, outcome: Result<Response>, timings: Timings) {
    if !decoupled {
        return sink.finish(outcome, Some(timings));
    }
    let success = outcome.is_ok();
    match outcome.map_or_else(|error| sink.send_error(&error), |_| Ok(())) {
        Ok(()) => sink.finish_empty(success, timings),
        Err(error) => sink.finish(Err(error), Some(timings)),
    }
}

/// Inputs and names of the requested outputs.
fn read(request: &Request) -> Result<(Vec<NamedTensor>, Vec<String>)> {
    let inputs = request.inputs()?;
    let inputs = inputs.iter().map(NamedTensor::try_from).collect::<Result<_>>()?;
    Ok((inputs, request.requested_outputs()?.into_iter().map(str::to_owned).collect()))
}

/// The models of the real server, for one request.
struct ServerModels<'a> {
    settings: &'a Settings,
    server: Server,
    id: &'a str,
    probe: CancelProbe,
    /// When it was noticed that the client has gone away.
    gone_since: &'a Cell<Option<Instant>>,
}

impl Models for ServerModels<'_> {
    fn call(&self, inner: Inner) -> Result<Box<dyn Responses + '_>> {
        let inputs: Vec<OutputTensor> = inner.inputs.into_iter().map(Into::into).collect();
        let model = inner.model.clone();
        // The tokenizer's work is short, and a request that the server takes back from a queue counts as a failure.
        let is_long = model != self.settings.preprocessing && model != self.settings.postprocessing;
        let request = InferRequest { model: inner.model, id: self.id.to_owned(), inputs, outputs: inner.outputs };
        let responses = self.server.infer(request)?;
        let probe = is_long.then_some(&self.probe);
        let gone_since = self.gone_since;
        Ok(Box::new(ServerResponses { model, responses, probe, gone_since, cancelled: false }))
    }
}

struct ServerResponses<'a> {
    model: String,
    responses: InferResponses,
    /// Asked whether the client is still there.
    probe: Option<&'a CancelProbe>,
    gone_since: &'a Cell<Option<Instant>>,
    cancelled: bool,
}

impl Iterator for ServerResponses<'_> {
    type Item = Result<Vec<NamedTensor>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if !self.cancelled && self.probe.is_some_and(CancelProbe::is_cancelled) {
                self.gone_since.set(Some(Instant::now()));
                self.cancel();
            }
            match self.responses.next(CANCELLATION_PERIOD) {
                Next::Waiting => {}
                Next::Ended => return None,
                // What came before the model heard of it.
                Next::Response(_) if self.cancelled => {}
                Next::Response(Ok(outputs)) => {
                    let named = |output: &OutputTensor| {
                        NamedTensor::from_bytes(&output.name, output.dtype, &output.shape, &output.bytes)
                    };
                    return Some(outputs.iter().map(named).collect());
                }
                Next::Response(Err(error)) => {
                    return Some(Err(error.context(format_args!("model {:?}", self.model))));
                }
            }
        }
    }
}

impl Responses for ServerResponses<'_> {
    fn cancel(&mut self) {
        self.cancelled = true;
        self.responses.cancel();
    }
}
