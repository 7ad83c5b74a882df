//! The functions of the server that this library imports. `triton_headers/` has their contracts.
#![allow(unused_unsafe, reason = "not every function of the macro reads through a pointer")]

use std::ffi::{CStr, c_char, c_void};

use serde_json::Value as Json;

use super::world::*;

const INTERNAL: u32 = 1;
const INVALID_ARG: u32 = 3;
const CPU: u32 = 0;
const FINAL: u32 = 1;

pub(super) type Text = *const c_char;

/// Why a call fails.
pub(super) enum Refusal {
    /// The server may say so.
    Error(String),
    /// The caller must never have asked.
    Violation(String),
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::Violation(text)
    }
}

pub(super) fn call(name: &'static str, body: impl FnOnce(&mut World) -> Result<(), Refusal>) -> Handle {
    let mut world = WORLD.lock();
    if let Some(index) = world.failures.iter().position(|(function, _)| *function == name) {
        let (_, message) = world.failures.remove(index);
        return world.errors.add((INTERNAL, c_string(&message)));
    }
    let message = match body(&mut world) {
        Ok(()) => return std::ptr::null_mut(),
        Err(Refusal::Error(message)) => message,
        Err(Refusal::Violation(message)) => {
            world.violations.push(format!("{name}: {message}"));
            message
        }
    };
    world.errors.add((INVALID_ARG, c_string(&message)))
}

pub(super) fn refuse<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Error(message.into()))
}

pub(super) fn violate<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Violation(message.into()))
}

/// # Safety
/// `text` is NUL-terminated.
pub(super) unsafe fn text(text: Text) -> Result<String, Refusal> {
    if text.is_null() {
        return violate("a text is null");
    }
    // SAFETY: the caller's premise.
    match unsafe { CStr::from_ptr(text) }.to_str() {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => violate(format!("a text is not UTF-8: {error}")),
    }
}

fn at<T>(items: &[T], index: u32) -> Result<&T, Refusal> {
    let count = items.len();
    items.get(index as usize).ok_or_else(|| Refusal::Violation(format!("index {index} of {count}")))
}

/// An open request's record; an answer to a closed one is what crashes the real server.
fn open(world: &mut World, record: usize) -> Result<&mut Record, Refusal> {
    if world.records[record].is_final {
        return violate("the request already has its FINAL");
    }
    Ok(&mut world.records[record])
}

