//! The block types of GGUF files: 32 or 256 elements of a row that share a scale.

use half::f16;
use std::fmt;

/// Codes of the 4-bit floats of MXFP4, doubled.
pub(super) const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// A block type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// Type, id in the file, elements and bytes of a block, name.
type Row = (GgmlType, u32, usize, usize, &'static str);

const TYPES: [Row; 13] = [
    (GgmlType::Q4_0, 2, 32, 18, "Q4_0"),
    (GgmlType::Q4_1, 3, 32, 20, "Q4_1"),
    (GgmlType::Q5_0, 6, 32, 22, "Q5_0"),
    (GgmlType::Q5_1, 7, 32, 24, "Q5_1"),
    (GgmlType::Q8_0, 8, 32, 34, "Q8_0"),
    (GgmlType::Q2K, 10, 256, 84, "Q2_K"),
    (GgmlType::Q3K, 11, 256, 110, "Q3_K"),
    (GgmlType::Q4K, 12, 256, 144, "Q4_K"),
    (GgmlType::Q5K, 13, 256, 176, "Q5_K"),
    (GgmlType::Q6K, 14, 256, 210, "Q6_K"),
    (GgmlType::Iq4Nl, 20, 32, 18, "IQ4_NL"),
    (GgmlType::Iq4Xs, 23, 256, 136, "IQ4_XS"),
    (GgmlType::Mxfp4, 39, 32, 17, "MXFP4"),
];

/// Ids that files may have and that are not read, for the message.
const UNSUPPORTED: [(u32, &str); 18] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// What the codes of IQ4_NL and IQ4_XS stand for.
const IQ4_VALUES: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

impl GgmlType {
    /// Elements of the largest block.
    pub const MAX_ELEMENTS: usize = 256;

    /// The type with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// "Q4_0, Q4_1, …", for messages.
    pub fn supported() -> String {
        TYPES.map(|row| row.4).join(", ")
    }

    /// "IQ4_XS (23)" or "99", for messages.
    pub fn name_of_id(id: u32) -> String {
        let known = UNSUPPORTED.iter().find(|row| row.0 == id);
        known.map_or_else(|| id.to_string(), |(id, name)| format!("{name} ({id})"))
    }

    /// Elements of a block.
    pub fn elements(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.row().3
    }

    /// The elements of one block of [`GgmlType::bytes`] bytes.
    pub fn dequantise(self, block: &[u8], out: &mut [f32]) {
        match self {
            Self::Q4_0 => {
                let scale = half(block, 0);
                nibbles(&block[2..], out, |q| (f32::from(q) - 8.0) * scale);
            }
            Self::Q4_1 => {
                let (scale, minimum) = (half(block, 0), half(block, 2));
                nibbles(&block[4..], out, |q| f32::from(q) * scale + minimum);
            }
            Self::Q5_0 => {
                let scale = half(block, 0);
                nibbles(&block[6..], out, f32::from);
                with_fifth_bit(&block[2..6], out, |q| (q - 16.0) * scale);
            }
            Self::Q5_1 => {
                let (scale, minimum) = (half(block, 0), half(block, 2));
                nibbles(&block[8..], out, f32::from);
                with_fifth_bit(&block[4..8], out, |q| q * scale + minimum);
            }
            Self::Q8_0 => {
                let scale = half(block, 0);
                out.iter_mut().zip(&block[2..]).for_each(|(out, &q)| *out = f32::from(q as i8) * scale);
            }
            Self::Q2K => q2_k(block, out),
            Self::Q3K => q3_k(block, out),
            Self::Q4K => q4_k(block, &[], &block[16..], out),
            Self::Q5K => q4_k(block, &block[16..48], &block[48..], out),
            Self::Q6K => q6_k(block, out),
            Self::Iq4Nl => {
                let scale = half(block, 0);
                nibbles(&block[2..], out, |q| IQ4_VALUES[usize::from(q)] * scale);
            }
            Self::Iq4Xs => iq4_xs(block, out),
            Self::Mxfp4 => {
                let scale = half_power(block[0]);
                nibbles(&block[1..], out, |q| E2M1_DOUBLED[usize::from(q)] * scale);
            }
        }
    }

    fn row(self) -> &'static Row {
        &TYPES[self as usize]
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().4)
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `2^(e - 128)`: half of the scale that the byte stands for, since the codes are doubled.
pub(super) fn half_power(e: u8) -> f32 {
    match e {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        e => f32::from_bits((u32::from(e) - 1) << 23),
    }
}

/// 16 bytes: the low nibbles are the first 16 elements, the high ones the others.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

/// Bit `i` of four bytes is worth 16 in element `i`.
fn with_fifth_bit(mask: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    for (i, out) in out.iter_mut().enumerate() {
        let bit = mask[i / 8] >> (i % 8) & 1;
        *out = value(*out + f32::from(bit * 16));
    }
}

/// Layout: 16 bytes of scale (low nibble) and minimum (high), one for 16 elements; 64 bytes of 2-bit codes; d; dmin.
/// 32 bytes hold 128 elements: bits 0 and 1 the first 32, and so on.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, minimum) = (d * f32::from(block[group] & 15), dmin * f32::from(block[group] >> 4));
        let (codes, shift) = two_bit_run(&block[16..80], group);
        out.iter_mut().zip(codes).for_each(|(out, &q)| *out = scale * f32::from(q >> shift & 3) - minimum);
    }
}

