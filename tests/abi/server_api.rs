//! Requests from one model to another of the stand-in, in its process: what `TRITONSERVER_*` functions the library uses
//! for that. Each request has a thread, as the answers of the real server come from threads of other models.
#![allow(unused_unsafe, reason = "not every function of the macro reads through a pointer")]

use std::ffi::{c_char, c_void};
use std::ptr;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::exports::{Refusal, Text, call, refuse, text, violate};
use super::world::*;
use super::{InputSpec, MemoryKind, RequestSpec, TRITONBACKEND_ModelInstanceExecute, outcome};

const FINAL: u32 = 1;
const RELEASE_ALL: u32 = 1;

type Allocate = unsafe extern "C" fn(
    Handle,
    Text,
    usize,
    u32,
    i64,
    Handle,
    *mut *mut c_void,
    *mut *mut c_void,
    *mut u32,
    *mut i64,
) -> Handle;
type Deallocate = unsafe extern "C" fn(Handle, *mut c_void, *mut c_void, usize, u32, i64) -> Handle;
type Callback = unsafe extern "C" fn(Handle, u32, *mut c_void);

#[derive(Clone, Copy)]
pub struct AllocatorObject {
    allocate: Allocate,
    deallocate: Deallocate,
}

/// A request to a model, from its making to its deletion by whoever made it.
pub struct InnerRequest {
    instance: Handle,
    spec: RequestSpec,
    release: Option<(Callback, Handle)>,
    complete: Option<(Callback, Handle, Handle)>,
    /// What became of it, once it was sent.
    record: Option<usize>,
    is_released: bool,
}

/// An answer, until whoever got it deletes it.
pub struct InnerResponse {
    error: Handle,
    outputs: Vec<InnerOutput>,
    allocator: AllocatorObject,
}

struct InnerOutput {
    name: std::ffi::CString,
    dtype: u32,
    shape: Vec<i64>,
    buffer: *mut c_void,
    buffer_user: *mut c_void,
    size: usize,
}

