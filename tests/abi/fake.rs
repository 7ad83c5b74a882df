//! A stand-in for the Triton server: defines the `TRITON*` functions that this library imports and calls its entry
//! points the way the server does. Every handle is counted; a use of a dead handle, a second FINAL and every other break
//! of the ABI's rules is a violation, which [`Server`] asserts against at its end.
//!
//! An executable that reaches `src/triton` has to define these functions, so a test brings them in with
//! `#[path = "abi/fake.rs"] mod fake;`. One [`Server`] lives at a time; tests of one executable take turns.
#![allow(dead_code, unused_imports, reason = "each test executable uses a part of it")]

#[macro_use]
mod exports;
mod server_api;
mod world;

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use world::{CHANGED, Handle, InstanceObject, ModelObject, WORLD, World};
pub use world::{Failure, Group, Reply, Series, Statistics, Tensor, Value as ParameterValue, dtype};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

static TURN: Mutex<()> = Mutex::new(());

unsafe extern "C" {
    fn TRITONBACKEND_Initialize(backend: Handle) -> Handle;
    fn TRITONBACKEND_Finalize(backend: Handle) -> Handle;
    fn TRITONBACKEND_GetBackendAttribute(backend: Handle, attribute: Handle) -> Handle;
    fn TRITONBACKEND_ModelInitialize(model: Handle) -> Handle;
    fn TRITONBACKEND_ModelFinalize(model: Handle) -> Handle;
    fn TRITONBACKEND_ModelInstanceInitialize(instance: Handle) -> Handle;
    fn TRITONBACKEND_ModelInstanceFinalize(instance: Handle) -> Handle;
    fn TRITONBACKEND_ModelInstanceExecute(instance: Handle, requests: *mut Handle, count: u32) -> Handle;
    fn TRITONBACKEND_ModelInstanceReady(instance: Handle) -> Handle;
}

/// A running server with this backend initialized. Its drop stops it and asserts that nothing leaked.
pub struct Server {
    backend: Handle,
    _turn: MutexGuard<'static, ()>,
}

/// What to load.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    pub name: String,
    pub version: u64,
    pub config: Value,
    pub repository: PathBuf,
    pub auto_complete: bool,
    pub instances: usize,
}

/// A loaded model with its instances; unloaded when dropped.
pub struct LoadedModel<'a> {
    _server: &'a Server,
    model: Handle,
    instances: Vec<Handle>,
}

/// A request to send.
#[derive(Clone, Debug, Default)]
pub struct RequestSpec {
    pub id: String,
    pub inputs: Vec<InputSpec>,
    pub outputs: Vec<String>,
    pub parameters: Vec<(String, ParameterValue)>,
    pub correlation_number: u64,
    pub correlation_text: Option<String>,
    pub flags: u32,
    pub timeout_us: u64,
    pub cancelled: bool,
}

/// An input tensor and how the server holds it.
#[derive(Clone, Debug)]
pub struct InputSpec {
    pub tensor: Tensor,
    /// The sizes of all buffers but the last.
    pub pieces: Vec<usize>,
    /// Where it says that the buffers are.
    pub memory: MemoryKind,
}

/// Triton's kinds of memory, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    Cpu = 0,
    Pinned = 1,
    Gpu = 2,
}

/// The test's end of a request.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(usize);

impl Server {
    /// Starts a server and initializes the backend.
    pub fn start() -> Self {
        Self::try_start((1, 19)).unwrap_or_else(|failure| panic!("TRITONBACKEND_Initialize: {failure:?}"))
    }

    /// As [`Server::start`], with a backend API version.
    pub fn try_start(api_version: (u32, u32)) -> Result<Self, Failure> {
        let turn = TURN.lock();
        let backend = {
            let mut world = WORLD.lock();
            *world = World::new(api_version);
            world.add_backend()
        };
        let server = Self { backend, _turn: turn };
        // SAFETY: the handle is one of ours.
        outcome(unsafe { TRITONBACKEND_Initialize(backend) })?;
        Ok(server)
    }

    /// The instance groups that the backend prefers.
    pub fn preferred_groups(&self) -> Vec<Group> {
        let attribute = WORLD.lock().add_attribute();
        // SAFETY: the handles are ours.
        let result = outcome(unsafe { TRITONBACKEND_GetBackendAttribute(self.backend, attribute) });
        let groups = WORLD.lock().take_attribute(attribute);
        result.unwrap_or_else(|failure| panic!("TRITONBACKEND_GetBackendAttribute: {failure:?}"));
        groups
    }

