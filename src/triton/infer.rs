//! Requests to other models of the same server, in this process.
//!
//! The server's threads call back with responses; they are copied into a channel at once, since those threads belong to
//! the model that answers.

use std::ffi::{c_char, c_void};
use std::fmt;
use std::ptr;
use std::slice;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use super::error::copy_error;
use super::ffi::{c_string, check, read, utf8};
use super::response::OutputTensor;
use super::sys;
use super::tensor::DataType;
use crate::error::{Result, ResultExt};

/// Where several of a model's versions are loaded, the newest answers.
const NEWEST: i64 = -1;

/// The server that loaded us.
#[derive(Clone, Copy)]
pub struct Server(*mut sys::TRITONSERVER_Server);

// SAFETY: the server lives longer than every model of it, and takes requests from any thread.
unsafe impl Send for Server {}
// SAFETY: as for Send.
unsafe impl Sync for Server {}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

/// A request to a model.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    pub model: String,
    pub id: String,
    pub inputs: Vec<OutputTensor>,
    /// None: all that the model declares.
    pub outputs: Vec<String>,
}

/// What a model answered.
pub type InferResponse = Result<Vec<OutputTensor>>;

/// The responses of one request, as they come. Dropping it before the last one leaves the request to itself.
pub struct InferResponses {
    inbox: Receiver<InferResponse>,
    request: Arc<OpenRequest>,
    _allocator: Arc<Allocator>,
}

/// What [`InferResponses::next`] brings.
pub enum Next {
    Response(InferResponse),
    /// Nothing within the time.
    Waiting,
    /// There was a last response.
    Ended,
}

/// A request until the server hands it back; null after that.
struct OpenRequest(Mutex<*mut sys::TRITONSERVER_InferenceRequest>);

// SAFETY: the pointer is used under the lock only, and the server allows the calls on any thread.
unsafe impl Send for OpenRequest {}
// SAFETY: as for Send.
unsafe impl Sync for OpenRequest {}

/// What the release callback frees: the request, and the tensors that it borrows.
struct Released {
    request: Arc<OpenRequest>,
    _inputs: Vec<OutputTensor>,
}

/// What the response callback owns until FINAL.
struct Completed {
    responses: Sender<InferResponse>,
    _allocator: Arc<Allocator>,
}

struct Allocator(*mut sys::TRITONSERVER_ResponseAllocator);

// SAFETY: the allocator has no state; its callbacks may run on any thread.
unsafe impl Send for Allocator {}
// SAFETY: as for Send.
unsafe impl Sync for Allocator {}

impl Server {
    /// # Safety
    /// `raw` is the server of a model that is being loaded.
    pub(super) unsafe fn of_model(raw: *mut sys::TRITONBACKEND_Model) -> Result<Self> {
        // SAFETY: the caller's premise.
        unsafe { read(ptr::null_mut(), |out| sys::TRITONBACKEND_ModelServer(raw, out)).map(Self) }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// What the server says before the model is asked: an unknown model, tensors that it does not declare.
    pub fn infer(&self, request: InferRequest) -> Result<InferResponses> {
        let model = request.model.clone();
        self.send(request).context(format_args!("model {model:?}"))
    }

    fn send(&self, spec: InferRequest) -> Result<InferResponses> {
        let allocator = Arc::new(Allocator::new()?);
        let name = c_string(&spec.model);
        // SAFETY: the server is alive; the request written is ours.
        let raw = unsafe {
            read(ptr::null_mut(), |out| sys::TRITONSERVER_InferenceRequestNew(out, self.0, name.as_ptr(), NEWEST))
        }?;
        let request = Arc::new(OpenRequest(Mutex::new(raw)));
        // SAFETY: the request is ours until it is handed over below; names are copied, and the tensors are kept by
        // `Released` until the server is done with them.
        unsafe {
            fill(raw, &spec)?;
            let (responses, inbox) = channel();
            let released = Box::new(Released { request: request.clone(), _inputs: spec.inputs });
            let completed = Box::new(Completed { responses, _allocator: allocator.clone() });
            let (released, completed) = (Box::into_raw(released), Box::into_raw(completed));
            let sent = check(sys::TRITONSERVER_InferenceRequestSetReleaseCallback(raw, Some(release), released.cast()))
                .and_then(|()| {
                    check(sys::TRITONSERVER_InferenceRequestSetResponseCallback(
                        raw,
                        allocator.0,
                        ptr::null_mut(),
                        Some(complete),
                        completed.cast(),
                    ))
                })
                .and_then(|()| check(sys::TRITONSERVER_ServerInferAsync(self.0, raw, ptr::null_mut())));
            if let Err(error) = sent {
                // The server did not take the request, so no callback will run.
                drop(Box::from_raw(completed));
                drop(Box::from_raw(released));
                return Err(error);
            }
            Ok(InferResponses { inbox, request, _allocator: allocator })
        }
    }
}

impl InferResponses {
    /// Waits for the next response.
    pub fn next(&self, patience: Duration) -> Next {
        match self.inbox.recv_timeout(patience) {
            Ok(response) => Next::Response(response),
            Err(RecvTimeoutError::Timeout) => Next::Waiting,
            Err(RecvTimeoutError::Disconnected) => Next::Ended,
        }
    }

