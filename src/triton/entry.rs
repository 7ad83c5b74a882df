//! The functions that the server looks up in this library. No panic leaves them.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::slice;
use std::sync::Arc;

use super::error::ServerError;
use super::ffi::{check, read};
use super::instance::Instance;
use super::model::{self, Model};
use super::request::Request;
use super::sink::ResponseSink;
use super::{InstanceHandler, ModelHandler, loader, log, monotonic_ns, sys};
use crate::error::{Error, ErrorKind, Result, ResultExt};

/// The major version of the backend API that `triton_headers/` declares. Minor versions are no feature test: functions
/// were added without a new one.
const API_MAJOR: u32 = 1;
const MODEL_STATE_FAILED: &str = "unexpected error when creating modelState";
const INSTANCE_STATE_FAILED: &str = "unexpected error when creating modelInstanceState";

/// What the server keeps for us with a model.
struct ModelState(Arc<dyn ModelHandler>);

/// What the server keeps for us with an instance.
struct InstanceState {
    instance: Instance,
    handler: Arc<dyn InstanceHandler>,
}

/// The library was loaded.
///
/// # Safety
/// Called by the server only, as are all functions here: the handles are alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_Initialize(
    _backend: *mut sys::TRITONBACKEND_Backend,
) -> *mut sys::TRITONSERVER_Error {
    guard("TRITONBACKEND_Initialize", || {
        log::install();
        let mut minor = 0;
        // SAFETY: both places are valid.
        let major = unsafe { read(0, |out| sys::TRITONBACKEND_ApiVersion(out, &mut minor)) }?;
        if major != API_MAJOR {
            let message = format!("the server has backend API {major}.{minor}, this backend needs {API_MAJOR}.x");
            return Err(Error::unsupported(message));
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), api = format_args!("{major}.{minor}"), "backend loaded");
        Ok(())
    })
}

/// The library will be unloaded.
///
/// # Safety
/// As for [`TRITONBACKEND_Initialize`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_Finalize(
    _backend: *mut sys::TRITONBACKEND_Backend,
) -> *mut sys::TRITONSERVER_Error {
    guard("TRITONBACKEND_Finalize", || {
        tracing::debug!("backend unloaded");
        Ok(())
    })
}

/// Models without an instance group get one instance that chooses its devices itself.
///
/// # Safety
/// As for [`TRITONBACKEND_Initialize`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_GetBackendAttribute(
    _backend: *mut sys::TRITONBACKEND_Backend,
    attribute: *mut sys::TRITONBACKEND_BackendAttribute,
) -> *mut sys::TRITONSERVER_Error {
    guard("TRITONBACKEND_GetBackendAttribute", || {
        let kind = sys::TRITONSERVER_INSTANCEGROUPKIND_MODEL;
        // SAFETY: the attribute is alive; there are no device ids to read.
        unsafe {
            check(sys::TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(attribute, kind, 1, ptr::null(), 0))
        }
    })
}

/// Completes the model's config where the server wants that, and loads the model.
///
/// # Safety
/// As for [`TRITONBACKEND_Initialize`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInitialize(
    raw: *mut sys::TRITONBACKEND_Model,
) -> *mut sys::TRITONSERVER_Error {
    guard_load(MODEL_STATE_FAILED, || {
        // SAFETY: the model is alive, and this is its ModelInitialize.
        let model = unsafe {
            let mut model = Model::read(raw)?;
            if model::wants_auto_complete(raw)?
                && let Some(config) = loader().auto_complete(&model)?
            {
                model::set_config(raw, &config)?;
                model.config = model::read_config(raw)?;
            }
            model
        };
        let state = Box::new(ModelState(loader().load(&model)?));
        // SAFETY: the model is alive.
        unsafe { hand_over(state, |state| sys::TRITONBACKEND_ModelSetState(raw, state)) }
    })
}

/// Frees what ModelInitialize made, if it made anything.
///
/// # Safety
/// As for [`TRITONBACKEND_Initialize`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelFinalize(
    raw: *mut sys::TRITONBACKEND_Model,
) -> *mut sys::TRITONSERVER_Error {
    guard("TRITONBACKEND_ModelFinalize", || {
        // SAFETY: the model is alive, and its state is null or came from `hand_over`; it is taken out once.
        unsafe {
            let state = read(ptr::null_mut(), |out| sys::TRITONBACKEND_ModelState(raw, out))?;
            check(sys::TRITONBACKEND_ModelSetState(raw, ptr::null_mut()))?;
            drop(take_back::<ModelState>(state));
        }
        Ok(())
    })
}

/// Makes an instance of a loaded model.
///
/// # Safety
/// As for [`TRITONBACKEND_Initialize`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceInitialize(
    raw: *mut sys::TRITONBACKEND_ModelInstance,
) -> *mut sys::TRITONSERVER_Error {
    guard_load(INSTANCE_STATE_FAILED, || {
        // SAFETY: the instance and its model are alive; the model's state is null or ours until ModelFinalize.
        let (instance, model) = unsafe {
            let model = read(ptr::null_mut(), |out| sys::TRITONBACKEND_ModelInstanceModel(raw, out))?;
            let state = read(ptr::null_mut(), |out| sys::TRITONBACKEND_ModelState(model, out))?;
            let Some(state) = state.cast::<ModelState>().as_ref() else {
                return Err(Error::internal("the model was not initialized"));
            };
            (Instance::read(raw)?, state.0.clone())
        };
        let handler = model.instance(instance.clone())?;
        let state = Box::new(InstanceState { instance, handler });
        // SAFETY: the instance is alive.
        unsafe { hand_over(state, |state| sys::TRITONBACKEND_ModelInstanceSetState(raw, state)) }
    })
}

