//! `out = x · weightᵀ + bias`.

use super::pool::Pool;
use super::view::{Element, Matrix, with_element};
use crate::device::Tensor;
use crate::error::Result;

pub(super) trait ToF32: Element {
    fn to_f32(self) -> f32;
}
impl ToF32 for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}
impl ToF32 for half::f16 {
    fn to_f32(self) -> f32 {
        half::f16::to_f32_const(self)
    }
}
impl ToF32 for half::bf16 {
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

pub(super) fn linear(
    pool: &Pool,
    out: Matrix<'_, f32>,
    x: Matrix<'_, f32>,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<()> {
    let bias_values = match bias {
        None => vec![0.0; out.cols],
        Some(bias) => with_element!(bias.dtype(), "linear: bias", E => {
            let bias = Matrix::<E>::of(bias, "linear: bias")?;
            // SAFETY: parameters are not written while a model runs.
            Ok::<Vec<f32>, crate::error::Error>(unsafe { bias.row(0) }.iter().map(|&v| v.to_f32()).collect())
        })?,
    };
    with_element!(weight.dtype(), "linear: weight", E => {
        let weight = Matrix::<E>::of(weight, "linear: weight")?;
        const CHUNK: usize = 16;
        pool.run(weight.rows.div_ceil(CHUNK), &|task| {
            let mut row = vec![0f32; weight.cols];
            for (n, bias) in bias_values.iter().enumerate().skip(task * CHUNK).take(CHUNK) {
                // SAFETY: parameters are not written while a model runs.
                let w = unsafe { weight.row(n) };
                for (to, from) in row.iter_mut().zip(w) {
                    *to = from.to_f32();
                }
                for t in 0..x.rows {
                    // SAFETY: nobody writes to `x` here; element (t, n) of `out` is this task's alone.
                    unsafe { *out.pointer(t).add(n) = dot(x.row(t), &row) + bias };
                }
            }
        })
    })
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..16 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + tail
}