    /// Tells the model that nobody waits any more.
    pub fn cancel(&self) {
        let request = self.request.0.lock();
        if !request.is_null() {
            // SAFETY: the release callback, which ends the request, takes the lock first.
            let cancelled = unsafe { check(sys::TRITONSERVER_InferenceRequestCancel(*request)) };
            if let Err(error) = cancelled {
                tracing::warn!("a request to another model could not be cancelled: {error}");
            }
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.delete();
    }
}

impl OpenRequest {
    fn delete(&self) {
        let raw = std::mem::replace(&mut *self.0.lock(), ptr::null_mut());
        if !raw.is_null() {
            // SAFETY: ours again, and nobody else has the pointer any more.
            let deleted = unsafe { check(sys::TRITONSERVER_InferenceRequestDelete(raw)) };
            if let Err(error) = deleted {
                tracing::error!("deleting a request to another model: {error}");
            }
        }
    }
}

impl Allocator {
    fn new() -> Result<Self> {
        // SAFETY: the functions live as long as the library.
        unsafe {
            read(ptr::null_mut(), |out| {
                sys::TRITONSERVER_ResponseAllocatorNew(out, Some(allocate), Some(deallocate), None)
            })
        }
        .map(Self)
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        // SAFETY: ours; the last response was deleted before the last owner went.
        let deleted = unsafe { check(sys::TRITONSERVER_ResponseAllocatorDelete(self.0)) };
        if let Err(error) = deleted {
            tracing::error!("deleting a response allocator: {error}");
        }
    }
}

/// # Safety
/// `raw` is a request that is ours, and `spec` outlives it.
unsafe fn fill(raw: *mut sys::TRITONSERVER_InferenceRequest, spec: &InferRequest) -> Result<()> {
    // SAFETY: the caller's premise.
    unsafe {
        check(sys::TRITONSERVER_InferenceRequestSetId(raw, c_string(&spec.id).as_ptr()))?;
        for input in &spec.inputs {
            let name = c_string(&input.name);
            let (shape, rank) = (input.shape.as_ptr(), input.shape.len() as u64);
            check(sys::TRITONSERVER_InferenceRequestAddInput(raw, name.as_ptr(), input.dtype.code(), shape, rank))?;
            let (data, size) = (input.bytes.as_ptr().cast(), input.bytes.len());
            let memory = sys::TRITONSERVER_MEMORY_CPU;
            check(sys::TRITONSERVER_InferenceRequestAppendInputData(raw, name.as_ptr(), data, size, memory, 0))?;
        }
        for output in &spec.outputs {
            check(sys::TRITONSERVER_InferenceRequestAddRequestedOutput(raw, c_string(output).as_ptr()))?;
        }
    }
    Ok(())
}

/// The server is done with a request.
unsafe extern "C" fn release(_request: *mut sys::TRITONSERVER_InferenceRequest, flags: u32, state: *mut c_void) {
    if flags & sys::TRITONSERVER_REQUEST_RELEASE_ALL != 0 {
        // SAFETY: `state` is the box that was given with the request, and this is its last use.
        let released = unsafe { Box::from_raw(state.cast::<Released>()) };
        released.request.delete();
    }
}

/// A model answered.
unsafe extern "C" fn complete(response: *mut sys::TRITONSERVER_InferenceResponse, flags: u32, state: *mut c_void) {
    // SAFETY: `state` is the box that was given with the request; FINAL is its last use.
    unsafe {
        let completed = state.cast::<Completed>();
        if !response.is_null() {
            let outcome = read_response(response);
            if let Err(error) = check(sys::TRITONSERVER_InferenceResponseDelete(response)) {
                tracing::error!("deleting a response of another model: {error}");
            }
            // Whoever asked may have gone.
            let _ = (*completed).responses.send(outcome);
        }
        if flags & sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL != 0 {
            drop(Box::from_raw(completed));
        }
    }
}

/// # Safety
/// `raw` is a response that is ours.
unsafe fn read_response(raw: *mut sys::TRITONSERVER_InferenceResponse) -> InferResponse {
    // SAFETY: the response is alive; what is borrowed from it is copied here. Every buffer is one of `allocate`, so it
    // is host memory of the size that the response says.
    unsafe {
        let error = sys::TRITONSERVER_InferenceResponseError(raw);
        if !error.is_null() {
            return Err(copy_error(error));
        }
        let count = read(0, |out| sys::TRITONSERVER_InferenceResponseOutputCount(raw, out))?;
        (0..count).map(|index| read_output(raw, index)).collect()
    }
}

/// # Safety
/// As for [`read_response`].
unsafe fn read_output(raw: *mut sys::TRITONSERVER_InferenceResponse, index: u32) -> Result<OutputTensor> {
    let (mut name, mut dtype, mut shape, mut rank): (*const c_char, _, _, _) = (ptr::null(), 0, ptr::null(), 0);
    let (mut base, mut size, mut memory, mut device, mut user) = (ptr::null(), 0, 0, 0, ptr::null_mut());
    // SAFETY: the caller's premise.
    unsafe {
        check(sys::TRITONSERVER_InferenceResponseOutput(
            raw,
            index,
            &mut name,
            &mut dtype,
            &mut shape,
            &mut rank,
            &mut base,
            &mut size,
            &mut memory,
            &mut device,
            &mut user,
        ))?;
        let name = utf8(name, "the name of an output")?.to_owned();
        let shape = if rank == 0 { Vec::new() } else { slice::from_raw_parts(shape, rank as usize).to_vec() };
        let bytes = if size == 0 { Vec::new() } else { slice::from_raw_parts(base.cast::<u8>(), size).to_vec() };
        Ok(OutputTensor { name: name.into(), dtype: DataType::from_code(dtype)?, shape, bytes })
    }
}

/// Host memory for an output, whatever was preferred.
unsafe extern "C" fn allocate(
    _allocator: *mut sys::TRITONSERVER_ResponseAllocator,
    _name: *const c_char,
    size: usize,
    _memory: sys::TRITONSERVER_MemoryType,
    _device: i64,
    _user: *mut c_void,
    buffer: *mut *mut c_void,
    buffer_user: *mut *mut c_void,
    actual_memory: *mut sys::TRITONSERVER_MemoryType,
    actual_device: *mut i64,
) -> *mut sys::TRITONSERVER_Error {
    let bytes = vec![0_u8; size].into_boxed_slice();
    // SAFETY: the server gives valid places for the results.
    unsafe {
        *buffer = if size == 0 { ptr::null_mut() } else { Box::into_raw(bytes).cast() };
        *buffer_user = ptr::null_mut();
        *actual_memory = sys::TRITONSERVER_MEMORY_CPU;
        *actual_device = 0;
    }
    ptr::null_mut()
}

unsafe extern "C" fn deallocate(
    _allocator: *mut sys::TRITONSERVER_ResponseAllocator,
    buffer: *mut c_void,
    _buffer_user: *mut c_void,
    size: usize,
    _memory: sys::TRITONSERVER_MemoryType,
    _device: i64,
) -> *mut sys::TRITONSERVER_Error {
    if !buffer.is_null() {
        // SAFETY: a buffer of `allocate` of this size, given back once.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(buffer.cast::<u8>(), size)) });
    }
    ptr::null_mut()
}
