//! Tensors as the kernels see them: typed rows in host memory.

use crate::device::{DType, KvLayer, Tensor};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::marker::PhantomData;

/// An element type of host memory.
pub(super) trait Element: Copy + Send + Sync + 'static {
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}

impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

/// A matrix in host memory: rows are `stride` elements apart. Lives no longer than what it was made of.
pub(super) struct Matrix<'a, T> {
    pointer: *mut T,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
    lifetime: PhantomData<&'a Tensor>,
}

impl<T> Clone for Matrix<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Matrix<'_, T> {}

// SAFETY: only an address and sizes; every access through it is unsafe and argued for where it is made.
unsafe impl<T> Send for Matrix<'_, T> {}
// SAFETY: as for `Send`.
unsafe impl<T> Sync for Matrix<'_, T> {}

impl<'a, T: Element> Matrix<'a, T> {
    /// # Errors
    /// Internal, when the tensor's elements are not of this type.
    pub(super) fn of(tensor: &'a Tensor, name: &str) -> Result<Self> {
        if tensor.dtype() != T::DTYPE {
            return Err(Error::internal(format!("{name} is {}, the CPU device takes {}", tensor.dtype(), T::DTYPE)));
        }
        let pointer = tensor.addr() as *mut T;
        Ok(Self { pointer, rows: tensor.rows(), cols: tensor.cols(), stride: tensor.stride(), lifetime: PhantomData })
    }

    /// Rows of `cols` adjacent elements over plain memory.
    pub(super) fn over(memory: &'a mut [T], rows: usize, cols: usize) -> Self {
        debug_assert!(rows * cols <= memory.len());
        Self { pointer: memory.as_mut_ptr(), rows, cols, stride: cols, lifetime: PhantomData }
    }

    /// Address of the first element of a row.
    pub(super) fn pointer(&self, row: usize) -> *mut T {
        self.pointer.wrapping_add(row * self.stride)
    }

    /// # Safety
    /// `row < rows`, and nobody writes to the row meanwhile.
    pub(super) unsafe fn row(&self, row: usize) -> &'a [T] {
        debug_assert!(row < self.rows);
        // SAFETY: a tensor's rows lie inside its buffer, which the tensor keeps alive; the rest is the contract.
        unsafe { std::slice::from_raw_parts(self.pointer(row), self.cols) }
    }

    /// # Safety
    /// `row < rows`, and nobody else uses the row meanwhile.
    pub(super) unsafe fn row_mut(&self, row: usize) -> &'a mut [T] {
        debug_assert!(row < self.rows);
        // SAFETY: as in `row`.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(row), self.cols) }
    }
}

/// Index or id tensors (`[1, n]` I32) as a slice.
///
/// # Errors
/// Internal, when the tensor is not I32.
pub(super) fn indices<'a>(tensor: &'a Tensor, name: &str) -> Result<&'a [i32]> {
    let matrix = Matrix::<i32>::of(tensor, name)?;
    // SAFETY: ids and tables are written by `upload` only, and calls on a device are ordered.
    Ok(if matrix.rows == 0 { &[] } else { unsafe { matrix.row(0) } })
}

/// One layer's paged keys and values: row `((block * sides + side) * K + head) * B + offset`.
pub(super) struct Cache<'a, E> {
    pub(super) data: Matrix<'a, E>,
    pub(super) kv_heads: usize,
    pub(super) block_size: usize,
    pub(super) head_dim: usize,
    pub(super) num_blocks: usize,
    /// 2, or 1 where keys are values, too.
    pub(super) sides: usize,
}

impl<'a, E: Element> Cache<'a, E> {
    /// # Errors
    /// Internal, when the cache's elements are not of this type.
    pub(super) fn of(layer: &'a KvLayer) -> Result<Self> {
        let data = Matrix::of(&layer.data, "the KV cache")?;
        let (kv_heads, block_size) = (layer.kv_heads, layer.block_size_tokens);
        let sides = if layer.keys_only { 1 } else { 2 };
        let num_blocks = data.rows / (sides * kv_heads * block_size);
        Ok(Self { data, kv_heads, block_size, head_dim: layer.head_dim, num_blocks, sides })
    }

    /// The row of a token's key or value in the cache.
    pub(super) fn row(&self, block: usize, side: Side, head: usize, offset: usize) -> usize {
        ((block * self.sides + (side as usize).min(self.sides - 1)) * self.kv_heads + head) * self.block_size + offset
    }
}

/// A half of a block.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Keys = 0,
    Values = 1,
}

/// Runs `$body` with `$element` as the float type that `$dtype` names.
macro_rules! with_element {
    ($dtype:expr, $name:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::device::DType::F32 => {
                type $element = f32;
                $body
            }
            $crate::device::DType::F16 => {
                type $element = half::f16;
                $body
            }
            $crate::device::DType::BF16 => {
                type $element = half::bf16;
                $body
            }
            $crate::device::DType::I32 => {
                Err($crate::error::Error::internal(format!("{} is int32, the CPU device takes floats", $name)))
            }
        }
    };
}
pub(super) use with_element;
