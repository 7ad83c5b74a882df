//! How the elements of a stored tensor are written.

use super::fp8::Fp8Blocks;
use super::ggml::{E2M1_DOUBLED, GgmlType, half_power};
use crate::device::DType;
use half::slice::HalfFloatSliceExt;
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
                    append(values, to, out);
                }
            }
            Self::Fp8(blocks) => blocks.decode(bytes, scales, to, out),
            Self::Mxfp4 => {
                for (block, &scale) in bytes.chunks_exact(MXFP4_BYTES).zip(scales) {
                    let scale = half_power(scale);
                    let mut values = [0.0; MXFP4_ELEMENTS];
                    for (pair, byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(block) {
                        *pair = [byte & 15, byte >> 4].map(|code| E2M1_DOUBLED[usize::from(code)] * scale);
                    }
                    append(&values, to, out);
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

/// Numbers that are converted together, in vector registers.
const RUN: usize = 256;

/// Appends `bytes` of type `from` as type `to`.
fn cast(bytes: &[u8], from: DType, to: DType, out: &mut Vec<u8>) {
    let (mut values, mut halves) = ([0.0; RUN], [f16::ZERO; RUN]);
    for bytes in bytes.chunks(RUN * from.size()) {
        let values = &mut values[..bytes.len() / from.size()];
        match from {
            DType::BF16 => {
                let pairs = values.iter_mut().zip(bytes.as_chunks().0);
                pairs.for_each(|(value, &b)| *value = bf16::from_le_bytes(b).to_f32());
            }
            DType::F16 => {
                let halves = &mut halves[..values.len()];
                halves.iter_mut().zip(bytes.as_chunks().0).for_each(|(half, &b)| *half = f16::from_le_bytes(b));
                halves.convert_to_f32_slice(values);
            }
            DType::F32 | DType::I32 => {
                values.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, &b)| *value = f32::from_le_bytes(b));
            }
        }
        append(values, to, out);
    }
}

/// Appends numbers as type `dtype`.
pub(in crate::model) fn append(values: &[f32], dtype: DType, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + values.len() * dtype.size(), 0);
    let out = &mut out[start..];
    match dtype {
        DType::F32 | DType::I32 => {
            out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_ne_bytes());
        }
        DType::F16 => {
            let mut halves = [f16::ZERO; RUN];
            for (out, values) in out.chunks_mut(RUN * 2).zip(values.chunks(RUN)) {
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                out.as_chunks_mut().0.iter_mut().zip(halves).for_each(|(out, half)| *out = half.to_ne_bytes());
            }
        }
        DType::BF16 => {
            let pairs = out.as_chunks_mut().0.iter_mut().zip(values);
            pairs.for_each(|(out, &value)| *out = bf16_bits(value).to_ne_bytes());
        }
    }
}

/// [`bf16::from_f32`] without branches, so that it is done for many numbers at once.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    if value.is_nan() { quiet_nan } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_the_nearest_in_runs_of_any_length() {
        let special = [0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, 65519.0];
        // Every half-way point between two neighbours, and what is beside it.
        let near = (0x3f80_7fff_u32..0x3f80_8002).chain(0x3f81_7fff..0x3f81_8002).chain(0x3f80_0fff..0x3f80_3002);
        let values: Vec<f32> = special.into_iter().chain(near.map(f32::from_bits)).collect();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let mut together = vec![7];
            append(&values, dtype, &mut together);
            let one = |&value: &f32| match dtype {
                DType::BF16 => bf16::from_f32(value).to_ne_bytes().to_vec(),
                DType::F16 => f16::from_f32(value).to_ne_bytes().to_vec(),
                _ => value.to_ne_bytes().to_vec(),
            };
            assert_eq!(together, [7].into_iter().chain(values.iter().flat_map(one)).collect::<Vec<_>>(), "{dtype}");
        }
    }

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
