//! A tensor as checkpoints hold it: in one piece, cut up over several files, in another order of rows, quantised.

use super::Encoding;
use super::encoding::MXFP4_BYTES;
use super::fp8::Fp8Blocks;
use crate::device::DType;
use crate::device::cpu::mapped_file::MappedFile;
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;

/// One tensor of a checkpoint. Reading gives its elements row-major, whatever the layout in the files.
#[derive(Clone, Debug)]
pub struct StoredTensor<'a> {
    /// For messages: the file, or the first one of several.
    pub file: &'a Path,
    pub shape: Vec<usize>,
    encoding: Encoding,
    /// Below each other. A row is what the last dimension spans; of a vector, one element.
    bands: Vec<Band<'a>>,
}

/// Rows that are put together in the same way.
#[derive(Clone, Debug, PartialEq)]
struct Band<'a> {
    /// First row, counted in the order of the finished tensor.
    first: usize,
    rows: usize,
    order: RowOrder,
    /// Side by side: each row is the concatenation of the parts' rows.
    parts: Vec<Part<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    bytes: &'a [u8],
    /// What `bytes` are mapped from.
    mapped: Option<&'a MappedFile>,
    /// Of the blocks in `bytes`, where the encoding has them apart.
    scales: &'a [u8],
    stride_bytes: usize,
    /// The columns that are taken, in bytes of a row.
    start_bytes: usize,
    len_bytes: usize,
}

impl PartialEq for Part<'_> {
    fn eq(&self, other: &Self) -> bool {
        let layout = |part: &Self| (part.stride_bytes, part.start_bytes, part.len_bytes);
        layout(self) == layout(other) && self.bytes == other.bytes && self.scales == other.scales
    }
}

impl<'a> Part<'a> {
    /// All columns of `rows`; `None`: they are of no file.
    fn mapped_rows(&self, rows: Range<usize>) -> Option<MappedBytes<'a>> {
        let bytes = self.bytes.get(rows.start * self.stride_bytes..rows.end * self.stride_bytes)?;
        Some(MappedBytes { bytes, file: self.mapped? })
    }
}

/// Bytes of a file that are mapped into memory.
#[derive(Clone, Copy, Debug)]
pub struct MappedBytes<'a> {
    pub bytes: &'a [u8],
    pub file: &'a MappedFile,
}

/// In which order a file holds the rows of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    AsIs,
    /// The halves of every head of so many rows are interleaved: row `2j + s` of a head is row `s · d/2 + j`.
    InterleavedHalves(usize),
}

