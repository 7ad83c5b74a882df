//! Tensors as Triton describes them.

use std::borrow::Cow;
use std::fmt;

use super::sys;
use crate::error::{Error, Result};
pub use crate::tensors::DataType;

const CODES: [(DataType, sys::TRITONSERVER_DataType); 14] = [
    (DataType::Bool, sys::TRITONSERVER_TYPE_BOOL),
    (DataType::Uint8, sys::TRITONSERVER_TYPE_UINT8),
    (DataType::Uint16, sys::TRITONSERVER_TYPE_UINT16),
    (DataType::Uint32, sys::TRITONSERVER_TYPE_UINT32),
    (DataType::Uint64, sys::TRITONSERVER_TYPE_UINT64),
    (DataType::Int8, sys::TRITONSERVER_TYPE_INT8),
    (DataType::Int16, sys::TRITONSERVER_TYPE_INT16),
    (DataType::Int32, sys::TRITONSERVER_TYPE_INT32),
    (DataType::Int64, sys::TRITONSERVER_TYPE_INT64),
    (DataType::Fp16, sys::TRITONSERVER_TYPE_FP16),
    (DataType::Fp32, sys::TRITONSERVER_TYPE_FP32),
    (DataType::Fp64, sys::TRITONSERVER_TYPE_FP64),
    (DataType::Bytes, sys::TRITONSERVER_TYPE_BYTES),
    (DataType::Bf16, sys::TRITONSERVER_TYPE_BF16),
];

impl DataType {
    pub(super) fn code(self) -> sys::TRITONSERVER_DataType {
        let row = CODES.iter().find(|row| row.0 == self);
        row.expect("the table has a row for every type").1
    }

    pub(super) fn from_code(code: sys::TRITONSERVER_DataType) -> Result<Self> {
        let row = CODES.iter().find(|row| row.1 == code);
        row.map(|row| row.0).ok_or_else(|| Error::unsupported(format!("tensor data type {code} is unknown")))
    }
}

/// One input tensor of a request, with the batch dimension if the model has one.
#[derive(Clone)]
pub struct Input<'a> {
    pub name: &'a str,
    pub dtype: DataType,
    pub shape: &'a [i64],
    /// Row-major elements, little-endian. Copied only where the server holds the tensor in several pieces or on a GPU.
    pub bytes: Cow<'a, [u8]>,
}

impl Input<'_> {
    /// The number of elements by the shape.
    pub fn element_count(&self) -> usize {
        self.shape.iter().map(|&size| size.max(0) as usize).product()
    }
}

/// Without the elements: what a client sent is not for the log.
impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, dtype, shape, bytes } = self;
        write!(f, "{name} {} {shape:?} ({} bytes)", dtype.name(), bytes.len())
    }
}

/// The elements of a BYTES tensor: for each a little-endian u32 length, then the bytes.
///
/// # Errors
/// InvalidArg naming the tensor where the lengths do not fit the data.
pub fn decode_strings<'a>(name: &str, mut bytes: &'a [u8]) -> Result<Vec<&'a [u8]>> {
    let mut elements = Vec::new();
    while !bytes.is_empty() {
        let rest = bytes.split_first_chunk::<4>().and_then(|(length, rest)| {
            let length = u32::from_le_bytes(*length) as usize;
            (length <= rest.len()).then(|| rest.split_at(length))
        });
        let Some((element, rest)) = rest else {
            let index = elements.len();
            return Err(Error::invalid(format!("element {index} of BYTES tensor `{name}` is cut off")));
        };
        elements.push(element);
        bytes = rest;
    }
    Ok(elements)
}

/// The inverse of [`decode_strings`].
pub fn encode_strings<T: AsRef<[u8]>>(elements: &[T]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(elements.iter().map(|element| element.as_ref().len() + 4).sum());
    for element in elements {
        bytes.extend_from_slice(&(element.as_ref().len() as u32).to_le_bytes());
        bytes.extend_from_slice(element.as_ref());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_survive_the_round_trip() {
        let bytes = encode_strings(&["", "hello", "\u{20ac}"]);
        assert_eq!(decode_strings("x", &bytes).unwrap(), [&b""[..], b"hello", "\u{20ac}".as_bytes()]);
        assert!(decode_strings("x", &[]).unwrap().is_empty());
    }

    #[test]
    fn a_cut_off_string_names_tensor_and_element() {
        for bad in [&[1, 0][..], &[1, 0, 0, 0, b'a', 9, 0, 0, 0, b'b']] {
            let error = decode_strings("text_input", bad).unwrap_err();
            assert!(error.message().contains("`text_input`"), "{error}");
        }
    }
}
