//! Tensors by name, decoded: what the model roles compute with.

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::triton::{DataType, Input, OutputTensor, decode_strings, encode_strings};

/// A named tensor in host memory, row-major, with the batch dimension if the model has one.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<i64>,
    pub data: TensorData,
}

macro_rules! tensor_data {
    ($(($variant:ident, $element:ty, $dtype:ident)),* $(,)?) => {
        /// The elements of a tensor, by type.
        #[derive(Clone, Debug, PartialEq)]
        pub enum TensorData {
            Bool(Vec<bool>),
            Bytes(Vec<Vec<u8>>),
            $($variant(Vec<$element>),)*
        }

        impl TensorData {
            /// The element type on the wire.
            pub fn dtype(&self) -> DataType {
                match self {
                    Self::Bool(_) => DataType::Bool,
                    Self::Bytes(_) => DataType::Bytes,
                    $(Self::$variant(_) => DataType::$dtype,)*
                }
            }

            /// The number of elements.
            pub fn len(&self) -> usize {
                match self {
                    Self::Bool(values) => values.len(),
                    Self::Bytes(values) => values.len(),
                    $(Self::$variant(values) => values.len(),)*
                }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The wire format: little-endian elements; BYTES elements follow their length as u32.
            pub fn to_bytes(&self) -> Vec<u8> {
                match self {
                    Self::Bool(values) => values.iter().map(|&value| value as u8).collect(),
                    Self::Bytes(values) => encode_strings(values),
                    $(Self::$variant(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),)*
                }
            }

            /// The inverse of [`Self::to_bytes`]; the length of `bytes` has been checked for types of fixed size.
            fn decode(name: &str, dtype: DataType, bytes: &[u8]) -> Result<Self> {
                Ok(match dtype {
                    DataType::Bool => Self::Bool(bytes.iter().map(|&byte| byte != 0).collect()),
                    DataType::Bytes => {
                        Self::Bytes(decode_strings(name, bytes)?.into_iter().map(<[u8]>::to_vec).collect())
                    }
                    $(DataType::$dtype => {
                        let (elements, _) = bytes.as_chunks::<{ size_of::<$element>() }>();
                        Self::$variant(elements.iter().map(|&element| <$element>::from_le_bytes(element)).collect())
                    })*
                })
            }
        }
    };
}

tensor_data!(
    (U8, u8, Uint8),
    (U16, u16, Uint16),
    (U32, u32, Uint32),
    (U64, u64, Uint64),
    (I8, i8, Int8),
    (I16, i16, Int16),
    (I32, i32, Int32),
    (I64, i64, Int64),
    (F16, f16, Fp16),
    (BF16, bf16, Bf16),
    (F32, f32, Fp32),
    (F64, f64, Fp64),
);

impl NamedTensor {
    /// A tensor of these elements; `shape` says as many.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<i64>>, data: TensorData) -> Self {
        Self { name: name.into(), shape: shape.into(), data }
    }

    /// Decodes a tensor of the declared type.
    ///
    /// # Errors
    /// InvalidArg naming the tensor if the bytes are not those of that type and shape.
    pub fn from_bytes(name: &str, dtype: DataType, shape: &[i64], bytes: &[u8]) -> Result<Self> {
        let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(usize::try_from(dim).ok()?));
        let count = count.ok_or_else(|| Error::invalid(format!("tensor `{name}` has an invalid shape {shape:?}")))?;
        let expected = dtype.size_bytes().map(|size| count.saturating_mul(size));
        if let Some(expected) = expected.filter(|&expected| expected != bytes.len()) {
            let (dtype, got) = (dtype.name(), bytes.len());
            return Err(Error::invalid(format!(
                "tensor `{name}` of type {dtype} and shape {shape:?} takes {expected} bytes, got {got}"
            )));
        }
        let data = TensorData::decode(name, dtype, bytes)?;
        if data.len() != count {
            let got = data.len();
            return Err(Error::invalid(format!(
                "tensor `{name}` of shape {shape:?} has {count} elements, got {got} strings"
            )));
        }
        Ok(Self::new(name, shape, data))
    }

    /// The elements as INT32; other whole-number types (UINT32 of old repositories) keep their values.
    ///
    /// # Errors
    /// InvalidArg naming the tensor for other types and for values beyond the range.
    pub fn to_i32(&self) -> Result<Vec<i32>> {
        match &self.data {
            TensorData::I32(values) => Ok(values.clone()),
            _ => self.integers()?.map(|v| i32::try_from(v).map_err(|_| self.out_of_range(v, "INT32"))).collect(),
        }
    }

    /// INT32 becomes UINT32 with the same bytes; other types stay.
    pub fn make_unsigned(&mut self) {
        if let TensorData::I32(values) = &self.data {
            self.data = TensorData::U32(values.iter().map(|&value| value as u32).collect());
        }
    }

    /// The elements as UINT64; other whole-number types keep their values.
    ///
    /// # Errors
    /// As for [`Self::to_i32`].
    pub fn to_u64(&self) -> Result<Vec<u64>> {
        self.integers()?.map(|value| u64::try_from(value).map_err(|_| self.out_of_range(value, "UINT64"))).collect()
    }

    /// The elements as FP32, rounded if they are FP64.
    ///
    /// # Errors
    /// InvalidArg naming the tensor for types that are not floating-point.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match &self.data {
            TensorData::F32(values) => Ok(values.clone()),
            TensorData::F16(values) => Ok(values.iter().map(|value| value.to_f32()).collect()),
            TensorData::BF16(values) => Ok(values.iter().map(|value| value.to_f32()).collect()),
            TensorData::F64(values) => Ok(values.iter().map(|&value| value as f32).collect()),
            _ => Err(self.wrong_type("floating-point numbers")),
        }
    }

    /// The elements as BOOL; of whole numbers, 0 and 1 are taken.
    ///
    /// # Errors
    /// As for [`Self::to_i32`].
    pub fn to_bool(&self) -> Result<Vec<bool>> {
        let as_bool = |value| match value {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.out_of_range(value, "BOOL")),
        };
        self.integers()?.map(as_bool).collect()
    }

    /// The elements as text.
    ///
    /// # Errors
    /// InvalidArg naming the tensor for other types than BYTES and for text that is not UTF-8.
    pub fn to_strings(&self) -> Result<Vec<&str>> {
        let TensorData::Bytes(values) = &self.data else { return Err(self.wrong_type("strings")) };
        let text = |(index, bytes)| {
            std::str::from_utf8(bytes).map_err(|error| {
                let name = &self.name;
                Error::invalid(format!("element {index} of tensor `{name}` is not valid UTF-8: {error}"))
            })
        };
        values.iter().map(Vec::as_slice).enumerate().map(text).collect()
    }

    /// Number of rows: the first dimension; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().map_or(1, |&rows| rows.max(0) as usize)
    }

    /// The elements of a whole-number type; flags are 0 and 1.
    fn integers(&self) -> Result<Box<dyn Iterator<Item = i128> + '_>> {
        Ok(match &self.data {
            TensorData::Bool(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            TensorData::U8(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            TensorData::U16(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            TensorData::U32(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            TensorData::U64(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            TensorData::I8(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            TensorData::I16(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            TensorData::I32(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            TensorData::I64(values) => Box::new(values.iter().map(|&value| i128::from(value))),
            _ => return Err(self.wrong_type("whole numbers")),
        })
    }

    fn wrong_type(&self, expected: &str) -> Error {
        let (name, got) = (&self.name, self.data.dtype().name());
        Error::invalid(format!("tensor `{name}` must hold {expected}, got type {got}"))
    }

    fn out_of_range(&self, value: i128, dtype: &str) -> Error {
        Error::invalid(format!("tensor `{}` has the value {value}, beyond the range of {dtype}", self.name))
    }
}

impl TryFrom<&Input<'_>> for NamedTensor {
    type Error = Error;

    fn try_from(input: &Input) -> Result<Self> {
        Self::from_bytes(input.name, input.dtype, input.shape, &input.bytes)
    }
}

impl From<NamedTensor> for OutputTensor {
    fn from(tensor: NamedTensor) -> Self {
        let (dtype, bytes) = (tensor.data.dtype(), tensor.data.to_bytes());
        Self { name: tensor.name.into(), dtype, shape: tensor.shape, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(dtype: DataType, shape: &[i64], bytes: &[u8]) -> Result<NamedTensor> {
        NamedTensor::from_bytes("x", dtype, shape, bytes)
    }

    #[test]
    fn every_type_survives_the_round_trip() {
        let cases = [
            (TensorData::Bool(vec![true, false]), vec![1, 0]),
            (TensorData::U8(vec![1, 255]), vec![1, 255]),
            (TensorData::I16(vec![-2, 3]), vec![0xFE, 0xFF, 3, 0]),
            (TensorData::I32(vec![-1, 2]), vec![255, 255, 255, 255, 2, 0, 0, 0]),
            (TensorData::U64(vec![1, 0]), [[1, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat()),
            (TensorData::F32(vec![1.0, -2.0]), vec![0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0]),
            (TensorData::F16(vec![f16::ONE, f16::ZERO]), vec![0, 0x3C, 0, 0]),
            (TensorData::Bytes(vec![b"hi".to_vec(), vec![]]), vec![2, 0, 0, 0, b'h', b'i', 0, 0, 0, 0]),
        ];
        for (data, bytes) in cases {
            assert_eq!(data.to_bytes(), bytes);
            assert_eq!(decode(data.dtype(), &[2, 1], &bytes).unwrap().data, data);
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_by_name() {
        for (dtype, shape, bytes) in [
            (DataType::Int32, &[2][..], &[0u8; 7][..]),
            (DataType::Int32, &[-1], &[0; 4]),
            (DataType::Int32, &[i64::MAX, i64::MAX], &[0; 4]),
            (DataType::Bool, &[0], &[0]),
            (DataType::Bytes, &[2], &[0, 0, 0, 0]),
            (DataType::Bytes, &[1], &[9, 0, 0, 0, 1]),
        ] {
            let error = decode(dtype, shape, bytes).unwrap_err();
            assert!(error.message().contains("`x`"), "{error}");
        }
    }

    #[test]
    fn whole_numbers_keep_their_values_within_the_range() {
        let tensor = |data| NamedTensor::new("end_id", [1], data);
        assert_eq!(tensor(TensorData::U32(vec![50256])).to_i32().unwrap(), [50256]);
        assert_eq!(tensor(TensorData::I64(vec![-1])).to_i32().unwrap(), [-1]);
        assert_eq!(tensor(TensorData::I32(vec![7])).to_u64().unwrap(), [7]);
        let error = tensor(TensorData::U32(vec![u32::MAX])).to_i32().unwrap_err();
        assert_eq!(error.message(), "tensor `end_id` has the value 4294967295, beyond the range of INT32");
        assert!(tensor(TensorData::I32(vec![-7])).to_u64().is_err());
        assert!(tensor(TensorData::F32(vec![1.0])).to_i32().unwrap_err().message().contains("FP32"));
    }

    #[test]
    fn flags_come_as_bool_or_as_zero_and_one() {
        let tensor = |data| NamedTensor::new("early_stopping", [1], data);
        assert_eq!(tensor(TensorData::Bool(vec![true])).to_bool().unwrap(), [true]);
        assert_eq!(tensor(TensorData::I32(vec![0])).to_bool().unwrap(), [false]);
        assert_eq!(tensor(TensorData::Bool(vec![true])).to_i32().unwrap(), [1]);
        assert!(tensor(TensorData::I32(vec![2])).to_bool().is_err());
    }

    #[test]
    fn text_must_be_utf8() {
        let tensor = NamedTensor::new("QUERY", [2], TensorData::Bytes(vec![b"ok".to_vec(), vec![0xFF]]));
        let error = tensor.to_strings().unwrap_err();
        assert!(error.message().starts_with("element 1 of tensor `QUERY` is not valid UTF-8"), "{error}");
    }
}
