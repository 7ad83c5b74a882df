//! The state of the stand-in server: every object behind a handle, and what is observed about them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};

use parking_lot::{Condvar, Mutex};
use serde_json::json;

use super::server_api::{AllocatorObject, InnerRequest, InnerResponse};
use super::{InputSpec, MemoryKind, ModelSpec, RequestSpec};

/// A number in a pointer's clothes: never dereferenced, so a dead one is harmless.
pub type Handle = *mut c_void;

pub static WORLD: std::sync::LazyLock<Mutex<World>> = std::sync::LazyLock::new(|| Mutex::new(World::new((1, 19))));

/// Signalled when a request gets a response or ends.
pub static CHANGED: Condvar = Condvar::new();

/// Triton's data type numbers.
pub mod dtype {
    pub const BOOL: u32 = 1;
    pub const UINT32: u32 = 4;
    pub const UINT64: u32 = 5;
    pub const INT32: u32 = 8;
    pub const INT64: u32 = 9;
    pub const FP16: u32 = 10;
    pub const FP32: u32 = 11;
    pub const FP64: u32 = 12;
    pub const BYTES: u32 = 13;
    pub const BF16: u32 = 14;

    /// As a configuration spells it.
    pub fn config_name(dtype: u32) -> &'static str {
        let names = [
            "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
            "FP32", "FP64", "STRING", "BF16",
        ];
        names[dtype as usize]
    }
}

/// A Triton error: its code number and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u32,
    pub message: String,
}

/// A tensor of a request or a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dtype: u32,
    pub shape: Vec<i64>,
    pub bytes: Vec<u8>,
}

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Int(i64),
    Bool(bool),
    Double(f64),
}

/// One response.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub outputs: Vec<Tensor>,
    pub parameters: Vec<(String, Value)>,
    pub error: Option<Failure>,
    pub is_final: bool,
}

/// A statistics report of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    pub success: bool,
    /// Start, compute start, compute end, end; CLOCK_MONOTONIC.
    pub times_ns: [u64; 4],
}

/// A preferred instance group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub kind: u32,
    pub count: u64,
    pub devices: Vec<u64>,
}

/// A metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub family: String,
    /// 0 counter, 1 gauge, 2 histogram.
    pub kind: u32,
    pub help: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
    pub bounds: Vec<f64>,
    pub observations: Vec<f64>,
}

/// Live objects of one kind.
pub struct Table<T> {
    kind: &'static str,
    live: HashMap<usize, T>,
}

