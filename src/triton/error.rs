//! Errors across the ABI.

use std::ffi::CStr;

use super::ffi::c_string;
use super::sys;
use crate::error::{Error, ErrorKind};

/// A Triton error that we made and own.
pub(super) struct ServerError(*mut sys::TRITONSERVER_Error);

impl ServerError {
    pub(super) fn new(error: &Error) -> Self {
        let message = c_string(error.message());
        // SAFETY: the message is NUL-terminated and copied by the callee.
        Self(unsafe { sys::TRITONSERVER_ErrorNew(code(error.kind()), message.as_ptr()) })
    }

    /// For the time of a call that does not take the error.
    pub(super) fn as_ptr(&self) -> *mut sys::TRITONSERVER_Error {
        self.0
    }

    /// For the return value of an entry point: the server deletes it.
    pub(super) fn into_raw(self) -> *mut sys::TRITONSERVER_Error {
        std::mem::ManuallyDrop::new(self).0
    }
}

impl Drop for ServerError {
    fn drop(&mut self) {
        // SAFETY: made by ErrorNew, owned by us, deleted only here.
        unsafe { sys::TRITONSERVER_ErrorDelete(self.0) }
    }
}

/// Converts an error that the server handed to us, and deletes it.
///
/// # Safety
/// `raw` is an error that is ours.
pub(super) unsafe fn take_error(raw: *mut sys::TRITONSERVER_Error) -> Error {
    // SAFETY: `raw` is ours by the caller's premise; it is copied, then deleted and not used after.
    unsafe {
        let error = copy_error(raw);
        sys::TRITONSERVER_ErrorDelete(raw);
        error
    }
}

/// Converts an error that the server keeps.
///
/// # Safety
/// `raw` is an error that lives through the call.
pub(super) unsafe fn copy_error(raw: *mut sys::TRITONSERVER_Error) -> Error {
    // SAFETY: the caller's premise; the message is borrowed from the error and copied.
    let (code, message) = unsafe {
        let message = CStr::from_ptr(sys::TRITONSERVER_ErrorMessage(raw)).to_string_lossy().into_owned();
        (sys::TRITONSERVER_ErrorCode(raw), message)
    };
    Error::new(kind(code), message)
}

fn code(kind: ErrorKind) -> sys::TRITONSERVER_Error_Code {
    match kind {
        ErrorKind::InvalidArg => sys::TRITONSERVER_ERROR_INVALID_ARG,
        ErrorKind::NotFound => sys::TRITONSERVER_ERROR_NOT_FOUND,
        ErrorKind::Unavailable => sys::TRITONSERVER_ERROR_UNAVAILABLE,
        ErrorKind::Unsupported => sys::TRITONSERVER_ERROR_UNSUPPORTED,
        ErrorKind::Cancelled => sys::TRITONSERVER_ERROR_CANCELLED,
        ErrorKind::Internal => sys::TRITONSERVER_ERROR_INTERNAL,
    }
}

fn kind(code: sys::TRITONSERVER_Error_Code) -> ErrorKind {
    match code {
        sys::TRITONSERVER_ERROR_INVALID_ARG | sys::TRITONSERVER_ERROR_ALREADY_EXISTS => ErrorKind::InvalidArg,
        sys::TRITONSERVER_ERROR_NOT_FOUND => ErrorKind::NotFound,
        sys::TRITONSERVER_ERROR_UNAVAILABLE => ErrorKind::Unavailable,
        sys::TRITONSERVER_ERROR_UNSUPPORTED => ErrorKind::Unsupported,
        sys::TRITONSERVER_ERROR_CANCELLED => ErrorKind::Cancelled,
        _ => ErrorKind::Internal,
    }
}