    /// Loads a model and its instances; a failed load is finalized as the server does it.
    pub fn load(&self, spec: ModelSpec) -> Result<LoadedModel<'_>, Failure> {
        let model = WORLD.lock().models.add(ModelObject::new(&spec, self.backend));
        let mut loaded = LoadedModel { _server: self, model, instances: Vec::new() };
        // SAFETY: the handle is one of ours.
        let result = outcome(unsafe { TRITONBACKEND_ModelInitialize(model) });
        WORLD.lock().models.update(model, |model| model.initializing = false);
        result?;
        for index in 0..spec.instances {
            let name = format!("{}_0_{index}", spec.name);
            loaded.instances.push(WORLD.lock().instances.add(InstanceObject::new(&name, model)));
            // SAFETY: the handle is one of ours.
            outcome(unsafe { TRITONBACKEND_ModelInstanceInitialize(loaded.instances[index]) })?;
        }
        if let Some(&first) = loaded.instances.first() {
            WORLD.lock().served.insert(spec.name.clone(), first);
        }
        Ok(loaded)
    }

    /// Lets the next call of `function` fail with an INTERNAL error of this text.
    pub fn fail_next(&self, function: &'static str, message: &str) {
        WORLD.lock().failures.push((function, message.to_owned()));
    }

    /// Turns verbose logging on or off.
    pub fn set_verbose(&self, verbose: bool) {
        WORLD.lock().verbose = verbose;
    }

    /// The log so far: Triton's level number, file and text.
    pub fn log(&self) -> Vec<(u32, String, String)> {
        WORLD.lock().log.clone()
    }

    /// All metrics that exist.
    pub fn metrics(&self) -> Vec<Series> {
        WORLD.lock().series()
    }

    /// The one series of `family` that has all of `labels`.
    pub fn metric(&self, family: &str, labels: &[(&str, &str)]) -> Option<Series> {
        let has = |series: &Series, (key, value): &(&str, &str)| series.labels.get(*key).is_some_and(|v| v == value);
        let mut series = self.metrics();
        series.retain(|series| series.family == family && labels.iter().all(|label| has(series, label)));
        assert!(series.len() <= 1, "{} series of {family} have {labels:?}", series.len());
        series.pop()
    }

    /// How many metric families exist.
    pub fn family_count(&self) -> usize {
        WORLD.lock().families.len()
    }

    /// Takes the violations so far, for tests that provoke them.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut WORLD.lock().violations)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: the handle is one of ours.
        let finalized = outcome(unsafe { TRITONBACKEND_Finalize(self.backend) });
        server_api::join();
        let mut world = WORLD.lock();
        world.remove_backend(self.backend);
        if !std::thread::panicking() {
            finalized.unwrap_or_else(|failure| panic!("TRITONBACKEND_Finalize: {failure:?}"));
            assert!(world.violations.is_empty(), "the ABI was violated: {:#?}", world.violations);
            assert_eq!(world.leaks(), Vec::<String>::new(), "handles were leaked");
        }
    }
}

impl ModelSpec {
    /// A model with this config and one instance of KIND_MODEL.
    pub fn new(name: &str, config: Value, repository: impl AsRef<Path>) -> Self {
        Self {
            name: name.to_owned(),
            version: 1,
            config,
            repository: repository.as_ref().to_owned(),
            auto_complete: false,
            instances: 1,
        }
    }

    /// A model whose config has only these parameters.
    pub fn with_parameters(name: &str, parameters: &[(&str, &str)]) -> Self {
        let parameters: Value =
            parameters.iter().map(|(key, value)| (key.to_string(), json!({ "string_value": value }))).collect();
        Self::new(name, json!({ "name": name, "backend": "trtllm", "parameters": parameters }), "/nonexistent")
    }

    pub fn auto_complete(mut self) -> Self {
        self.auto_complete = true;
        self
    }

    pub fn instances(mut self, count: usize) -> Self {
        self.instances = count;
        self
    }
}