pub struct World {
    pub api_version: (u32, u32),
    pub errors: Table<(u32, CString)>,
    pub messages: Table<String>,
    pub parameters: Table<(String, String)>,
    pub backends: Table<BackendObject>,
    pub attributes: Table<Vec<Group>>,
    pub models: Table<ModelObject>,
    pub instances: Table<InstanceObject>,
    pub requests: Table<RequestObject>,
    pub inputs: Table<InputObject>,
    pub factories: Table<FactoryObject>,
    pub responses: Table<ResponseObject>,
    pub families: Table<FamilyObject>,
    pub metrics: Table<MetricObject>,
    pub metric_args: Table<Vec<f64>>,
    pub allocators: Table<AllocatorObject>,
    pub inner_requests: Table<InnerRequest>,
    pub inner_responses: Table<InnerResponse>,
    /// The first instance of each loaded model, for requests from within.
    pub served: HashMap<String, Handle>,
    pub records: Vec<Record>,
    pub violations: Vec<String>,
    pub failures: Vec<(&'static str, String)>,
    pub verbose: bool,
    pub log: Vec<(u32, String, String)>,
}

// SAFETY: handles are numbers that nothing dereferences.
unsafe impl Send for World {}

pub struct BackendObject {
    pub name: CString,
    pub config: Handle,
    pub directory: CString,
}

pub struct ModelObject {
    pub name: CString,
    pub version: u64,
    pub repository: CString,
    pub config: serde_json::Value,
    pub auto_complete: bool,
    pub initializing: bool,
    pub backend: Handle,
    pub state: usize,
}

pub struct InstanceObject {
    pub name: CString,
    pub model: Handle,
    pub state: usize,
    pub executions: usize,
}

pub struct RequestObject {
    pub record: usize,
    pub instance: Handle,
    pub id: CString,
    pub correlation_number: u64,
    pub correlation_text: Option<CString>,
    pub flags: u32,
    pub timeout_us: u64,
    pub parameters: Vec<(CString, ParameterObject)>,
    pub inputs: Vec<Handle>,
    pub outputs: Vec<CString>,
}

pub enum ParameterObject {
    Text(CString),
    Int(Box<i64>),
    Bool(Box<bool>),
    Double(Box<f64>),
}

pub struct InputObject {
    pub name: CString,
    pub dtype: u32,
    pub shape: Vec<i64>,
    pub buffers: Vec<Vec<u8>>,
    pub memory: MemoryKind,
}

pub struct FactoryObject {
    pub record: usize,
    pub instance: Handle,
}

pub struct ResponseObject {
    pub record: usize,
    pub instance: Handle,
    /// With a handle each, for the call that asks for the buffer.
    pub outputs: Vec<(Handle, Tensor)>,
    pub parameters: Vec<(String, Value)>,
    pub is_broken: bool,
}

pub struct FamilyObject {
    pub name: String,
    pub kind: u32,
    pub help: String,
}

pub struct MetricObject {
    pub family: Handle,
    pub series: Series,
}

/// What became of one request.
#[derive(Debug, Default)]
pub struct Record {
    pub replies: Vec<Reply>,
    pub is_final: bool,
    pub is_released: bool,
    pub cancelled: bool,
    pub statistics: Vec<Statistics>,
}

impl Record {
    pub fn is_closed(&self) -> bool {
        self.is_final && self.is_released
    }
}

impl<T> Table<T> {
    fn new(kind: &'static str) -> Self {
        Self { kind, live: HashMap::new() }
    }

    pub fn add(&mut self, object: T) -> Handle {
        let handle = new_handle();
        self.live.insert(handle as usize, object);
        handle
    }

    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn get(&mut self, handle: Handle) -> Result<&mut T, String> {
        self.live.get_mut(&(handle as usize)).ok_or_else(|| format!("{} {handle:?} is not alive", self.kind))
    }

    pub fn remove(&mut self, handle: Handle) -> Result<T, String> {
        self.live.remove(&(handle as usize)).ok_or_else(|| format!("{} {handle:?} is not alive", self.kind))
    }

    pub fn update<R>(&mut self, handle: Handle, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.live.get_mut(&(handle as usize)).map(change)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.live.values_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.live.values()
    }

    fn leak(&self) -> Option<String> {
        (!self.live.is_empty()).then(|| format!("{} × {}", self.live.len(), self.kind))
    }
}

/// Unique in the process, so that a handle of an earlier server is dead in a later one.
pub fn new_handle() -> Handle {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0x1000);
    std::ptr::without_provenance_mut(NEXT.fetch_add(0x10, std::sync::atomic::Ordering::Relaxed))
}

impl World {
    pub fn new(api_version: (u32, u32)) -> Self {
        Self {
            api_version,
            errors: Table::new("error"),
            messages: Table::new("message"),
            parameters: Table::new("parameter"),
            backends: Table::new("backend"),
            attributes: Table::new("backend attribute"),
            models: Table::new("model"),
            instances: Table::new("instance"),
            requests: Table::new("request"),
            inputs: Table::new("input"),
            factories: Table::new("response factory"),
            responses: Table::new("response"),
            families: Table::new("metric family"),
            metrics: Table::new("metric"),
            metric_args: Table::new("metric args"),
            allocators: Table::new("response allocator"),
            inner_requests: Table::new("request of a model"),
            inner_responses: Table::new("response to a model"),
            served: HashMap::new(),
            records: Vec::new(),
            violations: Vec::new(),
            failures: Vec::new(),
            verbose: false,
            log: Vec::new(),
        }
    }