macro_rules! export {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) |$world:ident| $body:block)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $type),*) -> Handle {
            call(stringify!($name), |$world| {
                // SAFETY: the library passes valid places for results and NUL-terminated texts, as the headers ask;
                // handles are looked up, never dereferenced.
                unsafe { $body }
                Ok(())
            })
        }
    )*};
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ErrorNew(code: u32, message: Text) -> Handle {
    // SAFETY: the message is NUL-terminated.
    let message = unsafe { CStr::from_ptr(message) }.to_owned();
    WORLD.lock().errors.add((code, message))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ErrorDelete(error: Handle) {
    let mut world = WORLD.lock();
    if let Err(text) = world.errors.remove(error) {
        world.violations.push(format!("TRITONSERVER_ErrorDelete: {text}"));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ErrorCode(error: Handle) -> u32 {
    WORLD.lock().errors.get(error).map_or(0, |error| error.0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ErrorMessage(error: Handle) -> Text {
    WORLD.lock().errors.get(error).map_or(c"the error is not alive".as_ptr(), |error| error.1.as_ptr())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_LogIsEnabled(level: u32) -> bool {
    const VERBOSE: u32 = 3;
    level < VERBOSE || WORLD.lock().verbose
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ParameterNew(name: Text, kind: u32, value: *const c_void) -> Handle {
    assert_eq!(kind, 0, "labels are strings");
    // SAFETY: name and string value are NUL-terminated.
    let pair = unsafe { (text(name), text(value.cast())) };
    match pair {
        (Ok(name), Ok(value)) => WORLD.lock().parameters.add((name, value)),
        _ => std::ptr::null_mut(),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ParameterDelete(parameter: Handle) {
    let mut world = WORLD.lock();
    if let Err(text) = world.parameters.remove(parameter) {
        world.violations.push(format!("TRITONSERVER_ParameterDelete: {text}"));
    }
}

export! {
    fn TRITONBACKEND_ModelServer(_model: Handle, server: *mut Handle) |_world| {
        *server = new_handle();
    }

    fn TRITONSERVER_LogMessage(level: u32, file: Text, _line: i32, message: Text) |world| {
        world.log.push((level, text(file)?, text(message)?));
    }

    fn TRITONSERVER_MessageNewFromSerializedJson(message: *mut Handle, base: Text, size: usize) |world| {
        let json = std::slice::from_raw_parts(base.cast::<u8>(), size);
        match serde_json::from_slice::<Json>(json) {
            Ok(json) => *message = world.messages.add(json.to_string()),
            Err(error) => return refuse(error.to_string()),
        }
    }

    fn TRITONSERVER_MessageDelete(message: Handle) |world| {
        world.messages.remove(message)?;
    }

    fn TRITONSERVER_MessageSerializeToJson(message: Handle, base: *mut Text, size: *mut usize) |world| {
        let json = world.messages.get(message)?;
        (*base, *size) = (json.as_ptr().cast(), json.len());
    }

    fn TRITONSERVER_MetricFamilyNew(family: *mut Handle, kind: u32, name: Text, help: Text) |world| {
        let (name, help) = (text(name)?, text(help)?);
        if world.families.iter().any(|family| family.name == name) {
            return violate(format!("family {name} exists"));
        }
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return refuse(format!("family name '{name}' is not valid"));
        }
        *family = world.families.add(FamilyObject { name, kind, help });
    }

    fn TRITONSERVER_MetricFamilyDelete(family: Handle) |world| {
        if world.metrics.iter().any(|metric| metric.family == family) {
            return violate("the family has metrics");
        }
        world.families.remove(family)?;
    }

    fn TRITONSERVER_MetricNew(metric: *mut Handle, family: Handle, labels: *const Handle, count: u64) |world| {
        *metric = add_metric(world, family, std::slice::from_raw_parts(labels, count as usize), vec![])?;
    }

    fn TRITONSERVER_MetricNewWithArgs(
        metric: *mut Handle, family: Handle, labels: *const Handle, count: u64, args: Handle,
    ) |world| {
        let bounds = world.metric_args.get(args)?.clone();
        *metric = add_metric(world, family, std::slice::from_raw_parts(labels, count as usize), bounds)?;
    }

    fn TRITONSERVER_MetricArgsNew(args: *mut Handle) |world| {
        *args = world.metric_args.add(Vec::new());
    }

    fn TRITONSERVER_MetricArgsDelete(args: Handle) |world| {
        world.metric_args.remove(args)?;
    }

    fn TRITONSERVER_MetricArgsSetHistogram(args: Handle, bounds: *const f64, count: u64) |world| {
        *world.metric_args.get(args)? = std::slice::from_raw_parts(bounds, count as usize).to_vec();
    }

    fn TRITONSERVER_MetricDelete(metric: Handle) |world| {
        world.metrics.remove(metric)?;
    }

    fn TRITONSERVER_MetricIncrement(metric: Handle, value: f64) |world| {
        let series = &mut world.metrics.get(metric)?.series;
        match series.kind {
            0 if value < 0.0 => return refuse("a counter does not go down"),
            0 | 1 => series.value += value,
            _ => return refuse("a histogram has no increment"),
        }
    }

    fn TRITONSERVER_MetricSet(metric: Handle, value: f64) |world| {
        let series = &mut world.metrics.get(metric)?.series;
        if series.kind != 1 {
            return refuse("only a gauge is set");
        }
        series.value = value;
    }

    fn TRITONSERVER_MetricObserve(metric: Handle, value: f64) |world| {
        let series = &mut world.metrics.get(metric)?.series;
        if series.kind != 2 {
            return refuse("only a histogram observes");
        }
        series.observations.push(value);
    }

    fn TRITONBACKEND_ApiVersion(major: *mut u32, minor: *mut u32) |world| {
        (*major, *minor) = world.api_version;
    }

    fn TRITONBACKEND_BackendName(backend: Handle, name: *mut Text) |world| {
        *name = world.backends.get(backend)?.name.as_ptr();
    }

    fn TRITONBACKEND_BackendConfig(backend: Handle, config: *mut Handle) |world| {
        *config = world.backends.get(backend)?.config;
    }

    fn TRITONBACKEND_BackendArtifacts(backend: Handle, kind: *mut u32, location: *mut Text) |world| {
        *kind = 0;
        *location = world.backends.get(backend)?.directory.as_ptr();
    }

    fn TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(
        attribute: Handle, kind: u32, count: u64, devices: *const u64, device_count: u64,
    ) |world| {
        let devices = match device_count {
            0 => vec![],
            count => std::slice::from_raw_parts(devices, count as usize).to_vec(),
        };
        world.attributes.get(attribute)?.push(Group { kind, count, devices });
    }

    fn TRITONBACKEND_ModelName(model: Handle, name: *mut Text) |world| {
        *name = world.models.get(model)?.name.as_ptr();
    }

    fn TRITONBACKEND_ModelVersion(model: Handle, version: *mut u64) |world| {
        *version = world.models.get(model)?.version;
    }

    fn TRITONBACKEND_ModelRepository(model: Handle, kind: *mut u32, location: *mut Text) |world| {
        *kind = 0;
        *location = world.models.get(model)?.repository.as_ptr();
    }

    fn TRITONBACKEND_ModelConfig(model: Handle, version: u32, config: *mut Handle) |world| {
        if version != 1 {
            return violate(format!("config version {version}"));
        }
        let json = world.models.get(model)?.config.to_string();
        *config = world.messages.add(json);
    }

    fn TRITONBACKEND_ModelAutoCompleteConfig(model: Handle, auto_complete: *mut bool) |world| {
        *auto_complete = world.models.get(model)?.auto_complete;
    }

    fn TRITONBACKEND_ModelSetConfig(model: Handle, version: u32, config: Handle) |world| {
        let json = world.messages.get(config)?.clone();
        let model = world.models.get(model)?;
        if version != 1 || !model.initializing {
            return violate("the config is set once the model is initialized");
        }
        model.config = serde_json::from_str(&json).expect("a message holds JSON");
    }

    fn TRITONBACKEND_ModelBackend(model: Handle, backend: *mut Handle) |world| {
        *backend = world.models.get(model)?.backend;
    }

    fn TRITONBACKEND_ModelState(model: Handle, state: *mut Handle) |world| {
        *state = std::ptr::with_exposed_provenance_mut(world.models.get(model)?.state);
    }

    fn TRITONBACKEND_ModelSetState(model: Handle, state: Handle) |world| {
        world.models.get(model)?.state = state.expose_provenance();
    }

    fn TRITONBACKEND_ModelInstanceName(instance: Handle, name: *mut Text) |world| {
        *name = world.instances.get(instance)?.name.as_ptr();
    }

    fn TRITONBACKEND_ModelInstanceKind(instance: Handle, kind: *mut u32) |world| {
        const MODEL: u32 = 3;
        world.instances.get(instance)?;
        *kind = MODEL;
    }

    fn TRITONBACKEND_ModelInstanceDeviceId(instance: Handle, device: *mut i32) |world| {
        world.instances.get(instance)?;
        *device = 0;
    }

    fn TRITONBACKEND_ModelInstanceModel(instance: Handle, model: *mut Handle) |world| {
        *model = world.instances.get(instance)?.model;
    }

    fn TRITONBACKEND_ModelInstanceState(instance: Handle, state: *mut Handle) |world| {
        *state = std::ptr::with_exposed_provenance_mut(world.instances.get(instance)?.state);
    }

    fn TRITONBACKEND_ModelInstanceSetState(instance: Handle, state: Handle) |world| {
        world.instances.get(instance)?.state = state.expose_provenance();
    }

    fn TRITONBACKEND_ModelInstanceReportStatistics(
        instance: Handle, request: Handle, success: bool, start: u64, compute_start: u64, compute_end: u64, end: u64,
    ) |world| {
        world.instances.get(instance)?;
        let request = world.requests.get(request)?;
        if request.instance != instance {
            return violate("the request is another instance's");
        }
        let record = request.record;
        let times_ns = [start, compute_start, compute_end, end];
        if start == 0 || !times_ns.is_sorted() {
            return violate(format!("times {times_ns:?} are not in order"));
        }
        world.records[record].statistics.push(Statistics { success, times_ns });
    }

    fn TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance: Handle, batch: u64, _start: u64, _compute_start: u64, _compute_end: u64, _end: u64,
    ) |world| {
        if batch != 1 {
            return violate(format!("batch size {batch}"));
        }
        world.instances.get(instance)?.executions += 1;
    }

    fn TRITONBACKEND_RequestId(request: Handle, id: *mut Text) |world| {
        *id = world.requests.get(request)?.id.as_ptr();
    }

    fn TRITONBACKEND_RequestCorrelationId(request: Handle, id: *mut u64) |world| {
        let request = world.requests.get(request)?;
        if request.correlation_text.is_some() {
            return refuse("the correlation id is a text");
        }
        *id = request.correlation_number;
    }

    fn TRITONBACKEND_RequestCorrelationIdString(request: Handle, id: *mut Text) |world| {
        match &world.requests.get(request)?.correlation_text {
            Some(text) => *id = text.as_ptr(),
            None => return refuse("the correlation id is a number"),
        }
    }

    fn TRITONBACKEND_RequestFlags(request: Handle, flags: *mut u32) |world| {
        *flags = world.requests.get(request)?.flags;
    }

    fn TRITONBACKEND_InferenceRequestTimeoutMicroseconds(request: Handle, timeout: *mut u64) |world| {
        *timeout = world.requests.get(request)?.timeout_us;
    }

    fn TRITONBACKEND_RequestParameterCount(request: Handle, count: *mut u32) |world| {
        *count = world.requests.get(request)?.parameters.len() as u32;
    }

    fn TRITONBACKEND_RequestParameter(
        request: Handle, index: u32, key: *mut Text, kind: *mut u32, value: *mut *const c_void,
    ) |world| {
        let (name, parameter) = at(&world.requests.get(request)?.parameters, index)?;
        *key = name.as_ptr();
        (*kind, *value) = match parameter {
            ParameterObject::Text(value) => (0, value.as_ptr().cast()),
            ParameterObject::Int(value) => (1, (&raw const **value).cast()),
            ParameterObject::Bool(value) => (2, (&raw const **value).cast()),
            ParameterObject::Double(value) => (3, (&raw const **value).cast()),
        };
    }

    fn TRITONBACKEND_RequestInputCount(request: Handle, count: *mut u32) |world| {
        *count = world.requests.get(request)?.inputs.len() as u32;
    }

    fn TRITONBACKEND_RequestInputByIndex(request: Handle, index: u32, input: *mut Handle) |world| {
        *input = *at(&world.requests.get(request)?.inputs, index)?;
    }

    fn TRITONBACKEND_RequestOutputCount(request: Handle, count: *mut u32) |world| {
        *count = world.requests.get(request)?.outputs.len() as u32;
    }

    fn TRITONBACKEND_RequestOutputName(request: Handle, index: u32, name: *mut Text) |world| {
        *name = at(&world.requests.get(request)?.outputs, index)?.as_ptr();
    }

    fn TRITONBACKEND_RequestRelease(request: Handle, flags: u32) |world| {
        const ALL: u32 = 1;
        let request = world.requests.remove(request)?;
        let has_final = world.records[request.record].is_final;
        world.close(request);
        if flags != ALL || !has_final {
            return violate(format!("released with flags {flags} and FINAL sent: {has_final}"));
        }
    }

    fn TRITONBACKEND_InputProperties(
        input: Handle, name: *mut Text, dtype: *mut u32, shape: *mut *const i64, rank: *mut u32, size: *mut u64,
        buffers: *mut u32,
    ) |world| {
        let input = world.inputs.get(input)?;
        *name = input.name.as_ptr();
        *dtype = input.dtype;
        (*shape, *rank) = (input.shape.as_ptr(), input.shape.len() as u32);
        *size = input.buffers.iter().map(|buffer| buffer.len() as u64).sum();
        *buffers = input.buffers.len() as u32;
    }

    fn TRITONBACKEND_InputBuffer(
        input: Handle, index: u32, base: *mut *const c_void, size: *mut u64, memory: *mut u32, device: *mut i64,
    ) |world| {
        let input = world.inputs.get(input)?;
        let buffer = at(&input.buffers, index)?;
        (*base, *size) = (buffer.as_ptr().cast(), buffer.len() as u64);
        (*memory, *device) = (input.memory as u32, 0);
    }

    fn TRITONBACKEND_ResponseFactoryNew(factory: *mut Handle, request: Handle) |world| {
        let request = world.requests.get(request)?;
        let object = FactoryObject { record: request.record, instance: request.instance };
        *factory = world.factories.add(object);
    }

    fn TRITONBACKEND_ResponseFactoryDelete(factory: Handle) |world| {
        world.factories.remove(factory)?;
        CHANGED.notify_all();
    }

    fn TRITONBACKEND_ResponseFactoryIsCancelled(factory: Handle, is_cancelled: *mut bool) |world| {
        let record = world.factories.get(factory)?.record;
        *is_cancelled = world.records[record].cancelled;
    }

    fn TRITONBACKEND_ResponseFactorySendFlags(factory: Handle, flags: u32) |world| {
        let record = world.factories.get(factory)?.record;
        open(world, record)?.is_final = flags & FINAL != 0;
        CHANGED.notify_all();
    }

    fn TRITONBACKEND_ResponseNew(response: *mut Handle, request: Handle) |world| {
        let request = world.requests.get(request)?;
        let (record, instance) = (request.record, request.instance);
        *response = add_response(world, record, instance)?;
    }

    fn TRITONBACKEND_ResponseNewFromFactory(response: *mut Handle, factory: Handle) |world| {
        let factory = world.factories.get(factory)?;
        let (record, instance) = (factory.record, factory.instance);
        *response = add_response(world, record, instance)?;
    }

    fn TRITONBACKEND_ResponseDelete(response: Handle) |world| {
        world.responses.remove(response)?;
    }

    fn TRITONBACKEND_ResponseSetStringParameter(response: Handle, name: Text, value: Text) |world| {
        world.responses.get(response)?.parameters.push((text(name)?, Value::Text(text(value)?)));
    }

    fn TRITONBACKEND_ResponseSetIntParameter(response: Handle, name: Text, value: i64) |world| {
        world.responses.get(response)?.parameters.push((text(name)?, Value::Int(value)));
    }

    fn TRITONBACKEND_ResponseSetBoolParameter(response: Handle, name: Text, value: bool) |world| {
        world.responses.get(response)?.parameters.push((text(name)?, Value::Bool(value)));
    }

    fn TRITONBACKEND_ResponseSetDoubleParameter(response: Handle, name: Text, value: f64) |world| {
        world.responses.get(response)?.parameters.push((text(name)?, Value::Double(value)));
    }

    fn TRITONBACKEND_ResponseOutput(
        response: Handle, output: *mut Handle, name: Text, dtype: u32, shape: *const i64, rank: u32,
    ) |world| {
        let shape = if rank == 0 { vec![] } else { std::slice::from_raw_parts(shape, rank as usize).to_vec() };
        let name = text(name)?;
        let instance = world.responses.get(response)?.instance;
        let is_declared = world.declares_output(instance, &name)?;
        let response = world.responses.get(response)?;
        if !is_declared {
            response.is_broken = true;
            return refuse(format!("unexpected inference output '{name}'"));
        }
        *output = new_handle();
        response.outputs.push((*output, Tensor { name, dtype, shape, bytes: vec![] }));
    }

    fn TRITONBACKEND_OutputBuffer(
        output: Handle, base: *mut *mut c_void, size: u64, memory: *mut u32, device: *mut i64,
    ) |world| {
        let mut outputs = world.responses.iter_mut().flat_map(|response| &mut response.outputs);
        let Some((_, tensor)) = outputs.find(|(handle, _)| *handle == output) else {
            return violate("the output is not alive");
        };
        tensor.bytes = vec![0xaa; size as usize];
        *base = tensor.bytes.as_mut_ptr().cast();
        (*memory, *device) = (CPU, 0);
    }

    fn TRITONBACKEND_ResponseSend(response: Handle, flags: u32, error: Handle) |world| {
        let response = world.responses.remove(response)?;
        let error = if error.is_null() { None } else { Some(world.errors.get(error)?.clone()) };
        let error = error.map(|(code, text)| Failure { code, message: text.to_string_lossy().into_owned() });
        if response.is_broken {
            return violate("the response had a failed output");
        }
        let outputs = response.outputs.into_iter().map(|(_, tensor)| tensor).collect();
        let is_final = flags & FINAL != 0;
        let record = open(world, response.record)?;
        record.is_final = is_final;
        record.replies.push(Reply { outputs, parameters: response.parameters, error, is_final });
        CHANGED.notify_all();
    }
}

fn add_response(world: &mut World, record: usize, instance: Handle) -> Result<Handle, Refusal> {
    open(world, record)?;
    let object = ResponseObject { record, instance, outputs: vec![], parameters: vec![], is_broken: false };
    Ok(world.responses.add(object))
}

fn add_metric(world: &mut World, family: Handle, labels: &[Handle], bounds: Vec<f64>) -> Result<Handle, Refusal> {
    let mut pairs = std::collections::BTreeMap::new();
    for &label in labels {
        let (name, value) = world.parameters.get(label)?.clone();
        pairs.insert(name, value);
    }
    let object = world.families.get(family)?;
    let series = Series {
        family: object.name.clone(),
        kind: object.kind,
        help: object.help.clone(),
        labels: pairs,
        value: 0.0,
        bounds,
        observations: vec![],
    };
    Ok(world.metrics.add(MetricObject { family, series }))
}
