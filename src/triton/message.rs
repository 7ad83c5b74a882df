//! JSON messages.

use std::ptr;
use std::slice;

use serde_json::Value;

use super::ffi::{check, read};
use super::sys;
use crate::error::{Error, Result};

/// A message that we own.
pub(super) struct Message(*mut sys::TRITONSERVER_Message);

impl Message {
    pub(super) fn from_json(value: &Value) -> Result<Self> {
        let text = value.to_string();
        // SAFETY: `text` lives through the call, which copies it; the message written is ours.
        let raw = unsafe {
            read(ptr::null_mut(), |out| {
                sys::TRITONSERVER_MessageNewFromSerializedJson(out, text.as_ptr().cast(), text.len())
            })
        }?;
        Ok(Self(raw))
    }

    /// # Safety
    /// `raw` is a message that is ours.
    pub(super) unsafe fn from_raw(raw: *mut sys::TRITONSERVER_Message) -> Self {
        Self(raw)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::TRITONSERVER_Message {
        self.0
    }

    pub(super) fn to_json(&self) -> Result<Value> {
        // SAFETY: the message is alive until `self` is dropped.
        unsafe { message_to_json(self.0) }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: ours and deleted only here. There is nobody to tell about a failure.
        let _ = unsafe { check(sys::TRITONSERVER_MessageDelete(self.0)) };
    }
}

/// The JSON of a borrowed message; null for a message that is not there.
///
/// # Safety
/// `raw` is null or a message that lives through the call.
pub(super) unsafe fn message_to_json(raw: *mut sys::TRITONSERVER_Message) -> Result<Value> {
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let mut size = 0;
    // SAFETY: `raw` is alive; the text is borrowed from it and read before this function ends.
    let text = unsafe {
        let base = read(ptr::null(), |out| sys::TRITONSERVER_MessageSerializeToJson(raw, out, &mut size))?;
        if base.is_null() { &[] } else { slice::from_raw_parts(base.cast::<u8>(), size) }
    };
    serde_json::from_slice(text).map_err(|error| Error::internal(format!("the server's JSON does not parse: {error}")))
}
