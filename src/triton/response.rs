//! Responses: plain data, and the handle that carries them to the server.

use std::borrow::Cow;
use std::ptr;

use super::error::ServerError;
use super::ffi::{c_string, check, read};
use super::sys;
use super::tensor::{DataType, encode_strings};
use crate::error::{Error, Result, ResultExt};

/// One response of a request. The empty one is valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    pub outputs: Vec<OutputTensor>,
    pub parameters: Vec<(String, ParameterValue)>,
}

/// One output tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputTensor {
    pub name: Cow<'static, str>,
    pub dtype: DataType,
    /// With the batch dimension if the model has one.
    pub shape: Vec<i64>,
    /// Row-major elements, little-endian; for [`DataType::Bytes`] see [`encode_strings`].
    pub bytes: Vec<u8>,
}

/// A parameter of a request or a response.
#[derive(Clone, Debug, PartialEq)]
pub enum ParameterValue {
    Text(String),
    Int(i64),
    Bool(bool),
    Double(f64),
}

impl OutputTensor {
    /// A tensor of 32-bit integers.
    pub fn int32(name: impl Into<Cow<'static, str>>, shape: &[i64], values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name: name.into(), dtype: DataType::Int32, shape: shape.to_vec(), bytes }
    }

    /// A tensor of 32-bit floating-point numbers.
    pub fn fp32(name: impl Into<Cow<'static, str>>, shape: &[i64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name: name.into(), dtype: DataType::Fp32, shape: shape.to_vec(), bytes }
    }

    /// A tensor of texts.
    pub fn strings<T: AsRef<[u8]>>(name: impl Into<Cow<'static, str>>, shape: &[i64], values: &[T]) -> Self {
        Self { name: name.into(), dtype: DataType::Bytes, shape: shape.to_vec(), bytes: encode_strings(values) }
    }

    /// The server takes any shape for any number of bytes, and clients would misread it.
    fn check_size(&self) -> Result<()> {
        let Some(size) = self.dtype.size_bytes() else { return Ok(()) };
        let expected = self.shape.iter().map(|&dim| dim.max(0) as usize).product::<usize>() * size;
        if expected == self.bytes.len() {
            return Ok(());
        }
        let (dtype, shape, got) = (self.dtype.name(), &self.shape, self.bytes.len());
        Err(Error::internal(format!("{dtype} of shape {shape:?} takes {expected} bytes, got {got}")))
    }
}

/// A response of the server that is ours until it is sent.
pub(super) struct RawResponse(*mut sys::TRITONBACKEND_Response);

impl RawResponse {
    /// # Safety
    /// `factory` is alive, and no response was sent with FINAL through it.
    pub(super) unsafe fn new(factory: *mut sys::TRITONBACKEND_ResponseFactory) -> Result<Self> {
        // SAFETY: the caller's premise; the response written is ours.
        unsafe { read(ptr::null_mut(), |out| sys::TRITONBACKEND_ResponseNewFromFactory(out, factory)).map(Self) }
    }

    /// For a request without a factory.
    ///
    /// # Safety
    /// `request` is alive, and no response was sent with FINAL for it.
    pub(super) unsafe fn for_request(request: *mut sys::TRITONBACKEND_Request) -> Result<Self> {
        // SAFETY: the caller's premise; the response written is ours.
        unsafe { read(ptr::null_mut(), |out| sys::TRITONBACKEND_ResponseNew(out, request)).map(Self) }
    }

    pub(super) fn fill(&mut self, response: &Response) -> Result<()> {
        for (name, value) in &response.parameters {
            self.set_parameter(name, value).context(format_args!("response parameter `{name}`"))?;
        }
        for output in &response.outputs {
            self.add_output(output).context(format_args!("output `{}`", output.name))?;
        }
        Ok(())
    }

    /// Hands the response to the server, which takes it in any case; `error` stays with the caller.
    pub(super) fn send(self, flags: u32, error: Option<&ServerError>) -> Result<()> {
        let raw = std::mem::ManuallyDrop::new(self).0;
        let error = error.map_or(ptr::null_mut(), ServerError::as_ptr);
        // SAFETY: the response is ours and given away here; the error lives through the call.
        unsafe { check(sys::TRITONBACKEND_ResponseSend(raw, flags, error)) }
    }

    fn set_parameter(&mut self, name: &str, value: &ParameterValue) -> Result<()> {
        let name = c_string(name);
        // SAFETY: the response is ours; name and value are copied by the callee.
        unsafe {
            check(match value {
                ParameterValue::Text(text) => {
                    sys::TRITONBACKEND_ResponseSetStringParameter(self.0, name.as_ptr(), c_string(text).as_ptr())
                }
                ParameterValue::Int(value) => sys::TRITONBACKEND_ResponseSetIntParameter(self.0, name.as_ptr(), *value),
                ParameterValue::Bool(value) => {
                    sys::TRITONBACKEND_ResponseSetBoolParameter(self.0, name.as_ptr(), *value)
                }
                ParameterValue::Double(value) => {
                    sys::TRITONBACKEND_ResponseSetDoubleParameter(self.0, name.as_ptr(), *value)
                }
            })
        }
    }

    fn add_output(&mut self, tensor: &OutputTensor) -> Result<()> {
        tensor.check_size()?;
        let name = c_string(&tensor.name);
        let (shape, rank) = (tensor.shape.as_ptr(), tensor.shape.len() as u32);
        let (mut memory, mut device) = (sys::TRITONSERVER_MEMORY_CPU, 0);
        let size = tensor.bytes.len();
        // SAFETY: the response is ours; output and buffer are borrowed from it. The buffer has the size that was asked
        // for and is written only if the server says that it is host memory.
        unsafe {
            let output = read(ptr::null_mut(), |out| {
                sys::TRITONBACKEND_ResponseOutput(self.0, out, name.as_ptr(), tensor.dtype.code(), shape, rank)
            })?;
            let buffer = read(ptr::null_mut(), |out| {
                sys::TRITONBACKEND_OutputBuffer(output, out, size as u64, &mut memory, &mut device)
            })?;
            if memory == sys::TRITONSERVER_MEMORY_GPU {
                let message = format!("the server gave a buffer of GPU {device} where host memory was asked for");
                return Err(Error::unsupported(message));
            }
            if size > 0 {
                ptr::copy_nonoverlapping(tensor.bytes.as_ptr(), buffer.cast(), size);
            }
        }
        Ok(())
    }
}

impl Drop for RawResponse {
    fn drop(&mut self) {
        // SAFETY: ours, as `send` gives it away without a drop. There is nobody to tell about a failure.
        let _ = unsafe { check(sys::TRITONBACKEND_ResponseDelete(self.0)) };
    }
}