/// Shuts the instance down, if ModelInstanceInitialize made it.
///
/// # Safety
/// As for [`TRITONBACKEND_Initialize`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceFinalize(
    raw: *mut sys::TRITONBACKEND_ModelInstance,
) -> *mut sys::TRITONSERVER_Error {
    guard("TRITONBACKEND_ModelInstanceFinalize", || {
        // SAFETY: the instance is alive, and its state is null or came from `hand_over`; it is taken out once.
        let state = unsafe {
            let state = read(ptr::null_mut(), |out| sys::TRITONBACKEND_ModelInstanceState(raw, out))?;
            check(sys::TRITONBACKEND_ModelInstanceSetState(raw, ptr::null_mut()))?;
            take_back::<InstanceState>(state)
        };
        if let Some(state) = state {
            state.handler.shutdown();
        }
        Ok(())
    })
}

/// Hands requests to the instance. Every request is ours once this returns null, which it does for all instances that
/// exist; what happens to a request is told to its client.
///
/// # Safety
/// As for [`TRITONBACKEND_Initialize`]; `requests` holds `count` requests.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceExecute(
    raw: *mut sys::TRITONBACKEND_ModelInstance,
    requests: *mut *mut sys::TRITONBACKEND_Request,
    count: u32,
) -> *mut sys::TRITONSERVER_Error {
    let received_ns = monotonic_ns();
    // SAFETY: the instance is alive and its state is null or ours until ModelInstanceFinalize.
    let state = match unsafe { instance_state(raw) } {
        Ok(state) => state,
        Err(error) => return ServerError::new(&error).into_raw(),
    };
    let handed_over = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the array holds `count` requests of this instance; they are ours as this call will return null.
        let requests = unsafe {
            let raw = if count == 0 { &[] } else { slice::from_raw_parts(requests, count as usize) };
            let take = |&raw| ResponseSink::new(raw, &state.instance, received_ns);
            raw.iter().filter_map(take).map(|sink| Request { sink }).collect()
        };
        state.handler.execute(requests);
    }));
    if let Err(panic) = handed_over {
        // The requests that were not taken over by another thread were answered when the unwinding dropped them.
        tracing::error!("{}", panic_error("TRITONBACKEND_ModelInstanceExecute", panic.as_ref()));
    }
    ptr::null_mut()
}

/// Whether the instance can serve; asked by newer servers only.
///
/// # Safety
/// As for [`TRITONBACKEND_Initialize`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceReady(
    raw: *mut sys::TRITONBACKEND_ModelInstance,
) -> *mut sys::TRITONSERVER_Error {
    // SAFETY: the instance is alive and its state is null or ours until ModelInstanceFinalize.
    guard("TRITONBACKEND_ModelInstanceReady", || unsafe { instance_state(raw) }?.handler.ready())
}

/// Gives a state to the server to keep, and takes it back if the server does not want it.
///
/// # Safety
/// `set` returns null or an error that is ours.
unsafe fn hand_over<T>(state: Box<T>, set: impl FnOnce(*mut c_void) -> *mut sys::TRITONSERVER_Error) -> Result<()> {
    let state = Box::into_raw(state);
    // SAFETY: the caller's premise; a state that was not kept is still ours.
    unsafe { check(set(state.cast())).inspect_err(|_| drop(Box::from_raw(state))) }
}

/// # Safety
/// `state` is null or came from `hand_over::<T>` and is used nowhere else.
unsafe fn take_back<T>(state: *mut c_void) -> Option<Box<T>> {
    // SAFETY: the caller's premise.
    (!state.is_null()).then(|| unsafe { Box::from_raw(state.cast()) })
}

/// # Safety
/// `raw` is alive, its state is null or ours, and it is not finalized within `'a`.
unsafe fn instance_state<'a>(raw: *mut sys::TRITONBACKEND_ModelInstance) -> Result<&'a InstanceState> {
    // SAFETY: the caller's premise.
    unsafe {
        let state = read(ptr::null_mut(), |out| sys::TRITONBACKEND_ModelInstanceState(raw, out))?;
        let state = state.cast::<InstanceState>().as_ref();
        state.ok_or_else(|| Error::unavailable("the model instance was not initialized"))
    }
}

fn guard(entry: &str, body: impl FnOnce() -> Result<()>) -> *mut sys::TRITONSERVER_Error {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panic_error(entry, panic.as_ref())));
    result.map_or_else(|error| ServerError::new(&error).into_raw(), |()| ptr::null_mut())
}

/// As [`guard`], for entry points whose failures are known to operators by a prefix and the code INTERNAL.
fn guard_load(prefix: &str, body: impl FnOnce() -> Result<()>) -> *mut sys::TRITONSERVER_Error {
    guard(prefix, || {
        let result =
            catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panic_error("loading", panic.as_ref())));
        result.map_err(|error| Error::new(ErrorKind::Internal, error.message())).context(prefix)
    })
}

fn panic_error(place: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("panic in {place}: {}", text.unwrap_or("no message")))
}
