//! The tensors of every role: names, types and shapes, in const tables. They feed the reading of requests, completed
//! configurations, the templates, the check of a repository and the documentation.

pub mod bls;
pub mod llm;
mod old;
pub mod prompts;
pub mod text;

pub use old::OldVersion;

use crate::config::ModelRole;

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

/// The tensors of a role.
pub struct Known {
    /// Other names of the same tensors included.
    pub inputs: Vec<KnownTensor>,
    pub outputs: Vec<KnownTensor>,
    /// Inputs without which there is no request: one of each list.
    pub needed: Vec<Vec<&'static str>>,
}

/// Name and type of a tensor.
pub struct KnownTensor {
    pub name: &'static str,
    /// As in `config.pbtxt`.
    pub data_type: String,
}

/// The tensors that a role takes and gives.
pub fn of_role(role: ModelRole) -> Known {
    match role {
        ModelRole::Llm => known_llm(),
        ModelRole::Bls => Known {
            inputs: bls::INPUTS.iter().map(|row| named(row.name, row.data_type)).collect(),
            outputs: bls::outputs().map(|(name, data_type, _)| KnownTensor { name, data_type }).collect(),
            needed: bls::INPUTS.iter().filter(|row| bls::mandatory(row)).map(|row| vec![row.name]).collect(),
        },
        ModelRole::Preprocessing => {
            let mut known = known(text::PREPROCESSING_INPUTS, text::PREPROCESSING_OUTPUTS);
            known.inputs.extend(text::VISION_INPUTS.iter().map(|row| named(row.0, row.1)));
            known.outputs.extend(text::VISION_OUTPUTS.iter().map(|row| named(row.0, row.1)));
            known
        }
        ModelRole::Postprocessing => {
            let mut known = known(text::POSTPROCESSING_INPUTS, text::POSTPROCESSING_OUTPUTS);
            known.inputs.extend(text::HANDED_ON.iter().map(|(row, _)| named(row.0, row.1)));
            known.outputs.extend(text::HANDED_ON.iter().map(|(row, name)| named(name, row.1)));
            known
        }
        ModelRole::LlmApi => known(prompts::LLMAPI_INPUTS, prompts::LLMAPI_OUTPUTS),
        ModelRole::Vllm => known(prompts::VLLM_INPUTS, prompts::VLLM_OUTPUTS),
    }
}

fn known_llm() -> Known {
    let names = |row: &'static llm::InputRow| {
        let own = std::iter::once(row.name).chain(row.aliases.iter().copied());
        own.map(|name| KnownTensor { name, data_type: config_type(row.dtype) })
    };
    let controls = llm::SEQUENCE_CONTROLS.map(|name| named(name, "TYPE_INT32"));
    Known {
        inputs: llm::INPUTS.iter().flat_map(names).chain(controls).collect(),
        outputs: llm::OUTPUTS
            .iter()
            .map(|row| KnownTensor { name: row.name, data_type: config_type(row.dtype) })
            .collect(),
        needed: vec![vec!["input_ids", "text_input"], vec!["request_output_len", "max_tokens"]],
    }
}

fn known(inputs: &'static [Row], outputs: &'static [Row]) -> Known {
    let all = |rows: &'static [Row]| rows.iter().map(|row| named(row.0, row.1)).collect();
    let needed = inputs.iter().filter(|row| !row.3).map(|row| vec![row.0]).collect();
    Known { inputs: all(inputs), outputs: all(outputs), needed }
}

fn named(name: &'static str, data_type: &str) -> KnownTensor {
    KnownTensor { name, data_type: data_type.to_owned() }
}
