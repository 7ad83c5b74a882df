//! Small conversions between C and Rust that every handle uses.

use std::ffi::{CStr, CString, c_char};

use super::error::take_error;
use super::sys;
use crate::error::{Error, Result};

/// The `Result` of a call that returned `raw`.
///
/// # Safety
/// `raw` is null or an error that the callee handed to us.
pub(super) unsafe fn check(raw: *mut sys::TRITONSERVER_Error) -> Result<()> {
    if raw.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's premise.
    Err(unsafe { take_error(raw) })
}

/// Calls a function with one out parameter and returns what it wrote.
///
/// # Safety
/// `call` returns null or an error that is ours.
pub(super) unsafe fn read<T>(initial: T, call: impl FnOnce(*mut T) -> *mut sys::TRITONSERVER_Error) -> Result<T> {
    let mut value = initial;
    // SAFETY: the caller's premise.
    unsafe { check(call(&mut value)) }?;
    Ok(value)
}

/// A borrowed C string as UTF-8; null is the empty string.
///
/// # Safety
/// `text` is null or NUL-terminated and lives for `'a`.
pub(super) unsafe fn utf8<'a>(text: *const c_char, what: &str) -> Result<&'a str> {
    if text.is_null() {
        return Ok("");
    }
    // SAFETY: the caller's premise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Error::invalid(format!("{what} is not valid UTF-8: {}", text.to_string_lossy())))
}

/// `text` for C; an inner NUL, which C cannot hold, becomes U+FFFD.
pub(super) fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_else(|_| {
        let text = text.replace('\0', "\u{fffd}");
        CString::new(text).expect("every NUL was replaced")
    })
}
