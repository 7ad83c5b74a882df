//! One engine behind one Triton instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::active::{Active, Control};
use super::fatal::FatalExit;
use super::guides::GuideStore;
use super::interface::Asked;
use super::metrics::{InstanceMetrics, Updater, idle_snapshot};
use super::model_warmup::WarmUp;
use super::open::Opened;
use super::request::{Call, Generate, Rules};
use super::responder::{OpenCall, Responder, RowSink};
use super::response::Row;
use super::strangers::Strangers;
use super::terms::Terms;
use crate::adapter::events::EventPublisher;
use crate::config::FatalAction;
use crate::engine::{Engine, RequestSink};
use crate::error::{Error, ErrorKind, Result};
use crate::triton::{InstanceHandler, Request, Response, Timings, monotonic_ns};

/// How long an unload waits for requests. The server has none left by then; this only bounds what should be at once.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves requests with one engine.
pub struct LlmInstance {
    rules: Arc<Rules>,
    /// There where requests can be guided.
    guides: Option<GuideStore>,
    engine: Engine,
    active: Arc<Active>,
    next_call: AtomicU64,
    strangers: Strangers,
    threads: Mutex<Option<Threads>>,
}

/// Dropped in this order: the gauges see the engine's last state.
struct Threads {
    _updater: Option<Updater>,
    _events: Option<EventPublisher>,
    responder: Responder,
}

/// How often gauges are updated; `None`: never.
pub type StatsPeriod = Option<Duration>;

impl LlmInstance {
    /// Starts the threads around a running engine.
    ///
    /// # Errors
    /// `Internal` when there is no thread.
    pub fn start(
        rules: Arc<Rules>,
        guides: Option<GuideStore>,
        opened: Opened,
        metrics: InstanceMetrics,
        period: StatsPeriod,
        fatal: FatalAction,
    ) -> Result<Self> {
        let Opened { engine, events, .. } = opened;
        let active = Arc::new(Active::default());
        let exit = (fatal == FatalAction::Exit).then(|| FatalExit::new(engine.health_probe()));
        let responder = Responder::start(active.clone(), metrics.clone(), exit)?;
        metrics.update(idle_snapshot(&engine));
        let updater = period.map(|period| Updater::start(metrics, engine.clone(), period)).transpose()?;
        let threads = Mutex::new(Some(Threads { _updater: updater, _events: events, responder }));
        let strangers = Strangers::default();
        Ok(Self { rules, guides, engine, active, next_call: AtomicU64::new(0), strangers, threads })
    }

    fn serve(&self, request: Request) {
        let exec_start_ns = request.received_ns();
        let warm_up = self.rules.warm_ups.next();
        let call = match self.parse(&request, warm_up) {
            Ok(call) => call,
            Err(error) => {
                // Some servers end while they give up such a load, before they have said why.
                if warm_up.is_some() {
                    tracing::error!("model_warmup: {error}");
                }
                return fail(request, self.worded(error), exec_start_ns);
            }
        };
        match call {
            Call::Stop => self.stop(request),
            Call::Generate(generate) => match request.id().map(str::to_owned) {
                Ok(id) => self.generate(request, &id, generate, exec_start_ns),
                Err(error) => fail(request, self.worded(error), exec_start_ns),
            },
        }
    }

    /// The error in the words of the backend whose tensors the request has.
    fn worded(&self, error: Error) -> Error {
        match &self.rules.interface {
            Some(interface) => interface.error(error),
            None => error,
        }
    }

