//! Checkpoint formats. Whatever the format, tensors have the names and layouts of the model's Hugging Face folder, so
//! that families know nothing of formats.

mod encoding;
mod fp8;
mod ggml;
pub mod gguf;
mod native;
mod open;
mod pickle;
mod safetensors;
mod stored;
mod trtllm;

pub use self::encoding::Encoding;
pub(super) use self::encoding::append;
pub use self::ggml::GgmlType;
pub use self::open::{OpenedCheckpoint, WeightPlaces, gguf_file, open};
pub use self::pickle::PickleFolder;
pub use self::safetensors::SafetensorsFolder;
pub(super) use self::safetensors::found_in;
pub use self::stored::{MappedBytes, RowOrder, StoredTensor};
pub use self::trtllm::EngineLimits;

use crate::device::DType;
use crate::error::Result;
use std::fmt;

/// The tensors of a checkpoint under the names of its Hugging Face folder.
pub trait TensorStore: fmt::Debug + Send + Sync {
    /// The names of all tensors, in no order.
    fn names(&self) -> Vec<&str>;

    /// One tensor; `None`: the checkpoint has none of this name.
    ///
    /// # Errors
    /// When its type is not supported.
    fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>>;

    /// Type of the largest tensor as it is read; `None`: not one that is supported.
    fn main_dtype(&self) -> Option<DType>;
}
