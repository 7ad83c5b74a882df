//! The engine's thread and the handle to it: the only file of the engine that knows threads and the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::config::EngineConfig;
use super::core::{EngineCore, IterationHook, Progress, Submission};
use super::events::{KvEventBatch, KvEvents};
use super::gate::{Gate, failed_request};
use super::request::{Request, RequestSink};
use super::sink::{FinalSink, Ledger};
use super::stats::EngineStats;
use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::step::Executor;

/// Handle to a running engine; clones share it. The last one to be dropped stops the engine and waits for its thread.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// Says whether an engine works, without keeping it alive.
#[derive(Clone)]
pub struct HealthProbe(Arc<Gate>);

impl HealthProbe {
    /// As [`Engine::health`].
    ///
    /// # Errors
    /// As [`Engine::health`].
    pub fn health(&self) -> Result<()> {
        self.0.health()
    }
}

struct Shared {
    gate: Arc<Gate>,
    ledger: Arc<Ledger>,
    board: Arc<Mutex<EngineStats>>,
    events: KvEvents,
    pulse: Arc<Pulse>,
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Dropped: the watchdog ends.
    _leash: Option<Sender<()>>,
    origin: Instant,
}

/// What the engine thread shows to the watchdog.
#[derive(Default)]
struct Pulse {
    /// When the present step began; 0: there is nothing to do.
    busy_since_ns: AtomicU64,
}

enum Command {
    Submit(Vec<Submission>),
    Cancel(RequestId),
    ResetCache,
    /// Answered when no request is left.
    WhenIdle(Sender<()>),
    Abort(Error),
    Stop,
}

impl Engine {
    /// Starts the engine on a thread of its own.
    ///
    /// # Errors
    /// `InvalidArg` when `config` asks for more than the executor can hold; `Internal` when there is no thread.
    pub fn start(config: EngineConfig, executor: Box<dyn Executor>) -> Result<Self> {
        Self::spawn(config, executor, None)
    }