    fn parse(&self, request: &Request, warm_up: Option<WarmUp>) -> Result<Call> {
        if request.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the request was cancelled before it ran"));
        }
        let (mut inputs, requested) = (request.inputs()?, request.requested_outputs()?);
        let parameters = request.parameters()?;
        if let Some(warm_up) = warm_up {
            warm_up.fit(&mut inputs, self.rules.vocab_size);
        }
        let call = match &self.rules.interface {
            Some(interface) => {
                interface.parse(&self.rules, &Asked { inputs: &inputs, requested: &requested, parameters: &parameters })
            }
            None => {
                self.strangers.tell(&parameters);
                Call::parse(&self.rules, &inputs, &requested)
            }
        };
        // An adapter that is not there is a runtime error in the words that clients look for.
        let mut call = call.map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.engine.refuse(&error),
            _ => error,
        })?;
        if let Call::Generate(generate) = &mut call {
            let terms = Terms::read(&self.rules.terms, &parameters, request.timeout_us()?)?;
            let now_ns = self.engine.now_ns();
            generate.items.iter_mut().for_each(|item| terms.apply(&mut item.request, now_ns));
        }
        Ok(call)
    }

    /// Ends the newest request with the same id. The reply has no tensors and is in no statistics.
    fn stop(&self, request: Request) {
        match request.id().map(str::to_owned) {
            Ok(id) if id.is_empty() => {
                let error = Error::invalid("cannot send a stop request: request ID is not provided");
                request.fail(self.worded(error), None);
            }
            Ok(id) => {
                self.active.stop(&id);
                let stopped = self.rules.interface.as_ref().map_or(Ok(Response::default()), |i| i.stopped());
                request.into_sink().finish(stopped, None);
            }
            Err(error) => request.fail(self.worded(error), None),
        }
    }

    fn generate(&self, request: Request, id: &str, generate: Generate, exec_start_ns: u64) {
        let Generate { plan, items, form } = generate;
        let sequences: Vec<_> = items.iter().map(|item| item.request.num_sequences).collect();
        let control = Control::new(id, sequences.iter().sum());
        let tokenizer = self.rules.text.as_ref().map(|text| &text.tokenizer);
        let threads = self.threads.lock();
        let Some(Threads { responder, .. }) = &*threads else {
            return fail(request, self.worded(Error::unavailable("the model is being unloaded")), exec_start_ns);
        };
        let open = OpenCall {
            rows: Row::all(&plan, &items, tokenizer),
            prompt_tokens: items.iter().filter(|item| item.first_sequence == 0).map(|i| i.request.prompt.len()).sum(),
            sink: request.into_sink(),
            plan,
            control: control.clone(),
            exec_start_ns,
            compute_start_ns: monotonic_ns(),
            form,
        };
        self.active.insert(&control);
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        let sinks = responder.open(call, open, &sequences);
        let boxed = |sink: RowSink| -> Box<dyn RequestSink> { Box::new(sink) };
        let (sources, requests): (Vec<_>, Vec<_>) = items.into_iter().map(|item| (item.guide, item.request)).unzip();
        let mut requests: Vec<_> = requests.into_iter().zip(sinks.into_iter().map(boxed)).collect();
        let refusal = responder.refusal(call);
        let given: Vec<_> = sources.iter().flatten().cloned().collect();
        let Some(guides) = self.guides.as_ref().filter(|_| !given.is_empty()) else {
            if let Err(error) = self.engine.submit_all(requests) {
                refusal.send(error);
            }
            return;
        };
        let engine = self.engine.clone();
        guides.resolve(given, move |guides| {
            let submitted = guides.and_then(|guides| {
                let guided = requests.iter_mut().zip(&sources).filter(|(_, source)| source.is_some());
                guided.zip(guides).for_each(|(((request, _), _), guide)| request.sampling.guide = Some(guide));
                engine.submit_all(requests)
            });
            if let Err(error) = submitted {
                refusal.send(error);
            }
        });
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

fn fail(request: Request, error: Error, exec_start_ns: u64) {
    let error_kind = error.kind();
    let now = monotonic_ns();
    tracing::debug!("request {:?} refused: {error}", request.id().unwrap_or("(unreadable id)"));
    let timings = Timings { exec_start_ns, compute_start_ns: now, compute_end_ns: now };
    // Nobody failed where the client went away first.
    request.fail(error, (error_kind != ErrorKind::Cancelled).then_some(timings));
}