impl LoadedModel<'_> {
    /// Hands requests to the first instance in one call.
    pub fn execute(&self, requests: Vec<RequestSpec>) -> Vec<Ticket> {
        self.execute_on(0, requests)
    }

    /// Hands requests to one instance in one call. If the call fails, the server answers them all with its error.
    pub fn execute_on(&self, instance: usize, requests: Vec<RequestSpec>) -> Vec<Ticket> {
        let instance = self.instances[instance];
        let added: Vec<(Handle, usize)> =
            requests.into_iter().map(|request| WORLD.lock().add_request(request, instance)).collect();
        let mut handles: Vec<Handle> = added.iter().map(|(handle, _)| *handle).collect();
        // SAFETY: the handles are ours, and the array has as many.
        let result = outcome(unsafe {
            TRITONBACKEND_ModelInstanceExecute(instance, handles.as_mut_ptr(), handles.len() as u32)
        });
        let taken = handles.clone();
        handles.fill(ptr::null_mut());
        if let Err(failure) = result {
            taken.into_iter().for_each(|request| WORLD.lock().answer(request, &failure));
        }
        added.into_iter().map(|(_, record)| Ticket(record)).collect()
    }

    /// Sends one request and waits for its end.
    pub fn infer(&self, request: RequestSpec) -> Vec<Reply> {
        self.execute(vec![request])[0].wait()
    }

    /// What ModelInstanceReady of the first instance says.
    pub fn ready(&self) -> Result<(), Failure> {
        // SAFETY: the handle is one of ours.
        outcome(unsafe { TRITONBACKEND_ModelInstanceReady(self.instances[0]) })
    }

    /// Runs `body` while the first instance has no state.
    pub fn without_state(&self, body: impl FnOnce(&Self)) {
        let exchange = |state| {
            let swap = |instance: &mut InstanceObject| std::mem::replace(&mut instance.state, state);
            WORLD.lock().instances.update(self.instances[0], swap).expect("a loaded instance is alive")
        };
        let state = exchange(0);
        body(self);
        exchange(state);
    }

    /// The config as it is now.
    pub fn config(&self) -> Value {
        WORLD.lock().models.update(self.model, |model| model.config.clone()).expect("a loaded model is alive")
    }

    /// How many executions of batch size 1 were reported.
    pub fn execution_count(&self) -> usize {
        let count = |&instance| WORLD.lock().instances.update(instance, |instance| instance.executions);
        self.instances.iter().filter_map(count).sum()
    }
}

impl Drop for LoadedModel<'_> {
    /// The server unloads after the last request and factory of the model are gone.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let mut world = WORLD.lock();
            while world.is_busy(&self.instances) {
                let waited = CHANGED.wait_for(&mut world, PATIENCE);
                assert!(!waited.timed_out(), "unload waits for requests that never end");
            }
        }
        WORLD.lock().served.retain(|_, instance| !self.instances.contains(instance));
        for &instance in &self.instances {
            // SAFETY: the handle is one of ours.
            let finalized = outcome(unsafe { TRITONBACKEND_ModelInstanceFinalize(instance) });
            WORLD.lock().remove_instance(instance, finalized);
        }
        // SAFETY: the handle is one of ours.
        let finalized = outcome(unsafe { TRITONBACKEND_ModelFinalize(self.model) });
        WORLD.lock().remove_model(self.model, finalized);
    }
}

impl RequestSpec {
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned(), ..Self::default() }
    }

    /// Adds an input in one piece of host memory.
    pub fn input(mut self, tensor: Tensor) -> Self {
        self.inputs.push(InputSpec { tensor, pieces: Vec::new(), memory: MemoryKind::Cpu });
        self
    }

    /// Asks for an output.
    pub fn output(mut self, name: &str) -> Self {
        self.outputs.push(name.to_owned());
        self
    }

    pub fn parameter(mut self, name: &str, value: ParameterValue) -> Self {
        self.parameters.push((name.to_owned(), value));
        self
    }
}

impl Ticket {
    /// Waits until the request was answered with FINAL and released; all of its responses.
    pub fn wait(self) -> Vec<Reply> {
        let mut world = WORLD.lock();
        while !world.records[self.0].is_closed() {
            let waited = CHANGED.wait_for(&mut world, PATIENCE);
            assert!(!waited.timed_out(), "no end after {PATIENCE:?}: {:?}", world.records[self.0]);
        }
        world.records[self.0].replies.clone()
    }

    /// Waits for `count` responses or the end.
    pub fn wait_for(self, count: usize) -> Vec<Reply> {
        let mut world = WORLD.lock();
        while world.records[self.0].replies.len() < count && !world.records[self.0].is_closed() {
            let waited = CHANGED.wait_for(&mut world, PATIENCE);
            assert!(!waited.timed_out(), "no {count} responses after {PATIENCE:?}: {:?}", world.records[self.0]);
        }
        world.records[self.0].replies.clone()
    }

    /// The responses so far.
    pub fn replies(self) -> Vec<Reply> {
        WORLD.lock().records[self.0].replies.clone()
    }

    /// Lets the client go away.
    pub fn cancel(self) {
        WORLD.lock().records[self.0].cancelled = true;
    }

    /// The statistics that were reported for the request.
    pub fn statistics(self) -> Vec<Statistics> {
        WORLD.lock().records[self.0].statistics.clone()
    }
}

/// Takes over the error that an entry point returned.
fn outcome(error: *mut c_void) -> Result<(), Failure> {
    if error.is_null() { Ok(()) } else { Err(WORLD.lock().take_error(error)) }
}