impl RowOrder {
    fn in_file(self, row: usize) -> usize {
        match self {
            Self::AsIs => row,
            Self::InterleavedHalves(head_dim) => {
                let (head, in_head) = (row / head_dim, row % head_dim);
                let (half, pair) = (in_head / (head_dim / 2), in_head % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }

    /// Rows of the file among which those of `rows` are.
    fn span_in_file(self, rows: Range<usize>) -> Range<usize> {
        match self {
            Self::AsIs => rows,
            Self::InterleavedHalves(head_dim) => rows.start / head_dim * head_dim..rows.end.next_multiple_of(head_dim),
        }
    }
}

impl<'a> StoredTensor<'a> {
    /// A tensor in one piece.
    ///
    /// # Errors
    /// When `bytes` is not what the shape asks for.
    pub fn new(file: &'a Path, shape: Vec<usize>, encoding: Encoding, bytes: &'a [u8]) -> Result<Self> {
        let (rows, cols) = rows_and_cols(&shape);
        let stride_bytes = encoding.row_bytes(cols);
        let expected = rows.and_then(|rows| rows.checked_mul(stride_bytes?));
        let Some((rows, stride_bytes)) = rows.zip(stride_bytes).filter(|_| expected == Some(bytes.len())) else {
            return Err(Error::invalid(format!(
                "{}: a tensor of shape {shape:?} and type {encoding} cannot have {} bytes",
                file.display(),
                bytes.len()
            )));
        };
        let part = Part { bytes, mapped: None, scales: &[], stride_bytes, start_bytes: 0, len_bytes: stride_bytes };
        let bands = vec![Band { first: 0, rows, order: RowOrder::AsIs, parts: vec![part] }];
        Ok(Self { file, shape, encoding, bands })
    }

    /// A tensor of 4-bit floats in blocks, with a scale for each block.
    ///
    /// # Errors
    /// When `blocks` or `scales` is not what the shape asks for.
    pub fn mxfp4(file: &'a Path, shape: Vec<usize>, blocks: &'a [u8], scales: &'a [u8]) -> Result<Self> {
        let mut tensor = Self::new(file, shape, Encoding::Mxfp4, blocks)?;
        if scales.len() * MXFP4_BYTES != blocks.len() {
            return Err(Error::invalid(format!(
                "{}: {} scales do not fit {} blocks of 4-bit floats",
                file.display(),
                scales.len(),
                blocks.len() / MXFP4_BYTES
            )));
        }
        tensor.bands.iter_mut().flat_map(|band| &mut band.parts).for_each(|part| part.scales = scales);
        Ok(tensor)
    }

    /// A matrix of 8-bit floats with `scales` for its blocks.
    ///
    /// # Errors
    /// When `codes` or `scales` is not what the shape asks for.
    pub fn fp8(
        file: &'a Path,
        shape: Vec<usize>,
        blocks: Fp8Blocks,
        codes: &'a [u8],
        scales: &'a [u8],
    ) -> Result<Self> {
        let mut tensor = Self::new(file, shape, Encoding::Fp8(blocks), codes)?;
        if scales.len() != blocks.scale_bytes(tensor.rows(), tensor.cols()) {
            return Err(Error::invalid(format!(
                "{}: {} bytes of scales do not fit a matrix of 8-bit floats of shape {:?}",
                file.display(),
                scales.len(),
                tensor.shape
            )));
        }
        tensor.bands.iter_mut().flat_map(|band| &mut band.parts).for_each(|part| part.scales = scales);
        Ok(tensor)
    }

    /// The same tensor, the bytes of which are mapped from `file`.
    pub fn mapped_from(mut self, file: &'a MappedFile) -> Self {
        self.bands.iter_mut().flat_map(|band| &mut band.parts).for_each(|part| part.mapped = Some(file));
        self
    }

    /// Type of the elements once they are read.
    pub fn dtype(&self) -> DType {
        self.encoding.dtype()
    }

    /// Rows as [`StoredTensor::read`] counts them: of a vector, its elements.
    pub fn rows(&self) -> usize {
        self.bands.iter().map(|band| band.rows).sum()
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        rows_and_cols(&self.shape).1
    }

    /// The same tensor, whose file holds the rows in another order. Only for a tensor in one piece.
    pub fn with_row_order(mut self, order: RowOrder) -> Self {
        self.bands.iter_mut().for_each(|band| band.order = order);
        self
    }

    /// Whether both have the same shape and, laid out alike, the same bytes.
    pub fn is_equal(&self, other: &Self) -> bool {
        self.shape == other.shape && self.encoding == other.encoding && self.bands == other.bands
    }

    /// A part of the first dimension.
    ///
    /// # Errors
    /// When the tensor is shorter.
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        let length = self.shape.first().copied().unwrap_or(0);
        if range.start > range.end || range.end > length {
            return Err(Error::invalid(format!(
                "{}: {}..{} of a tensor of shape {:?} was asked for",
                self.file.display(),
                range.start,
                range.end,
                self.shape
            )));
        }
        let rows_each = self.rows().checked_div(length).unwrap_or(0);
        let (start, end) = (range.start * rows_each, range.end * rows_each);
        let mut bands = Vec::new();
        let mut first = 0;
        for band in &self.bands {
            let (from, to) = (start.max(first), end.min(first + band.rows));
            if from < to {
                bands.push(Band { first: band.first + from - first, rows: to - from, ..band.clone() });
            }
            first += band.rows;
        }
        let mut shape = self.shape.clone();
        if let Some(length) = shape.first_mut() {
            *length = range.len();
        }
        Ok(Self { shape, bands, ..self.clone() })
    }

    /// Tensors below each other, along the first dimension.
    ///
    /// # Errors
    /// When they do not fit each other, or there is none.
    pub fn stack(parts: Vec<Self>) -> Result<Self> {
        Self::join(parts, |whole, next| {
            let fits = whole.shape.len() == next.shape.len() && whole.shape.get(1..) == next.shape.get(1..);
            if !fits || whole.shape.is_empty() {
                return false;
            }
            whole.shape[0] += next.shape[0];
            whole.bands.extend(next.bands.iter().cloned());
            true
        })
    }

    /// Tensors side by side, along the last dimension.
    ///
    /// # Errors
    /// When they do not fit each other, or there is none.
    pub fn concat_columns(parts: Vec<Self>) -> Result<Self> {
        Self::join(parts, |whole, next| {
            let last = whole.shape.len().saturating_sub(1);
            let alike = |a: &Band<'_>, b: &Band<'_>| a.first == b.first && a.rows == b.rows && a.order == b.order;
            let fits = last > 0 && next.shape.len() == last + 1 && whole.shape[..last] == next.shape[..last];
            let bands_fit = whole.bands.len() == next.bands.len();
            if !fits || !bands_fit || !whole.bands.iter().zip(&next.bands).all(|(a, b)| alike(a, b)) {
                return false;
            }
            whole.shape[last] += next.shape[last];
            for (band, more) in whole.bands.iter_mut().zip(&next.bands) {
                band.parts.extend(&more.parts);
            }
            true
        })
    }

    fn join(parts: Vec<Self>, mut add: impl FnMut(&mut Self, &Self) -> bool) -> Result<Self> {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().ok_or_else(|| Error::internal("a tensor of no parts"))?;
        for next in parts {
            let shape = whole.shape.clone();
            if whole.encoding != next.encoding || !add(&mut whole, &next) {
                return Err(Error::invalid(format!(
                    "{}: a tensor of shape {:?} and type {} does not fit the one of shape {shape:?} and type {} in {}",
                    next.file.display(),
                    next.shape,
                    next.encoding,
                    whole.encoding,
                    whole.file.display()
                )));
            }
        }
        Ok(whole)
    }

    /// The bytes of `rows`, where a file holds them as type `dtype` and one behind the other.
    pub fn borrow(&self, rows: Range<usize>, dtype: DType) -> Option<MappedBytes<'a>> {
        let [band] = self.bands.as_slice() else { return None };
        let [part] = band.parts.as_slice() else { return None };
        let is_plain = band.order == RowOrder::AsIs && part.len_bytes == part.stride_bytes;
        if !is_plain || self.encoding != Encoding::Plain(dtype) {
            return None;
        }
        part.mapped_rows(band.first + rows.start..band.first + rows.end)
    }

    /// The bytes of files that [`StoredTensor::read`] of `rows` goes through.
    pub fn mapped(&self, rows: Range<usize>) -> Vec<MappedBytes<'a>> {
        let mut first = 0;
        let mut spans = Vec::new();
        for band in &self.bands {
            let (from, to) = (rows.start.max(first), rows.end.min(first + band.rows));
            if from < to {
                let in_file = band.order.span_in_file(band.first + from - first..band.first + to - first);
                spans.extend(band.parts.iter().filter_map(|part| part.mapped_rows(in_file.clone())));
            }
            first += band.rows;
        }
        spans
    }