    pub fn add_backend(&mut self) -> Handle {
        let config = json!({ "cmdline": { "auto-complete-config": "true", "default-max-batch-size": "4" } });
        let config = self.messages.add(config.to_string());
        let directory = CString::new("/opt/tritonserver/backends/trtllm").unwrap();
        self.backends.add(BackendObject { name: CString::new("trtllm").unwrap(), config, directory })
    }

    pub fn remove_backend(&mut self, backend: Handle) {
        let backend = self.backends.remove(backend).expect("a backend lives until its server ends");
        if self.messages.remove(backend.config).is_err() {
            self.violations.push("the backend config was deleted, which is the server's".into());
        }
    }

    pub fn add_attribute(&mut self) -> Handle {
        self.attributes.add(Vec::new())
    }

    pub fn take_attribute(&mut self, attribute: Handle) -> Vec<Group> {
        self.attributes.remove(attribute).expect("made by the caller")
    }

    pub fn add_request(&mut self, spec: RequestSpec, instance: Handle) -> (Handle, usize) {
        let record = self.records.len();
        self.records.push(Record { cancelled: spec.cancelled, ..Record::default() });
        let inputs = spec.inputs.into_iter().map(|input| self.inputs.add(InputObject::new(input))).collect();
        let request = RequestObject {
            record,
            instance,
            id: c_string(&spec.id),
            correlation_number: spec.correlation_number,
            correlation_text: spec.correlation_text.as_deref().map(c_string),
            flags: spec.flags,
            timeout_us: spec.timeout_us,
            parameters: spec.parameters.iter().map(|(key, value)| (c_string(key), value.into())).collect(),
            inputs,
            outputs: spec.outputs.iter().map(|name| c_string(name)).collect(),
        };
        (self.requests.add(request), record)
    }

    /// Answers and ends a request that the backend refused.
    pub fn answer(&mut self, request: Handle, failure: &Failure) {
        match self.requests.remove(request) {
            Ok(request) => {
                let record = request.record;
                self.close(request);
                let reply = Reply { outputs: vec![], parameters: vec![], error: Some(failure.clone()), is_final: true };
                self.records[record].replies.push(reply);
                self.records[record].is_final = true;
            }
            Err(text) => self.violations.push(format!("Execute returned an error, yet {text}")),
        }
    }

    /// The end of a request object.
    pub fn close(&mut self, request: RequestObject) {
        for input in request.inputs {
            self.inputs.remove(input).expect("inputs live as long as their request");
        }
        self.records[request.record].is_released = true;
        CHANGED.notify_all();
    }

    pub fn is_busy(&self, instances: &[Handle]) -> bool {
        let mut users = self.requests.iter().map(|request| request.instance);
        users.any(|instance| instances.contains(&instance))
            || self.factories.iter().any(|factory| instances.contains(&factory.instance))
    }

    pub fn remove_instance(&mut self, instance: Handle, finalized: Result<(), Failure>) {
        let instance = self.instances.remove(instance).expect("an instance lives until it is unloaded");
        self.expect_finalized("instance", &instance.name, instance.state, finalized);
    }

    pub fn remove_model(&mut self, model: Handle, finalized: Result<(), Failure>) {
        let model = self.models.remove(model).expect("a model lives until it is unloaded");
        self.expect_finalized("model", &model.name, model.state, finalized);
    }

    fn expect_finalized(&mut self, kind: &str, name: &CString, state: usize, finalized: Result<(), Failure>) {
        if state != 0 {
            self.violations.push(format!("{kind} {name:?} still has a state after its finalization"));
        }
        if let Err(failure) = finalized {
            self.violations.push(format!("finalizing {kind} {name:?}: {failure:?}"));
        }
    }

    /// Whether the config of the instance's model lists the output; a config without outputs takes any.
    pub fn declares_output(&mut self, instance: Handle, name: &str) -> Result<bool, String> {
        let model = self.instances.get(instance)?.model;
        let outputs = self.models.get(model)?.config["output"].as_array();
        Ok(outputs.is_none_or(|outputs| outputs.iter().any(|output| output["name"] == name)))
    }

