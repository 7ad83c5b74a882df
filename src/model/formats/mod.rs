//! Checkpoint formats.

mod safetensors;

pub use self::safetensors::SafetensorsFolder;
pub(super) use self::safetensors::found_in;

use crate::device::DType;
use std::path::Path;

/// One tensor of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    pub file: &'a Path,
    pub shape: &'a [usize],
    pub dtype: DType,
    /// Little-endian elements, row-major.
    pub bytes: &'a [u8],
}