    /// As [`Engine::start`]; `hook` sees the statistics of every step.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_observed(config: EngineConfig, executor: Box<dyn Executor>, hook: IterationHook) -> Result<Self> {
        Self::spawn(config, executor, Some(hook))
    }

    fn spawn(config: EngineConfig, executor: Box<dyn Executor>, hook: Option<IterationHook>) -> Result<Self> {
        let stall_timeout = config.stall_timeout;
        let core = EngineCore::new(config, executor, hook)?;
        let (commands, inbox) = channel();
        let origin = Instant::now();
        let (gate, board, ledger, events) = (core.gate(), core.board(), core.ledger(), core.events());
        let pulse = Arc::<Pulse>::default();
        let engine_loop =
            EngineLoop { core, inbox, origin, pulse: pulse.clone(), idle_waiters: Vec::new(), put_off_ns: None };
        let thread = thread::Builder::new()
            .name("engine".into())
            .spawn(move || engine_loop.run())
            .map_err(|error| Error::internal(format!("cannot start the engine thread: {error}")))?;
        let mut shared = Shared {
            gate: gate.clone(),
            ledger: ledger.clone(),
            board: board.clone(),
            events,
            pulse: pulse.clone(),
            commands,
            thread: Mutex::new(Some(thread)),
            _leash: None,
            origin,
        };
        if let Some(timeout) = stall_timeout {
            shared._leash = Some(Watchdog { gate, ledger, board, pulse, origin, timeout }.start()?);
        }
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Accepts one request and returns at once; its tokens go to `sink`, on the engine thread.
    ///
    /// # Errors
    /// `InvalidArg` for a request that cannot be served; `Unavailable` when the queue is full, or the engine is
    /// draining, stopped or failed. The sink is then dropped unused.
    pub fn submit(&self, request: Request, sink: Box<dyn RequestSink>) -> Result<RequestId> {
        Ok(self.submit_all(vec![(request, sink)])?[0])
    }

    /// Accepts all requests or none.
    ///
    /// # Errors
    /// As [`Engine::submit`], for the first request that is refused.
    pub fn submit_all(&self, requests: Vec<(Request, Box<dyn RequestSink>)>) -> Result<Vec<RequestId>> {
        let ids = self.shared.gate.admit(requests.iter().map(|(request, _)| request))?;
        let arrival_ns = self.now_ns();
        let submissions = ids.iter().zip(requests).map(|(&id, (request, sink))| Submission {
            id,
            sink: FinalSink::new(id, request.num_sequences, sink, &self.shared.ledger),
            request,
            arrival_ns,
        });
        // A stopped engine drops the command, and with it the sinks, which answer.
        let _ = self.shared.commands.send(Command::Submit(submissions.collect()));
        // The watchdog may have answered everybody while these were on their way to a thread that hangs.
        if let Err(failure) = self.health() {
            self.shared.ledger.answer_all(failure.message());
        }
        Ok(ids)
    }

    /// The error of a request that was refused before it was submitted, in the words of a runtime error: with an id.
    pub fn refuse(&self, error: &Error) -> Error {
        Error::new(error.kind(), failed_request(self.shared.gate.next_id(), error.message()))
    }

    /// Ends a request with what it has generated, before the next step. Unknown and finished ids are no error.
    pub fn cancel(&self, id: RequestId) {
        // An engine that has stopped has answered it.
        let _ = self.shared.commands.send(Command::Cancel(id));
    }

    /// Forgets what the prefix cache holds, before the next step, as must be done when weights or an adapter change.
    pub fn reset_prefix_cache(&self) {
        // An engine that has stopped looks nothing up any more.
        let _ = self.shared.commands.send(Command::ResetCache);
    }

    /// The latest published numbers; never waits for a step.
    pub fn stats(&self) -> EngineStats {
        let busy_since_ns = self.shared.pulse.busy_since_ns.load(Ordering::Relaxed);
        EngineStats { busy_since_ns, ..*self.shared.board.lock() }
    }

    /// The latest KV cache events, which are gone from the engine then; never waits for a step.
    pub fn drain_kv_events(&self) -> KvEventBatch {
        self.shared.events.drain()
    }

    /// `Ok`, or why the engine does not work any more.
    ///
    /// # Errors
    /// `Unavailable` with the failure of the executor.
    pub fn health(&self) -> Result<()> {
        self.shared.gate.health()
    }

    /// A view of [`Engine::health`].
    pub fn health_probe(&self) -> HealthProbe {
        HealthProbe(Arc::clone(&self.shared.gate))
    }

    /// The engine's monotonic clock, never 0: what deadlines are given in.
    pub fn now_ns(&self) -> u64 {
        now_ns(self.shared.origin)
    }

    /// Refuses new requests and waits until all accepted ones have ended. After `timeout` the rest ends with an error.
    /// Says whether all ended by themselves.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.shared.gate.close(Error::unavailable("the engine is draining and takes no new requests"));
        let (done, idle) = channel();
        if self.shared.commands.send(Command::WhenIdle(done)).is_err() {
            return true;
        }
        if idle.recv_timeout(timeout).is_ok() {
            return true;
        }
        let error = Error::unavailable(format!("the engine was drained: the request did not end within {timeout:?}"));
        // An engine that has stopped meanwhile has answered them.
        let _ = self.shared.commands.send(Command::Abort(error));
        false
    }

    /// Stops the engine after the step in progress and waits for its thread. Requests that have not ended get an error.
    pub fn shutdown(&self) {
        self.shared.stop();
    }
}

