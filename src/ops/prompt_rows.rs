//! Embeddings of a step that come from requests instead of the model's table.

use crate::device::{DType, SharedDevice, Tensor};
use crate::error::Result;
use half::{bf16, f16};

/// Rows that are uploaded at a time.
const WINDOW_ROWS: usize = 64;

/// The embedding of one token of a step.
#[derive(Clone, Copy, Debug)]
pub struct PromptRow<'a> {
    /// Which token of the step.
    pub token: usize,
    /// `[C]`.
    pub values: &'a [f32],
}

/// Memory through which rows of prompt tables reach a device. Steps that need it are not recorded: they copy from the host.
#[derive(Debug)]
pub struct PromptWindow {
    /// `[WINDOW_ROWS, C]` in the type of activations.
    rows: Tensor,
    /// `[1, WINDOW_ROWS]` I32: 0, 1, 2 …
    indices: Tensor,
}

impl PromptWindow {
    /// For embeddings of `width` values.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(device: &SharedDevice, width: usize, activation: DType) -> Result<Self> {
        let rows = Tensor::zeros(device, WINDOW_ROWS, width, activation, "rows of prompt tables")?;
        let indices = Tensor::zeros(device, 1, WINDOW_ROWS, DType::I32, "rows of prompt tables")?;
        let numbers: Vec<u8> = (0..WINDOW_ROWS as i32).flat_map(i32::to_ne_bytes).collect();
        device.upload(&indices, &numbers)?;
        Ok(Self { rows, indices })
    }

    /// Bytes of a window.
    pub fn bytes(width: usize, activation: DType) -> usize {
        WINDOW_ROWS * (width * activation.size() + DType::I32.size())
    }

    /// `out[row.token] = row.values * scale` for each of `rows`, which are in the order of their tokens.
    pub(super) fn write(&self, device: &SharedDevice, out: &Tensor, rows: &[PromptRow<'_>], scale: f32) -> Result<()> {
        let mut bytes = Vec::new();
        for run in rows.chunk_by(|row, next| next.token == row.token + 1) {
            for piece in run.chunks(WINDOW_ROWS) {
                bytes.clear();
                piece.iter().for_each(|row| encode(row.values, self.rows.dtype(), &mut bytes));
                let rows = self.rows.row_range(0, piece.len());
                device.upload(&rows, &bytes)?;
                let out = out.row_range(piece[0].token, piece.len());
                device.embed(&out, &rows, &self.indices.columns(0, piece.len()), scale)?;
            }
        }
        Ok(())
    }
}

fn encode(values: &[f32], dtype: DType, bytes: &mut Vec<u8>) {
    match dtype {
        DType::F16 => bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_ne_bytes())),
        DType::BF16 => bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_ne_bytes())),
        DType::F32 | DType::I32 => bytes.extend(values.iter().flat_map(|value| value.to_ne_bytes())),
    }
}
