//! Memory that frees itself, and 2-D views of it.

use super::SharedDevice;
use crate::error::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F16,
    BF16,
    I32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::I32 => "int32",
        })
    }
}

/// An address range on a device. Only a number: it owns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBuffer {
    /// Host pointer or device pointer.
    pub addr: u64,
    pub bytes: usize,
}

/// Device memory, returned when the last user is gone.
pub struct Buffer {
    raw: RawBuffer,
    device: SharedDevice,
}

impl Buffer {
    /// Allocates zeroed memory. `purpose` is named in the error.
    pub fn new(device: &SharedDevice, bytes: usize, purpose: &str) -> Result<Arc<Self>> {
        let raw = device.allocate(bytes, purpose)?;
        Ok(Arc::new(Self { raw, device: device.clone() }))
    }

    pub fn raw(&self) -> RawBuffer {
        self.raw
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.free(self.raw);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

/// A 2-D view `[rows, cols]` of device memory: rows are `stride` elements apart, elements of a row are adjacent.
/// Cheap to clone; keeps its memory alive.
#[derive(Clone, Debug)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    offset_bytes: usize,
    rows: usize,
    cols: usize,
    stride: usize,
    dtype: DType,
}

impl Tensor {
    /// A contiguous view of `buffer` from `offset_bytes` on.
    ///
    /// # Errors
    /// Internal, when the view would leave the buffer.
    pub fn new(buffer: Arc<Buffer>, offset_bytes: usize, rows: usize, cols: usize, dtype: DType) -> Result<Self> {
        let end = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(dtype.size()))
            .and_then(|n| n.checked_add(offset_bytes))
            .filter(|&end| end <= buffer.raw.bytes);
        if end.is_none() {
            return Err(Error::internal(format!(
                "a {dtype} tensor [{rows}, {cols}] at byte {offset_bytes} leaves its buffer of {} bytes",
                buffer.raw.bytes
            )));
        }
        Ok(Self { buffer, offset_bytes, rows, cols, stride: cols, dtype })
    }

    /// Allocates a contiguous, zeroed tensor of its own.
    pub fn zeros(device: &SharedDevice, rows: usize, cols: usize, dtype: DType, purpose: &str) -> Result<Self> {
        let bytes = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(dtype.size()))
            .ok_or_else(|| Error::internal(format!("the size of {purpose} [{rows}, {cols}] overflows")))?;
        Self::new(Buffer::new(device, bytes, purpose)?, 0, rows, cols, dtype)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the start of one row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn is_contiguous(&self) -> bool {
        self.stride == self.cols || self.rows <= 1
    }

    /// Bytes of the elements, gaps between rows not counted.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size()
    }

    /// Address of the first element.
    pub fn addr(&self) -> u64 {
        self.buffer.raw.addr + self.offset_bytes as u64
    }

    /// Columns `start..start + cols` of every row.
    ///
    /// # Panics
    /// When the range leaves the row.
    pub fn columns(&self, start: usize, cols: usize) -> Self {
        assert!(start + cols <= self.cols, "columns {start}..{} of a row of {}", start + cols, self.cols);
        let offset_bytes = self.offset_bytes + start * self.dtype.size();
        Self { offset_bytes, cols, ..self.clone() }
    }

    /// The same elements in rows of another length.
    ///
    /// # Errors
    /// Internal, when there are gaps or the number of elements is another.
    pub fn reshaped(&self, rows: usize, cols: usize) -> Result<Self> {
        if !self.is_contiguous() || rows * cols != self.rows * self.cols {
            return Err(Error::internal(format!("a tensor [{}, {}] as [{rows}, {cols}]", self.rows, self.cols)));
        }
        Ok(Self { rows, cols, stride: cols, ..self.clone() })
    }

    /// Rows `start..start + rows`.
    ///
    /// # Panics
    /// When the range leaves the tensor.
    pub fn row_range(&self, start: usize, rows: usize) -> Self {
        assert!(start + rows <= self.rows, "rows {start}..{} of {}", start + rows, self.rows);
        let offset_bytes = self.offset_bytes + start * self.stride * self.dtype.size();
        Self { offset_bytes, rows, ..self.clone() }
    }
}