static THREADS: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Waits for all answers.
pub fn join() {
    let threads = std::mem::take(&mut *THREADS.lock());
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

export! {
    fn TRITONSERVER_ResponseAllocatorNew(
        allocator: *mut Handle, allocate: Option<Allocate>, deallocate: Option<Deallocate>, _start: Handle,
    ) |world| {
        let (Some(allocate), Some(deallocate)) = (allocate, deallocate) else { return violate("a callback is missing") };
        *allocator = world.allocators.add(AllocatorObject { allocate, deallocate });
    }

    fn TRITONSERVER_ResponseAllocatorDelete(allocator: Handle) |world| {
        world.allocators.remove(allocator)?;
    }

    fn TRITONSERVER_InferenceRequestNew(request: *mut Handle, _server: Handle, model: Text, _version: i64) |world| {
        let name = text(model)?;
        let Some(&instance) = world.served.get(&name) else {
            return refuse(format!("Request for unknown model: '{name}' is not found"));
        };
        let spec = RequestSpec::default();
        let inner = InnerRequest { instance, spec, release: None, complete: None, record: None, is_released: false };
        *request = world.inner_requests.add(inner);
    }

    fn TRITONSERVER_InferenceRequestDelete(request: Handle) |world| {
        let inner = world.inner_requests.remove(request)?;
        if inner.record.is_some() && !inner.is_released {
            return violate("the server still has the request");
        }
    }

    fn TRITONSERVER_InferenceRequestSetId(request: Handle, id: Text) |world| {
        world.inner_requests.get(request)?.spec.id = text(id)?;
    }

    fn TRITONSERVER_InferenceRequestAddInput(
        request: Handle, name: Text, dtype: u32, shape: *const i64, rank: u64,
    ) |world| {
        let shape = if rank == 0 { vec![] } else { std::slice::from_raw_parts(shape, rank as usize).to_vec() };
        let tensor = Tensor { name: text(name)?, dtype, shape, bytes: Vec::new() };
        let input = InputSpec { tensor, pieces: Vec::new(), memory: MemoryKind::Cpu };
        world.inner_requests.get(request)?.spec.inputs.push(input);
    }

    fn TRITONSERVER_InferenceRequestAppendInputData(
        request: Handle, name: Text, base: *const c_void, size: usize, _memory: u32, _device: i64,
    ) |world| {
        let name = text(name)?;
        let inputs = &mut world.inner_requests.get(request)?.spec.inputs;
        let Some(input) = inputs.iter_mut().find(|input| input.tensor.name == name) else {
            return violate(format!("data for the input {name}, which was not added"));
        };
        if size > 0 {
            input.tensor.bytes.extend_from_slice(std::slice::from_raw_parts(base.cast::<u8>(), size));
        }
    }

    fn TRITONSERVER_InferenceRequestAddRequestedOutput(request: Handle, name: Text) |world| {
        world.inner_requests.get(request)?.spec.outputs.push(text(name)?);
    }

    fn TRITONSERVER_InferenceRequestSetReleaseCallback(
        request: Handle, release: Option<Callback>, user: Handle,
    ) |world| {
        world.inner_requests.get(request)?.release = release.map(|release| (release, user));
    }

    fn TRITONSERVER_InferenceRequestSetResponseCallback(
        request: Handle, allocator: Handle, _allocator_user: Handle, complete: Option<Callback>, user: Handle,
    ) |world| {
        world.allocators.get(allocator)?;
        world.inner_requests.get(request)?.complete = complete.map(|complete| (complete, user, allocator));
    }

    fn TRITONSERVER_InferenceRequestCancel(request: Handle) |world| {
        if let Some(record) = world.inner_requests.get(request)?.record {
            world.records[record].cancelled = true;
        }
    }

    fn TRITONSERVER_ServerInferAsync(_server: Handle, request: Handle, _trace: Handle) |world| {
        let inner = world.inner_requests.get(request)?;
        let (Some(release), Some((complete, user, allocator))) = (inner.release, inner.complete) else {
            return violate("a request without callbacks");
        };
        let (instance, mut spec) = (inner.instance, inner.spec.clone());
        check_declared(world, instance, &mut spec)?;
        let allocator = *world.allocators.get(allocator)?;
        let (handle, record) = world.add_request(spec, instance);
        world.inner_requests.get(request)?.record = Some(record);
        let sent = Sent { request, instance, handle, record, release, complete: (complete, user), allocator };
        THREADS.lock().push(thread::spawn(move || sent.run()));
    }

    fn TRITONSERVER_InferenceResponseDelete(response: Handle) |world| {
        let response = world.inner_responses.remove(response)?;
        if !response.error.is_null() {
            world.errors.remove(response.error)?;
        }
        for output in response.outputs {
            (response.allocator.deallocate)(ptr::null_mut(), output.buffer, output.buffer_user, output.size, 0, 0);
        }
    }

    fn TRITONSERVER_InferenceResponseOutputCount(response: Handle, count: *mut u32) |world| {
        *count = world.inner_responses.get(response)?.outputs.len() as u32;
    }

    fn TRITONSERVER_InferenceResponseOutput(
        response: Handle, index: u32, name: *mut Text, dtype: *mut u32, shape: *mut *const i64, rank: *mut u64,
        base: *mut *const c_void, size: *mut usize, memory: *mut u32, device: *mut i64, user: *mut *mut c_void,
    ) |world| {
        let response = world.inner_responses.get(response)?;
        let Some(output) = response.outputs.get(index as usize) else { return violate(format!("output {index}")) };
        (*name, *dtype) = (output.name.as_ptr(), output.dtype);
        (*shape, *rank) = (output.shape.as_ptr(), output.shape.len() as u64);
        (*base, *size, *user) = (output.buffer, output.size, output.buffer_user);
        (*memory, *device) = (0, 0);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_InferenceResponseError(response: Handle) -> Handle {
    WORLD.lock().inner_responses.get(response).map_or(ptr::null_mut(), |response| response.error)
}

/// What the server checks before a model is asked. Without a list all declared outputs are wanted.
fn check_declared(world: &mut World, instance: Handle, spec: &mut RequestSpec) -> Result<(), Refusal> {
    let model = world.instances.get(instance)?.model;
    let model = world.models.get(model)?;
    let name = model.name.to_string_lossy().into_owned();
    let declared = |key: &str| model.config[key].as_array().cloned().unwrap_or_default();
    let (inputs, outputs) = (declared("input"), declared("output"));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    for input in spec.inputs.iter().map(|input| &input.tensor) {
        let Some(row) = inputs.iter().find(|row| row["name"] == input.name.as_str()) else {
            return refuse(format!("unexpected inference input '{}' for model '{name}'", input.name));
        };
        let (given, expected) = (dtype::config_name(input.dtype), text(&row["data_type"]));
        if expected != format!("TYPE_{given}") {
            let input = &input.name;
            return refuse(format!(
                "inference input '{input}' data-type is '{given}', but model '{name}' expects '{expected}'"
            ));
        }
    }
    let optional = |row: &serde_json::Value| row["optional"].as_bool().unwrap_or(false);
    for row in inputs.iter().filter(|row| !optional(row)) {
        if !spec.inputs.iter().any(|input| row["name"] == input.tensor.name.as_str()) {
            return refuse(format!("input '{}' is missing for model '{name}'", text(&row["name"])));
        }
    }
    if spec.outputs.is_empty() {
        spec.outputs = outputs.iter().map(|row| text(&row["name"])).collect();
    }
    Ok(())
}

/// A request on its way.
struct Sent {
    request: Handle,
    instance: Handle,
    handle: Handle,
    record: usize,
    release: (Callback, Handle),
    complete: (Callback, Handle),
    allocator: AllocatorObject,
}

// SAFETY: handles are numbers; what belongs to the callbacks is theirs, and the library takes them on any thread.
unsafe impl Send for Sent {}
// SAFETY: as above: addresses that only the library looks behind.
unsafe impl Send for InnerRequest {}
// SAFETY: as above.
unsafe impl Send for InnerResponse {}

impl Sent {
    fn run(self) {
        let mut handles = [self.handle];
        // SAFETY: the handles are ours, and the array has as many.
        let executed = outcome(unsafe { TRITONBACKEND_ModelInstanceExecute(self.instance, handles.as_mut_ptr(), 1) });
        if let Err(failure) = executed {
            WORLD.lock().answer(self.handle, &failure);
        }
        let mut sent = 0;
        let mut has_final = false;
        loop {
            let (replies, is_closed) = {
                let mut world = WORLD.lock();
                while world.records[self.record].replies.len() == sent && !world.records[self.record].is_closed() {
                    CHANGED.wait(&mut world);
                }
                let record = &world.records[self.record];
                (record.replies[sent..].to_vec(), record.is_closed())
            };
            sent += replies.len();
            for reply in replies {
                has_final |= reply.is_final;
                self.deliver(reply);
            }
            if is_closed {
                break;
            }
        }
        let (complete, user) = self.complete;
        if !has_final {
            // SAFETY: the library's callback with what it gave for it; this is the last call.
            unsafe { complete(ptr::null_mut(), FINAL, user) };
        }
        if let Ok(inner) = WORLD.lock().inner_requests.get(self.request) {
            inner.is_released = true;
        }
        let (release, user) = self.release;
        // SAFETY: as above.
        unsafe { release(self.request, RELEASE_ALL, user) };
    }

    fn deliver(&self, reply: Reply) {
        let outputs = reply.outputs.into_iter().map(|tensor| self.output(tensor)).collect();
        let response = {
            let mut world = WORLD.lock();
            let error =
                reply.error.map_or(ptr::null_mut(), |error| world.errors.add((error.code, c_string(&error.message))));
            world.inner_responses.add(InnerResponse { error, outputs, allocator: self.allocator })
        };
        let (complete, user) = self.complete;
        // SAFETY: the library's callback with what it gave for it, FINAL once.
        unsafe { complete(response, if reply.is_final { FINAL } else { 0 }, user) };
    }

    /// A copy in the library's memory.
    fn output(&self, tensor: Tensor) -> InnerOutput {
        let (name, size) = (c_string(&tensor.name), tensor.bytes.len());
        let (mut buffer, mut buffer_user) = (ptr::null_mut(), ptr::null_mut());
        let (mut memory, mut device) = (MemoryKind::Gpu as u32, 0);
        // SAFETY: valid places; the library gives memory of the size that it is asked for.
        unsafe {
            let error = (self.allocator.allocate)(
                ptr::null_mut(),
                name.as_ptr(),
                size,
                MemoryKind::Gpu as u32,
                0,
                ptr::null_mut(),
                &mut buffer,
                &mut buffer_user,
                &mut memory,
                &mut device,
            );
            assert!(error.is_null() && memory == MemoryKind::Cpu as u32, "host memory, whatever was preferred");
            if size > 0 {
                ptr::copy_nonoverlapping(tensor.bytes.as_ptr(), buffer.cast::<u8>(), size);
            }
        }
        InnerOutput { name, dtype: tensor.dtype, shape: tensor.shape, buffer, buffer_user, size }
    }
}
