//! The tensors of every role: names, types and shapes, in const tables. They feed the reading of requests, completed
//! configurations, the templates, the check of a repository and the documentation.

pub mod bls;
pub mod llm;
pub mod prompts;
pub mod text;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
    Bf16,
}

const DATA_TYPES: [(DataType, Option<usize>, &str); 14] = [
    (DataType::Bool, Some(1), "BOOL"),
    (DataType::Uint8, Some(1), "UINT8"),
    (DataType::Uint16, Some(2), "UINT16"),
    (DataType::Uint32, Some(4), "UINT32"),
    (DataType::Uint64, Some(8), "UINT64"),
    (DataType::Int8, Some(1), "INT8"),
    (DataType::Int16, Some(2), "INT16"),
    (DataType::Int32, Some(4), "INT32"),
    (DataType::Int64, Some(8), "INT64"),
    (DataType::Fp16, Some(2), "FP16"),
    (DataType::Fp32, Some(4), "FP32"),
    (DataType::Fp64, Some(8), "FP64"),
    (DataType::Bytes, None, "BYTES"),
    (DataType::Bf16, Some(2), "BF16"),
];

impl DataType {
    /// Bytes per element; none for [`DataType::Bytes`], whose elements carry their length.
    pub fn size_bytes(self) -> Option<usize> {
        self.row().1
    }

    /// Triton's name, as requests over HTTP spell it.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> &'static (DataType, Option<usize>, &'static str) {
        DATA_TYPES.iter().find(|row| row.0 == self).expect("the table has a row for every type")
    }
}

/// The type as `config.pbtxt` spells it.
pub fn config_type(dtype: DataType) -> String {
    if dtype == DataType::Bytes { "TYPE_STRING".to_owned() } else { format!("TYPE_{}", dtype.name()) }
}

/// Name, type as in `config.pbtxt`, dims, and whether the client may leave it out.
pub type Row = (&'static str, &'static str, &'static [i64], bool);
