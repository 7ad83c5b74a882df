//! Which elements of a stored tensor make up rows of a matrix: checkpoints fuse, transpose and interleave.

use std::ops::Range;

/// Rows and columns that are copied together.
const TILE: usize = 32;

/// Rows of a matrix that come from one stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub name: String,
    /// As stored.
    pub shape: Vec<usize>,
    pub views: Vec<View>,
}

/// Some rows: element `(r, c)` is element `offset + r * row_stride + c * col_stride` of the stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub offset: usize,
    pub rows: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl Piece {
    /// A whole matrix.
    pub fn matrix(name: impl Into<String>, rows: usize, cols: usize) -> Self {
        let all = View { offset: 0, rows, row_stride: cols, col_stride: 1 };
        Self { name: name.into(), shape: vec![rows, cols], views: vec![all] }
    }

    /// A matrix stored `[cols, rows]`.
    pub fn transposed(name: impl Into<String>, rows: usize, cols: usize) -> Self {
        let all = View { offset: 0, rows, row_stride: 1, col_stride: rows };
        Self { name: name.into(), shape: vec![cols, rows], views: vec![all] }
    }

    /// A whole vector.
    pub fn vector(name: impl Into<String>, len: usize) -> Self {
        let all = View { offset: 0, rows: len, row_stride: 1, col_stride: 1 };
        Self { name: name.into(), shape: vec![len], views: vec![all] }
    }

    /// Only these rows, in this order, of a piece that was whole.
    pub fn select(mut self, ranges: &[Range<usize>]) -> Self {
        let whole = self.views[0];
        let view = |range: &Range<usize>| View {
            offset: whole.offset + range.start * whole.row_stride,
            rows: range.len(),
            ..whole
        };
        self.views = ranges.iter().map(view).collect();
        self
    }

    /// Rows of all views.
    pub fn rows(&self) -> usize {
        self.views.iter().fold(0, |sum: usize, view| sum.saturating_add(view.rows))
    }
}

impl View {
    /// Whether the rows lie behind each other in a matrix of `cols` columns.
    pub fn is_contiguous(&self, cols: usize) -> bool {
        (self.col_stride == 1 || cols == 1)
            && (self.row_stride == cols || self.rows == 1)
            && self.offset.is_multiple_of(cols)
    }

    /// The stored elements from the first to behind the last.
    pub fn span(&self, cols: usize) -> Range<usize> {
        let last = self.rows.saturating_sub(1) * self.row_stride + cols.saturating_sub(1) * self.col_stride;
        self.offset..self.offset + last + 1
    }

    /// Copies the rows out of `elements` of `size` bytes (1, 2 or 4), the first of which is element `first`.
    pub fn gather(&self, elements: &[u8], first: usize, size: usize, cols: usize, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + self.rows * cols * size, 0);
        let out = &mut out[start..];
        match size {
            1 => self.gather_tiles::<1>(elements, first, cols, out),
            2 => self.gather_tiles::<2>(elements, first, cols, out),
            _ => self.gather_tiles::<4>(elements, first, cols, out),
        }
    }

    /// Tile by tile, so that of a transposed matrix each cache line is fetched once, not once for each of its elements.
    fn gather_tiles<const SIZE: usize>(&self, elements: &[u8], first: usize, cols: usize, out: &mut [u8]) {
        let (elements, out) = (elements.as_chunks::<SIZE>().0, out.as_chunks_mut::<SIZE>().0);
        let offset = self.offset - first;
        for top in (0..self.rows).step_by(TILE) {
            for left in (0..cols).step_by(TILE) {
                for row in top..(top + TILE).min(self.rows) {
                    for col in left..(left + TILE).min(cols) {
                        out[row * cols + col] = elements[offset + row * self.row_stride + col * self.col_stride];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(piece: &Piece, bytes: &[u8], cols: usize) -> Vec<u8> {
        let mut out = Vec::new();
        piece.views.iter().for_each(|view| view.gather(bytes, 0, 1, cols, &mut out));
        out
    }

    #[test]
    fn rows_are_selected_from_matrices_stored_either_way() {
        let plain = Piece::matrix("w", 3, 2).select(&[2..3, 0..1]);
        assert_eq!(gathered(&plain, &[0, 1, 2, 3, 4, 5], 2), [4, 5, 0, 1]);
        let transposed = Piece::transposed("w", 3, 2).select(&[2..3, 0..1]);
        assert_eq!(gathered(&transposed, &[0, 2, 4, 1, 3, 5], 2), [4, 5, 0, 1]);
        assert_eq!(transposed.shape, [2, 3]);
        assert_eq!(transposed.views[0].span(2), 2..6);
        assert!(plain.views[0].is_contiguous(2) && !transposed.views[0].is_contiguous(2));
    }

    #[test]
    fn matrices_of_several_tiles_are_transposed_in_elements_of_every_size() {
        let (rows, cols) = (70, 45);
        for size in [1, 2, 4] {
            let element = |stored: usize| (0..size).map(move |byte| (stored * 7 + byte * 3) as u8);
            let stored: Vec<u8> = (0..rows * cols).flat_map(element).collect();
            let mut out = vec![9];
            Piece::transposed("w", rows, cols).views[0].gather(&stored, 0, size, cols, &mut out);
            let expected = (0..rows).flat_map(|row| (0..cols).flat_map(move |col| element(col * rows + row)));
            assert_eq!(out, [9].into_iter().chain(expected).collect::<Vec<_>>(), "{size}");
        }
    }
}
