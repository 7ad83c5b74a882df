//! 8-bit floats (e4m3) with a scale for each block of a matrix, row or whole tensor.

use super::append;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::model::Section;
use half::{bf16, f16};

/// Which elements share a scale, and how scales are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8Blocks {
    pub rows: usize,
    pub cols: usize,
    pub scale: DType,
}

/// Elements that are converted together.
const RUN: usize = 128;
/// What the published models use.
const BLOCK: [usize; 2] = [128, 128];

impl Fp8Blocks {
    /// Blocks of a matrix `[rows, cols]` whose scales have the shape `scales`; `block` is that of tensors with a matrix
    /// of scales. `None`: they do not fit.
    pub fn of((rows, cols): (usize, usize), scales: &[usize], block: [usize; 2], scale: DType) -> Option<Self> {
        let (whole_rows, whole_cols) = (rows.max(1), cols.max(1));
        let is_one = scales.iter().all(|&len| len == 1);
        let (rows, cols) = match scales {
            _ if is_one => (whole_rows, whole_cols),
            [len] | [len, 1] if *len == rows => (1, whole_cols),
            [down, across] if *down == rows.div_ceil(block[0]) && *across == cols.div_ceil(block[1]) => {
                (block[0], block[1])
            }
            _ => return None,
        };
        Some(Self { rows, cols, scale })
    }

    /// Bytes of the scales of a matrix.
    pub fn scale_bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols) * self.scale.size()
    }

    /// Of all `scales` those of `row`, from the block of `col` on.
    pub fn scales_at(self, scales: &[u8], row: usize, col: usize, cols: usize) -> &[u8] {
        let first = row / self.rows * cols.div_ceil(self.cols) + col / self.cols;
        scales.get(first * self.scale.size()..).unwrap_or_default()
    }

    /// Appends the elements of a row, or of a part that begins with a block, as type `to`.
    pub fn decode(self, codes: &[u8], scales: &[u8], to: DType, out: &mut Vec<u8>) {
        out.reserve(codes.len() * to.size());
        for (codes, scale) in codes.chunks(self.cols).zip(scales.chunks_exact(self.scale.size())) {
            let scale = match (self.scale, scale) {
                (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
                (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
                (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                _ => f32::NAN,
            };
            let mut values = [0.0; RUN];
            for codes in codes.chunks(RUN) {
                let values = &mut values[..codes.len()];
                values.iter_mut().zip(codes).for_each(|(value, &code)| *value = E4M3[usize::from(code)] * scale);
                append(values, to, out);
            }
        }
    }
}

/// `weight_block_size` of a `quantization_config`.
///
/// # Errors
/// When it is no pair of numbers above 0.
pub fn block_size(quantization: &Section) -> Result<[usize; 2]> {
    let Some((key, value)) = quantization.first(&["weight_block_size"]) else { return Ok(BLOCK) };
    let wanted = || -> Error { quantization.error(key, value, "a list of two numbers from 1 to 65536") };
    let number = |at: usize| value.get(at).and_then(|number| number.as_u64()).map(|number| number as usize);
    match (number(0), number(1), value.get(2)) {
        (Some(rows @ 1..=65536), Some(cols @ 1..=65536), None) => Ok([rows, cols]),
        _ => Err(wanted()),
    }
}

/// The values of all codes: a sign, 4 bits of exponent with a bias of 7, 3 bits of mantissa; no infinities.
const E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3) & 15, code & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, mantissa) => mantissa as f32 / 512.0,
            // The exponent of an f32 has a bias of 127.
            (exponent, mantissa) => f32::from_bits((exponent as u32 + 120) << 23 | (mantissa as u32) << 20),
        };
        values[code] = if code >= 128 { -magnitude } else { magnitude };
        code += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn codes_mean_what_the_format_says() {
        let of = |code: usize| E4M3[code];
        assert_eq!([of(0x38), of(0xb8), of(0x7e), of(0xfe), of(0x08)], [1.0, -1.0, 448.0, -448.0, 0.015625]);
        assert_eq!([of(0x01), of(0x07), of(0x40), of(0x44)], [0.001953125, 0.013671875, 2.0, 3.0]);
        assert!(of(0x7f).is_nan() && of(0xff).is_nan() && of(0) == 0.0);
    }

    #[test]
    fn the_shape_of_the_scales_says_what_shares_one() {
        let of = |scales: &[usize]| Fp8Blocks::of((300, 128), scales, BLOCK, DType::F32);
        let sizes = |scales: &[usize]| of(scales).map(|blocks| (blocks.rows, blocks.cols));
        assert_eq!(sizes(&[]), Some((300, 128)));
        assert_eq!(sizes(&[1]), Some((300, 128)));
        assert_eq!(sizes(&[300, 1]), Some((1, 128)));
        assert_eq!(sizes(&[300]), Some((1, 128)));
        assert_eq!(sizes(&[3, 1]), Some((128, 128)));
        assert_eq!(sizes(&[2, 1]), None);
        assert_eq!(of(&[3, 1]).unwrap().scale_bytes(300, 128), 12);
    }

    #[test]
    fn a_block_size_is_two_numbers() {
        let read =
            |value| block_size(&Section::from_value("config.json", json!({"weight_block_size": value})).unwrap());
        assert_eq!(read(json!([64, 32])).unwrap(), [64, 32]);
        for bad in [json!([0, 1]), json!([1]), json!([1, 2, 3]), json!("128"), json!([1, -1])] {
            assert!(read(bad).unwrap_err().message().contains("weight_block_size"));
        }
    }
}