impl Shared {
    fn stop(&self) {
        self.gate.close(Error::unavailable("the engine is shut down"));
        // It may have stopped already.
        let _ = self.commands.send(Command::Stop);
        let Some(thread) = self.thread.lock().take() else { return };
        if self.gate.health().is_err() && self.pulse.busy_since_ns.load(Ordering::Relaxed) > 0 {
            tracing::error!("the engine thread hangs in a step and is left behind");
            return;
        }
        // A sink may own the last handle: then this is the engine thread, which cannot wait for itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the engine thread ended with a panic");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

struct EngineLoop {
    core: EngineCore,
    inbox: Receiver<Command>,
    origin: Instant,
    pulse: Arc<Pulse>,
    idle_waiters: Vec<Sender<()>>,
    /// The core has nothing to do before.
    put_off_ns: Option<u64>,
}

impl EngineLoop {
    /// Works while there is work, else sleeps until a command comes.
    fn run(mut self) {
        while self.take_commands() {
            let origin = self.origin;
            let now_ns = now_ns(origin);
            self.pulse.busy_since_ns.store(now_ns, Ordering::Relaxed);
            // A failure has answered everybody and is in `health`; the loop goes on to refuse what comes.
            let progress = self.core.step_by(&|| self::now_ns(origin));
            self.put_off_ns = match progress {
                Ok(Progress::Until(due_ns)) => Some(due_ns),
                _ => None,
            };
            self.pulse.busy_since_ns.store(0, Ordering::Relaxed);
        }
        self.core.abort(&Error::unavailable("the engine was shut down before the request ended"));
        let start = Instant::now();
        if !self.core.flush_disk(&|| start.elapsed() > FLUSH_TIMEOUT) && self.core.health().is_ok() {
            tracing::warn!("KV cache on disk: not all of the prefix cache could be stored within {FLUSH_TIMEOUT:?}");
        }
    }

    fn until(&self, due_ns: u64) -> Duration {
        Duration::from_nanos(due_ns.saturating_sub(now_ns(self.origin)))
    }

    /// Applies all commands that are there; waits for one when idle. False: stop.
    fn take_commands(&mut self) -> bool {
        loop {
            let command = if self.core.is_idle() {
                // A receiver that is gone does not wait any more.
                for waiter in self.idle_waiters.drain(..) {
                    let _ = waiter.send(());
                }
                match self.put_off_ns {
                    None => self.inbox.recv().ok(),
                    Some(due_ns) => match self.inbox.recv_timeout(self.until(due_ns)) {
                        Err(RecvTimeoutError::Timeout) => return true,
                        command => command.ok(),
                    },
                }
            } else {
                let pause = self.put_off_ns.take().map_or(Duration::ZERO, |due_ns| self.until(due_ns));
                match self.inbox.recv_timeout(pause) {
                    Ok(command) => Some(command),
                    Err(_) => return true,
                }
            };
            match command {
                None | Some(Command::Stop) => return false,
                Some(Command::Submit(submissions)) => {
                    self.put_off_ns = None;
                    submissions.into_iter().for_each(|one| self.core.accept(one));
                }
                Some(Command::Cancel(id)) => self.core.cancel(id),
                Some(Command::ResetCache) => self.core.reset_prefix_cache(),
                Some(Command::WhenIdle(waiter)) => self.idle_waiters.push(waiter),
                Some(Command::Abort(error)) => self.core.abort(&error),
            }
        }
    }
}

/// Longest time that is taken at the end to store on disk what is cached.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Notices that a step does not end. The engine thread cannot say so itself: it is the one that hangs. So the watchdog
/// closes the gate and answers every sink in its place; whatever the engine thread says later is not heard any more.
struct Watchdog {
    gate: Arc<Gate>,
    ledger: Arc<Ledger>,
    board: Arc<Mutex<EngineStats>>,
    pulse: Arc<Pulse>,
    origin: Instant,
    timeout: Duration,
}

impl Watchdog {
    /// Watches until the returned sender is dropped.
    fn start(self) -> Result<Sender<()>> {
        let (leash, released) = channel();
        thread::Builder::new()
            .name("engine-watchdog".into())
            .spawn(move || self.watch(&released))
            .map_err(|error| Error::internal(format!("cannot start the watchdog thread: {error}")))?;
        Ok(leash)
    }

    fn watch(&self, released: &Receiver<()>) {
        let period = (self.timeout / 8).clamp(Duration::from_millis(1), Duration::from_secs(1));
        while released.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
            let busy_since_ns = self.pulse.busy_since_ns.load(Ordering::Relaxed);
            let busy = Duration::from_nanos(now_ns(self.origin).saturating_sub(busy_since_ns));
            if busy_since_ns > 0 && busy > self.timeout {
                self.bark();
                return;
            }
        }
    }

    fn bark(&self) {
        let reason = format!("no step was completed for {:?} while there was work", self.timeout);
        tracing::error!(state = ?*self.board.lock(), "{reason}: the engine is off");
        self.gate.fail(Error::unavailable(format!("the engine has failed: {reason}")));
        self.ledger.answer_all(&reason);
    }
}

fn now_ns(origin: Instant) -> u64 {
    1 + u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX - 1)
}