/// Layout: 32 bytes of high bits, 64 bytes of 2-bit codes as in [`q2_k`], 12 bytes of 16 scales of 6 bits, d.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let d = half(block, 108);
    let (packed_low, packed_high) = block[96..108].split_at(8);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = packed_low[group % 8] >> (group / 8 * 4) & 15;
        let high = packed_high[group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (codes, shift) = two_bit_run(&block[32..96], group);
        let mask = &block[group % 2 * 16..];
        for ((out, &q), &mask) in out.iter_mut().zip(codes).zip(mask) {
            let offset = if mask >> (group / 2) & 1 == 1 { 0.0 } else { 4.0 };
            *out = scale * (f32::from(q >> shift & 3) - offset);
        }
    }
}

/// The 16 bytes with the 2-bit codes of a group of 16 elements, and where in them they are.
fn two_bit_run(codes: &[u8], group: usize) -> (&[u8], usize) {
    let (run, in_run) = (group / 8, group % 8);
    let start = run * 32 + in_run % 2 * 16;
    (&codes[start..start + 16], in_run / 2 * 2)
}

/// Layout: d, dmin, 12 bytes of 8 scales and minima of 6 bits, for Q5_K 32 bytes of fifth bits (bit `k` of byte `j`:
/// element `j` of sub-block `k`), 128 bytes of nibbles: 32 bytes hold two sub-blocks, the low nibbles the first.
fn q4_k(block: &[u8], fifth: &[u8], codes: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let packed = &block[4..16];
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = match sub {
            0..4 => (packed[sub] & 63, packed[4 + sub] & 63),
            _ => (packed[4 + sub] & 15 | packed[sub - 4] >> 6 << 4, packed[4 + sub] >> 4 | packed[sub] >> 6 << 4),
        };
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let low = codes[sub / 2 * 32..].iter().map(|byte| byte >> (sub % 2 * 4) & 15);
        let value = |code: u8| scale * f32::from(code) - minimum;
        if fifth.is_empty() {
            out.iter_mut().zip(low).for_each(|(out, low)| *out = value(low));
        } else {
            let codes = low.zip(fifth).map(|(low, high)| low | (high >> sub & 1) << 4);
            out.iter_mut().zip(codes).for_each(|(out, code)| *out = value(code));
        }
    }
}

/// Layout: 128 bytes of low nibbles, 64 of 2-bit high parts, 16 signed scales, d. A half of the block (128 elements)
/// has 64 bytes of nibbles (the low ones are the first 64 elements) and 32 bytes of high parts, as in [`q2_k`].
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = half(block, 208);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(block[192 + group] as i8);
        let (run, in_run) = (group / 8, group % 8);
        let low = &block[run * 64 + in_run % 4 * 16..];
        let (high, shift) = two_bit_run(&block[128..192], group);
        for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
            let code = low >> (in_run / 4 * 4) & 15 | (high >> shift & 3) << 4;
            *out = scale * (f32::from(code) - 32.0);
        }
    }
}

/// Layout: d, two bytes with the upper 2 bits of 8 scales, four with the lower 4 (the low nibble first), 16 bytes of
/// nibbles for each 32 elements.
fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (d, upper) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let low = block[4 + sub / 2] >> (sub % 2 * 4) & 15;
        let high = (upper >> (2 * sub) & 3) as u8;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        nibbles(&block[8 + sub * 16..], out, |q| IQ4_VALUES[usize::from(q)] * scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_types() {
        for row in TYPES {
            assert_eq!((row.0.row().1, GgmlType::from_id(row.1)), (row.1, Some(row.0)));
        }
        assert_eq!(GgmlType::from_id(22), None);
        assert_eq!(GgmlType::name_of_id(22), "IQ2_S (22)");
    }

    #[test]
    fn a_scale_of_one_in_mxfp4_is_code_127() {
        assert_eq!(
            [0, 1, 2, 127, 128].map(half_power).map(|x| x * 2.0),
            [2.0_f32.powi(-127), 2.0_f32.powi(-126), 2.0_f32.powi(-125), 1.0, 2.0]
        );
    }
}
