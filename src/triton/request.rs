//! A request, for reading. What answers it is in [`super::sink`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::ptr;
use std::slice;

use super::ffi::{read, utf8};
use super::response::ParameterValue;
use super::sink::{ResponseSink, Timings};
use super::sys;
use super::tensor::{DataType, Input};
use crate::error::{Error, Result, ResultExt};

/// A request that is ours until it is answered. Dropping it answers with an error.
#[derive(Debug)]
pub struct Request {
    pub(super) sink: ResponseSink,
}

/// The sequence that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorrelationId {
    /// Zero where the client gave none.
    Number(u64),
    Text(String),
}

impl Request {
    /// Turns to answering. The request stays alive in the sink until the final response was sent.
    pub fn into_sink(self) -> ResponseSink {
        self.sink
    }

    /// Answers with `error` and ends the request.
    pub fn fail(self, error: Error, timings: Option<Timings>) {
        self.sink.finish(Err(error), timings);
    }

    /// When the server handed the request over, in CLOCK_MONOTONIC nanoseconds.
    pub fn received_ns(&self) -> u64 {
        self.sink.received_ns()
    }

    /// The id that the client gave; may be empty, need not be unique.
    ///
    /// # Errors
    /// InvalidArg for an id that is not UTF-8.
    pub fn id(&self) -> Result<&str> {
        // SAFETY: the id is borrowed from the request, which `self` keeps alive.
        unsafe { utf8(read(ptr::null(), |out| sys::TRITONBACKEND_RequestId(self.raw(), out))?, "the request id") }
    }

    /// The sequence that the request belongs to.
    ///
    /// # Errors
    /// Those of the server.
    pub fn correlation_id(&self) -> Result<CorrelationId> {
        // SAFETY: the request is alive. The number is an error for a textual id and the other way round.
        unsafe {
            if let Ok(number) = read(0, |out| sys::TRITONBACKEND_RequestCorrelationId(self.raw(), out)) {
                return Ok(CorrelationId::Number(number));
            }
            let text = read(ptr::null(), |out| sys::TRITONBACKEND_RequestCorrelationIdString(self.raw(), out))?;
            Ok(CorrelationId::Text(utf8(text, "the correlation id")?.to_owned()))
        }
    }

    /// Whether the request starts and whether it ends a sequence.
    ///
    /// # Errors
    /// Those of the server.
    pub fn sequence_flags(&self) -> Result<(bool, bool)> {
        // SAFETY: the request is alive.
        let flags = unsafe { read(0, |out| sys::TRITONBACKEND_RequestFlags(self.raw(), out)) }?;
        let has = |flag| flags & flag != 0;
        Ok((has(sys::TRITONSERVER_REQUEST_FLAG_SEQUENCE_START), has(sys::TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)))
    }

    /// The time that the client allows, in microseconds; zero for none. Values passed through the generate endpoint
    /// arrive as parameters instead.
    ///
    /// # Errors
    /// Those of the server.
    pub fn timeout_us(&self) -> Result<u64> {
        // SAFETY: the request is alive.
        unsafe { read(0, |out| sys::TRITONBACKEND_InferenceRequestTimeoutMicroseconds(self.raw(), out)) }
    }

    /// Whether the client has gone away.
    pub fn is_cancelled(&self) -> bool {
        self.sink.is_cancelled()
    }

    /// The request parameters by name. The API gives BYTES parameters without a length; they are left out.
    ///
    /// # Errors
    /// InvalidArg for text that is not UTF-8.
    pub fn parameters(&self) -> Result<BTreeMap<String, ParameterValue>> {
        // SAFETY: the request is alive.
        let count = unsafe { read(0, |out| sys::TRITONBACKEND_RequestParameterCount(self.raw(), out)) }?;
        (0..count).filter_map(|index| self.parameter(index).transpose()).collect()
    }

