//! How the elements of a stored tensor are written.

use super::fp8::Fp8Blocks;
use super::ggml::{E2M1_DOUBLED, GgmlType, half_power};
use crate::device::DType;
use half::{bf16, f16};
use std::fmt;

/// Type of stored elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Plain(DType),
    /// Blocks of a GGUF file, within a row.
    Blocks(GgmlType),
    /// Blocks of 32 4-bit floats, two in a byte, the scales of which are in another tensor.
    Mxfp4,
    /// 8-bit floats, the scales of which are in another tensor.
    Fp8(Fp8Blocks),
}

/// Elements and bytes of a block of [`Encoding::Mxfp4`], without its scale.
pub(in crate::model) const MXFP4_ELEMENTS: usize = 32;
pub(in crate::model) const MXFP4_BYTES: usize = 16;

impl Encoding {
    /// Type that the elements are read as where nothing else is said. Blocks are scaled sums of what was mostly
    /// bfloat16 once, and bfloat16 cannot overflow where float32 does not.
    pub fn dtype(self) -> DType {
        match self {
            Self::Plain(dtype) => dtype,
            Self::Blocks(_) | Self::Mxfp4 | Self::Fp8(_) => DType::BF16,
        }
    }

    /// Bytes of a row; `None`: there is no such row.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::Plain(dtype) => cols.checked_mul(dtype.size()),
            Self::Blocks(kind) if cols.is_multiple_of(kind.elements()) => {
                (cols / kind.elements()).checked_mul(kind.bytes())
            }
            Self::Mxfp4 => {
                cols.is_multiple_of(MXFP4_ELEMENTS).then_some(cols / MXFP4_ELEMENTS)?.checked_mul(MXFP4_BYTES)
            }
            Self::Fp8(_) => Some(cols),
            Self::Blocks(_) => None,
        }
    }

    /// Of all `scales` of a tensor whose rows have `stride_bytes` those of `row`, from byte `start` of it on.
    pub(super) fn scales_at(self, scales: &[u8], row: usize, start: usize, stride_bytes: usize) -> &[u8] {
        match self {
            Self::Mxfp4 => scales.get((row * stride_bytes + start) / MXFP4_BYTES..).unwrap_or_default(),
            Self::Fp8(blocks) => blocks.scales_at(scales, row, start, stride_bytes),
            Self::Plain(_) | Self::Blocks(_) => &[],
        }
    }

    /// Appends the elements in `bytes` as type `to`. `bytes` holds whole elements or blocks; `scales` those of the
    /// blocks, where they are in another tensor.
    pub fn decode(self, bytes: &[u8], scales: &[u8], to: DType, out: &mut Vec<u8>) {
        match self {
            Self::Plain(from) if from == to && cfg!(target_endian = "little") => out.extend_from_slice(bytes),
            Self::Plain(from) => cast(bytes, from, to, out),
            Self::Blocks(kind) => {
                let mut values = [0.0; GgmlType::MAX_ELEMENTS];
                let values = &mut values[..kind.elements()];
                for block in bytes.chunks_exact(kind.bytes()) {
                    kind.dequantise(block, values);
                    values.iter().for_each(|&value| push(value, to, out));
                }
            }
            Self::Fp8(blocks) => blocks.decode(bytes, scales, to, out),
            Self::Mxfp4 => {
                for (block, &scale) in bytes.chunks_exact(MXFP4_BYTES).zip(scales) {
                    let scale = half_power(scale);
                    let codes = block.iter().flat_map(|byte| [byte & 15, byte >> 4]);
                    codes.for_each(|code| push(E2M1_DOUBLED[usize::from(code)] * scale, to, out));
                }
            }
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Blocks(kind) => kind.fmt(f),
            Self::Mxfp4 => f.write_str("MXFP4"),
            Self::Fp8(_) => f.write_str("FP8"),
        }
    }
}

/// Appends `bytes` of type `from` as type `to`.
fn cast(bytes: &[u8], from: DType, to: DType, out: &mut Vec<u8>) {
    out.reserve(bytes.len() / from.size() * to.size());
    match from {
        DType::BF16 => bytes.chunks_exact(2).for_each(|b| push(bf16::from_le_bytes([b[0], b[1]]).to_f32(), to, out)),
        DType::F16 => bytes.chunks_exact(2).for_each(|b| push(f16::from_le_bytes([b[0], b[1]]).to_f32(), to, out)),
        DType::F32 | DType::I32 => {
            bytes.chunks_exact(4).for_each(|b| push(f32::from_le_bytes([b[0], b[1], b[2], b[3]]), to, out));
        }
    }
}

/// Appends one number as type `dtype`.
pub(in crate::model) fn push(value: f32, dtype: DType, out: &mut Vec<u8>) {
    match dtype {
        DType::F32 | DType::I32 => out.extend(value.to_ne_bytes()),
        DType::F16 => out.extend(f16::from_f32(value).to_ne_bytes()),
        DType::BF16 => out.extend(bf16::from_f32(value).to_ne_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_keep_the_value() {
        let source: Vec<u8> = [1.5_f32, -0.25].iter().flat_map(|v| v.to_le_bytes()).collect();
        for (middle, size) in [(DType::BF16, 4), (DType::F16, 4), (DType::F32, 8)] {
            let (mut cast_once, mut back) = (Vec::new(), Vec::new());
            Encoding::Plain(DType::F32).decode(&source, &[], middle, &mut cast_once);
            assert_eq!(cast_once.len(), size);
            Encoding::Plain(middle).decode(&cast_once, &[], DType::F32, &mut back);
            assert_eq!(back, source);
        }
    }
}