    pub fn take_error(&mut self, error: Handle) -> Failure {
        let (code, message) = self.errors.remove(error).expect("an entry point returned an error that is not alive");
        Failure { code, message: message.into_string().expect("made from a C string") }
    }

    pub fn series(&self) -> Vec<Series> {
        self.metrics.iter().map(|metric| metric.series.clone()).collect()
    }

    pub fn leaks(&self) -> Vec<String> {
        let tables = [
            self.errors.leak(),
            self.messages.leak(),
            self.parameters.leak(),
            self.models.leak(),
            self.instances.leak(),
            self.requests.leak(),
            self.inputs.leak(),
            self.factories.leak(),
            self.responses.leak(),
            self.families.leak(),
            self.metrics.leak(),
            self.metric_args.leak(),
            self.allocators.leak(),
            self.inner_requests.leak(),
            self.inner_responses.leak(),
        ];
        tables.into_iter().flatten().collect()
    }
}

impl ModelObject {
    pub fn new(spec: &ModelSpec, backend: Handle) -> Self {
        Self {
            name: c_string(&spec.name),
            version: spec.version,
            repository: c_string(spec.repository.to_str().expect("test paths are UTF-8")),
            config: spec.config.clone(),
            auto_complete: spec.auto_complete,
            initializing: true,
            backend,
            state: 0,
        }
    }
}

impl InstanceObject {
    pub fn new(name: &str, model: Handle) -> Self {
        Self { name: c_string(name), model, state: 0, executions: 0 }
    }
}

impl InputObject {
    fn new(spec: InputSpec) -> Self {
        let mut rest = spec.tensor.bytes;
        let mut buffers = Vec::new();
        for size in spec.pieces {
            let tail = rest.split_off(size);
            buffers.push(std::mem::replace(&mut rest, tail));
        }
        buffers.push(rest);
        let Tensor { name, dtype, shape, .. } = spec.tensor;
        Self { name: c_string(&name), dtype, shape, buffers, memory: spec.memory }
    }
}

impl From<&Value> for ParameterObject {
    fn from(value: &Value) -> Self {
        match value {
            Value::Text(text) => Self::Text(c_string(text)),
            Value::Int(value) => Self::Int(Box::new(*value)),
            Value::Bool(value) => Self::Bool(Box::new(*value)),
            Value::Double(value) => Self::Double(Box::new(*value)),
        }
    }
}

impl Tensor {
    pub fn new(name: &str, dtype: u32, shape: &[i64], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    pub fn int32(name: &str, shape: &[i64], values: &[i32]) -> Self {
        Self::new(name, dtype::INT32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn uint64(name: &str, shape: &[i64], values: &[u64]) -> Self {
        Self::new(name, dtype::UINT64, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn fp32(name: &str, shape: &[i64], values: &[f32]) -> Self {
        Self::new(name, dtype::FP32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn bools(name: &str, shape: &[i64], values: &[bool]) -> Self {
        Self::new(name, dtype::BOOL, shape, values.iter().map(|&value| value.into()).collect())
    }

    pub fn strings(name: &str, shape: &[i64], values: &[&str]) -> Self {
        let element = |text: &&str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        Self::new(name, dtype::BYTES, shape, values.iter().flat_map(element).collect())
    }

    pub fn to_int32(&self) -> Vec<i32> {
        assert_eq!(self.dtype, dtype::INT32, "data type of {}", self.name);
        self.bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
    }

    pub fn to_fp32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, dtype::FP32, "data type of {}", self.name);
        self.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    pub fn to_strings(&self) -> Vec<String> {
        assert_eq!(self.dtype, dtype::BYTES, "data type of {}", self.name);
        let (mut rest, mut texts) = (&self.bytes[..], Vec::new());
        while let Some((length, tail)) = rest.split_first_chunk() {
            let (text, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
            texts.push(String::from_utf8(text.to_vec()).expect("the text is UTF-8"));
            rest = tail;
        }
        texts
    }
}

impl Reply {
    /// The output called `name`.
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        self.outputs.iter().find(|output| output.name == name)
    }
}

pub fn c_string(text: &str) -> CString {
    CString::new(text).expect("test strings have no NUL")
}