    /// Appends the elements of `rows` as type `dtype`.
    pub fn read(&self, rows: Range<usize>, dtype: DType, out: &mut Vec<u8>) {
        let mut first = 0;
        for band in &self.bands {
            let (from, to) = (rows.start.max(first), rows.end.min(first + band.rows));
            for row in from..to.max(from) {
                let in_file = band.order.in_file(band.first + row - first);
                for part in &band.parts {
                    let start = in_file * part.stride_bytes + part.start_bytes;
                    let scales = self.encoding.scales_at(part.scales, in_file, part.start_bytes, part.stride_bytes);
                    self.encoding.decode(&part.bytes[start..start + part.len_bytes], scales, dtype, out);
                }
            }
            first += band.rows;
        }
    }
}

/// Of a vector every element is a row, so that all that is done with rows is done with biases too.
fn rows_and_cols(shape: &[usize]) -> (Option<usize>, usize) {
    match shape {
        [] => (Some(1), 1),
        [len] => (Some(*len), 1),
        [rows @ .., cols] => (rows.iter().try_fold(1_usize, |product, &rows| product.checked_mul(rows)), *cols),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(values: &[u8], rows: usize) -> (Vec<u8>, Vec<usize>) {
        let bytes = values.iter().flat_map(|&value| f32::from(value).to_le_bytes()).collect();
        (bytes, vec![rows, values.len() / rows])
    }

    fn stored(data: &(Vec<u8>, Vec<usize>)) -> StoredTensor<'_> {
        StoredTensor::new(Path::new("file"), data.1.clone(), Encoding::Plain(DType::F32), &data.0).unwrap()
    }

    fn values(tensor: &StoredTensor<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        tensor.read(0..tensor.rows(), DType::F32, &mut bytes);
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap()) as u8).collect()
    }

    #[test]
    fn slices_stacks_and_columns_come_back_row_major() {
        let (a, b) = (matrix(&[1, 2, 3, 4, 5, 6], 3), matrix(&[7, 8, 9], 3));
        let joined = StoredTensor::concat_columns(vec![stored(&a), stored(&b)]).unwrap();
        assert_eq!((values(&joined), joined.shape.clone()), (vec![1, 2, 7, 3, 4, 8, 5, 6, 9], vec![3, 3]));
        let parts = vec![stored(&a).slice(1..3).unwrap(), stored(&a).slice(0..1).unwrap()];
        let stacked = StoredTensor::stack(parts).unwrap();
        assert_eq!(values(&stacked), [3, 4, 5, 6, 1, 2]);
        assert_eq!(values(&stacked.slice(1..3).unwrap()), [5, 6, 1, 2]);
        assert!(stored(&a).slice(2..4).unwrap_err().message().contains("2..4 of a tensor of shape [3, 2]"));
        assert!(StoredTensor::stack(vec![stored(&a), stored(&b)]).is_err());
    }

    #[test]
    fn mapped_rows_are_those_that_reading_goes_through() {
        let data = matrix(&[0, 2, 1, 3, 4, 6, 5, 7], 8);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, &data.0).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let tensor = StoredTensor::new(&path, data.1.clone(), Encoding::Plain(DType::F32), file.bytes()).unwrap();
        let tensor = tensor.mapped_from(&file);
        assert_eq!(tensor.borrow(1..2, DType::F32).unwrap().bytes, &data.0[4..8]);
        assert!(tensor.borrow(1..2, DType::BF16).is_none(), "another type");
        assert_eq!(tensor.mapped(2..3)[0].bytes, &data.0[8..12]);
        let stacked = StoredTensor::stack(vec![tensor.clone(), tensor.clone()]).unwrap();
        assert!(stacked.borrow(0..1, DType::F32).is_none());
        let spans: Vec<_> = stacked.mapped(6..9).iter().map(|span| span.bytes).collect();
        assert_eq!(spans, [&data.0[24..], &data.0[..4]]);
        let heads = tensor.with_row_order(RowOrder::InterleavedHalves(4));
        assert!(heads.borrow(0..1, DType::F32).is_none());
        assert_eq!(heads.mapped(5..6)[0].bytes, &data.0[16..], "a whole head");
    }

    #[test]
    fn interleaved_halves_are_put_back() {
        let data = matrix(&[0, 2, 1, 3, 4, 6, 5, 7], 8);
        let tensor = stored(&data).with_row_order(RowOrder::InterleavedHalves(4));
        assert_eq!(values(&tensor), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(values(&tensor.slice(4..6).unwrap()), [4, 5]);
    }
}