    /// All inputs, in the server's order, which differs from request to request.
    ///
    /// # Errors
    /// Unsupported for a tensor in the memory of a GPU that cannot be read.
    pub fn inputs(&self) -> Result<Vec<Input<'_>>> {
        // SAFETY: the request is alive.
        let count = unsafe { read(0, |out| sys::TRITONBACKEND_RequestInputCount(self.raw(), out)) }?;
        (0..count).map(|index| self.input_at(index)).collect()
    }

    /// The names of the outputs that the client asked for. The server does not filter: what is not named here must not
    /// be sent.
    ///
    /// # Errors
    /// Those of the server.
    pub fn requested_outputs(&self) -> Result<Vec<&str>> {
        // SAFETY: the request is alive and the names are borrowed from it.
        unsafe {
            let count = read(0, |out| sys::TRITONBACKEND_RequestOutputCount(self.raw(), out))?;
            let name = |index| read(ptr::null(), |out| sys::TRITONBACKEND_RequestOutputName(self.raw(), index, out));
            (0..count).map(|index| utf8(name(index)?, "the name of a requested output")).collect()
        }
    }

    fn parameter(&self, index: u32) -> Result<Option<(String, ParameterValue)>> {
        let mut kind = sys::TRITONSERVER_PARAMETER_STRING;
        let mut value: *const c_void = ptr::null();
        // SAFETY: the request is alive. Key and value are borrowed from it and copied; `kind` says what `value` is.
        unsafe {
            let key = read(ptr::null(), |out| {
                sys::TRITONBACKEND_RequestParameter(self.raw(), index, out, &mut kind, &mut value)
            })?;
            let key = utf8(key, "the name of a request parameter")?.to_owned();
            let value = match kind {
                sys::TRITONSERVER_PARAMETER_STRING => ParameterValue::Text(
                    utf8(value.cast::<c_char>(), &format!("request parameter `{key}`"))?.to_owned(),
                ),
                sys::TRITONSERVER_PARAMETER_INT => ParameterValue::Int(*value.cast()),
                sys::TRITONSERVER_PARAMETER_BOOL => ParameterValue::Bool(*value.cast()),
                sys::TRITONSERVER_PARAMETER_DOUBLE => ParameterValue::Double(*value.cast()),
                _ => return Ok(None),
            };
            Ok(Some((key, value)))
        }
    }

    fn input_at(&self, index: u32) -> Result<Input<'_>> {
        let (mut name, mut dtype, mut rank, mut size, mut buffers) = (ptr::null(), 0, 0, 0, 0);
        // SAFETY: the request is alive; name and shape are borrowed from it, as the lifetime of the result says.
        unsafe {
            let input = read(ptr::null_mut(), |out| sys::TRITONBACKEND_RequestInputByIndex(self.raw(), index, out))?;
            let shape = read(ptr::null(), |out| {
                let out = (&mut name, &mut dtype, out, &mut rank, &mut size, &mut buffers);
                sys::TRITONBACKEND_InputProperties(input, out.0, out.1, out.2, out.3, out.4, out.5)
            })?;
            let name = utf8(name, "the name of an input")?;
            let bytes = read_buffers(input, size, buffers).context(format_args!("input `{name}`"))?;
            let shape = if rank == 0 { &[] } else { slice::from_raw_parts(shape, rank as usize) };
            Ok(Input { name, dtype: DataType::from_code(dtype)?, shape, bytes })
        }
    }

    fn raw(&self) -> *mut sys::TRITONBACKEND_Request {
        self.sink.raw_request()
    }
}

/// The bytes of an input: borrowed if the server holds them in one piece, else joined.
///
/// # Safety
/// `input` belongs to a request that lives for `'a`.
unsafe fn read_buffers<'a>(input: *mut sys::TRITONBACKEND_Input, size: u64, buffers: u32) -> Result<Cow<'a, [u8]>> {
    // SAFETY: the caller's premise.
    unsafe {
        match buffers {
            0 => Ok(Cow::Borrowed(&[])),
            1 => read_buffer(input, 0),
            _ => {
                let mut bytes = Vec::with_capacity(size as usize);
                for index in 0..buffers {
                    bytes.extend_from_slice(&read_buffer(input, index)?);
                }
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

/// One buffer: borrowed from host memory, page-locked or not, and copied from that of a GPU.
///
/// # Safety
/// As for [`read_buffers`].
unsafe fn read_buffer<'a>(input: *mut sys::TRITONBACKEND_Input, index: u32) -> Result<Cow<'a, [u8]>> {
    let (mut size, mut memory, mut device) = (0, sys::TRITONSERVER_MEMORY_CPU, 0);
    // SAFETY: the input is alive; the server says where the buffer is and how long, and only host memory is made a slice of.
    unsafe {
        let base = read(ptr::null(), |out| {
            sys::TRITONBACKEND_InputBuffer(input, index, out, &mut size, &mut memory, &mut device)
        })?;
        Ok(match memory {
            _ if size == 0 => Cow::Borrowed(&[]),
            sys::TRITONSERVER_MEMORY_GPU => Cow::Owned(read_gpu(device, base, size as usize)?),
            _ => Cow::Borrowed(slice::from_raw_parts(base.cast(), size as usize)),
        })
    }
}

/// # Safety
/// `base` is the start of `size` bytes of this GPU's memory.
unsafe fn read_gpu(device: i64, base: *const c_void, size: usize) -> Result<Vec<u8>> {
    #[cfg(feature = "cuda")]
    // SAFETY: the caller's premise; the server keeps an input as it is while its request lives.
    let copied = unsafe { crate::device::cuda::read_memory(device, base as u64, size) };
    #[cfg(not(feature = "cuda"))]
    let copied: Result<Vec<u8>> =
        Err(Error::unsupported(format!("{base:?}, {size} bytes: there is no CUDA in this library")));
    copied.map_err(|why| {
        let message =
            format!("the tensor is in the memory of GPU {device}, which cannot be read: send it in host memory");
        Error::unsupported(format!("{message} ({why})"))
    })
}
