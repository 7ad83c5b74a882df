//! From a checkpoint to device memory: fused, cast and copied piece by piece, never the whole model on the host.

use super::copy::{Change, Copy, PIECE_BYTES, copy_all};
use super::formats::{StoredTensor, TensorStore, append};
use super::pieces::Piece;
use super::rope::Rope;
use crate::device::{DType, RopeStyle, RopeTable, SharedDevice, Tensor, Weight};
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// Names in one message, at most.
const MAX_NAMES: usize = 64;
/// Standard deviation of random weights: small enough that nothing overflows in half precision.
const RANDOM_DEVIATION: f32 = 0.02;

/// Where weights come from.
#[derive(Debug)]
pub enum WeightSource {
    Checkpoint(Box<dyn TensorStore>),
    /// Numbers made up at load, to measure speed.
    Random,
}

impl WeightSource {
    /// Whether the source has its own tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        matches!(self.tensor(name), Ok(Some(_)))
    }

    /// The tensor with the name that the checkpoint has for it: some leave the first part away, and models that take
    /// images put more before it.
    fn tensor(&self, name: &str) -> Result<Option<(String, StoredTensor<'_>)>> {
        let Self::Checkpoint(store) = self else { return Ok(None) };
        let (_, inner) = name.split_once('.').unwrap_or(("", name));
        let prefixed = [
            format!("language_model.{name}"),
            format!("model.language_model.{inner}"),
            format!("model.text_model.{inner}"),
            // As wrappers of the training saved it.
            format!("module.{name}"),
            format!("_orig_mod.{name}"),
            name.rsplit_once('.').map_or_else(String::new, |(stem, kind)| format!("{stem}.base_layer.{kind}")),
        ];
        for name in [name.to_owned(), inner.to_owned()].into_iter().chain(prefixed) {
            if let Some(tensor) = store.tensor(&name)? {
                return Ok(Some((name, tensor)));
            }
        }
        Ok(None)
    }

    /// Rows of the tensor `name`.
    pub fn rows(&self, name: &str) -> Result<Option<usize>> {
        Ok(self.tensor(name)?.and_then(|(_, tensor)| tensor.shape.first().copied()))
    }

    /// Type of the largest tensor.
    pub fn main_dtype(&self) -> Option<DType> {
        match self {
            Self::Checkpoint(store) => store.main_dtype(),
            Self::Random => None,
        }
    }

    /// Whether both tensors are there and hold the same bytes.
    pub fn are_equal(&self, a: &str, b: &str) -> Result<bool> {
        Ok(match (self.tensor(a)?, self.tensor(b)?) {
            (Some((_, a)), Some((_, b))) => a.is_equal(&b),
            _ => false,
        })
    }
}

/// What a vector is; decides what random weights look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorKind {
    Norm,
    /// A norm's weight that is stored less 1. F32 on every device: half precision would round the sum.
    NormPlusOne,
    Bias,
    /// A number for each head. F32 on every device.
    PerHead,
}

impl VectorKind {
    fn is_float32(self) -> bool {
        matches!(self, Self::NormPlusOne | Self::PerHead)
    }
}

/// Puts the tensors that a family asks for on a device.
pub struct WeightLoader<'a> {
    device: SharedDevice,
    source: &'a WeightSource,
    matrix_dtype: DType,
    vector_dtype: DType,
    /// Otherwise nothing is read, the device only counts.
    reads: bool,
    /// What is to be read at the end, by all threads at once.
    copies: Vec<Copy<'a>>,
    used: BTreeSet<String>,
    missing: Vec<String>,
    parameters: u64,
    bytes: usize,
    scratch: Vec<u8>,
    random: RandomNumbers,
}

impl<'a> WeightLoader<'a> {
    /// A loader that reads nothing: it finds missing names and wrong shapes, and counts.
    pub fn planning(device: SharedDevice, source: &'a WeightSource, dtype: DType) -> Self {
        let vector_dtype = device.activation_dtype(dtype);
        Self {
            device,
            source,
            matrix_dtype: dtype,
            vector_dtype,
            reads: false,
            copies: Vec::new(),
            used: BTreeSet::new(),
            missing: Vec::new(),
            parameters: 0,
            bytes: 0,
            scratch: Vec::new(),
            random: RandomNumbers::default(),
        }
    }

    /// A loader whose tensors hold their numbers after [`WeightLoader::finish`]; it logs its progress.
    pub fn new(device: SharedDevice, source: &'a WeightSource, dtype: DType) -> Self {
        let random = match source {
            WeightSource::Random => RandomNumbers::new(normal_numbers(1_000_003)),
            WeightSource::Checkpoint(_) => RandomNumbers::default(),
        };
        Self { reads: true, random, ..Self::planning(device, source, dtype) }
    }

    pub fn source(&self) -> &'a WeightSource {
        self.source
    }

    /// Elements of all tensors so far.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Device bytes of all tensors so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A matrix `[Σ rows, cols]` from one tensor, or parts of several below each other.
    pub fn matrix(&mut self, parts: &[Piece], cols: usize) -> Result<Weight> {
        Ok(Weight::Dense(self.table(parts, cols)?))
    }

    /// [`WeightLoader::matrix`] as a plain tensor, for lookups.
    pub fn table(&mut self, parts: &[Piece], cols: usize) -> Result<Tensor> {
        self.assemble(parts, cols, self.matrix_dtype, None)
    }

    /// [`WeightLoader::matrix`] with each row divided by its length.
    pub fn unit_rows(&mut self, part: Piece, cols: usize) -> Result<Weight> {
        let first = self.copies.len();
        let matrix = self.table(&[part], cols)?;
        self.copies[first..].iter_mut().for_each(|copy| copy.change = Change::UnitRows);
        Ok(Weight::Dense(matrix))
    }

    /// A vector `[1, Σ lengths]` from one tensor, or parts of several behind each other.
    pub fn vector(&mut self, parts: &[Piece], kind: VectorKind) -> Result<Tensor> {
        self.vectors(parts, 1, kind)
    }

    /// [`WeightLoader::vector`] cut into `rows` rows of equal length.
    pub fn vectors(&mut self, parts: &[Piece], rows: usize, kind: VectorKind) -> Result<Tensor> {
        let dtype = if kind.is_float32() { DType::F32 } else { self.vector_dtype };
        let column = self.assemble(parts, 1, dtype, Some(kind))?;
        column.reshaped(rows, column.rows() / rows)
    }

    /// A vector `[1, len]` F32 of numbers that are in no checkpoint.
    pub fn constants(&mut self, values: &[f32]) -> Result<Tensor> {
        let out = Tensor::zeros(&self.device, 1, values.len(), DType::F32, "constants")?;
        self.bytes += out.bytes();
        if self.reads {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            self.device.upload(&out, &bytes)?;
        }
        Ok(out)
    }

    /// Type of matrices on the device.
    pub fn matrix_dtype(&self) -> DType {
        self.matrix_dtype
    }

    /// The tables of cosines and sines of `rope` for sequences of up to so many tokens, below each other: position `i` of
    /// the second one is row `lengths[0] + i`.
    pub fn rope_table(&mut self, rope: &Rope, lengths: &[usize], style: RopeStyle) -> Result<RopeTable> {
        let rows = lengths.iter().sum();
        let cos_sin = Tensor::zeros(&self.device, rows, rope.rotary_dim, DType::F32, "the table of rotary positions")?;
        self.bytes += cos_sin.bytes();
        if self.reads {
            let values = lengths.iter().flat_map(|&length| rope.table(length));
            self.device.upload(&cos_sin, &values.flat_map(f32::to_ne_bytes).collect::<Vec<u8>>())?;
        }
        Ok(RopeTable { cos_sin, style })
    }

    /// Ends loading: reads what was asked for. Returns the names of tensors that nobody asked for.
    ///
    /// # Errors
    /// When tensors were missing: names all of them. When the device fails.
    pub fn finish(self) -> Result<Vec<String>> {
        let WeightSource::Checkpoint(store) = self.source else { return Ok(Vec::new()) };
        if !self.missing.is_empty() {
            let count = self.missing.len();
            let plural = if count == 1 { "" } else { "s" };
            let names = self.missing.iter().map(String::as_str);
            return Err(Error::invalid(format!("the checkpoint lacks {count} tensor{plural}: {}", listed(names))));
        }
        let is_unknown = |name: &&str| !self.used.contains(*name) && !is_ignored(name);
        let unknown: BTreeSet<_> = store.names().into_iter().filter(is_unknown).collect();
        if self.reads {
            copy_all(&self.device, &self.copies)?;
            if !unknown.is_empty() {
                let names = listed(unknown.iter().copied());
                tracing::warn!("{} tensors of the checkpoint are not used: {names}", unknown.len());
            }
        }
        Ok(unknown.into_iter().map(str::to_owned).collect())
    }

    /// Marks a tensor as known although it is not loaded.
    pub fn ignore(&mut self, name: &str) {
        self.used.insert(name.to_owned());
    }

    fn assemble(&mut self, parts: &[Piece], cols: usize, dtype: DType, kind: Option<VectorKind>) -> Result<Tensor> {
        let rows = parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(part.rows()));
        let rows = rows.ok_or_else(|| Error::invalid(format!("the rows of {} overflow", parts[0].name)))?;
        let out = Tensor::zeros(&self.device, rows, cols, dtype, &parts[0].name)?;
        self.bytes += out.bytes();
        self.parameters += (rows * cols) as u64;
        let mut row = 0;
        for part in parts {
            self.fill(&out.row_range(row, part.rows()), part, kind)?;
            row += part.rows();
        }
        Ok(out)
    }

    fn fill(&mut self, out: &Tensor, piece: &Piece, kind: Option<VectorKind>) -> Result<()> {
        if matches!(self.source, WeightSource::Random) {
            return self.fill_made_up(out, kind);
        }
        let Piece { name, shape, views } = piece;
        let Some((stored_name, stored)) = self.source.tensor(name)? else {
            self.missing.push(name.to_owned());
            return Ok(());
        };
        self.used.insert(stored_name);
        if stored.shape != *shape {
            return Err(Error::invalid(format!(
                "{}: {name} has shape {:?}; config.json asks for {shape:?}",
                stored.file.display(),
                stored.shape
            )));
        }
        let change = if kind == Some(VectorKind::NormPlusOne) { Change::PlusOne } else { Change::None };
        let mut row = 0;
        for view in views.iter().filter(|_| self.reads) {
            let out = out.row_range(row, view.rows);
            self.copies.push(Copy { out, stored: stored.clone(), view: *view, change });
            row += view.rows;
        }
        Ok(())
    }

    fn fill_made_up(&mut self, out: &Tensor, kind: Option<VectorKind>) -> Result<()> {
        if !self.reads {
            return Ok(());
        }
        let rows_at_once = (PIECE_BYTES / (out.cols() * out.dtype().size()).max(1)).clamp(1, out.rows().max(1));
        let mut next = self.bytes;
        for start in (0..out.rows()).step_by(rows_at_once) {
            let part = out.row_range(start, rows_at_once.min(out.rows() - start));
            let count = part.rows() * part.cols();
            self.scratch.clear();
            match kind {
                Some(VectorKind::Norm | VectorKind::NormPlusOne) => {
                    append(&vec![1.0; count], out.dtype(), &mut self.scratch);
                }
                Some(VectorKind::Bias | VectorKind::PerHead) => self.scratch.resize(part.bytes(), 0),
                None => repeat_from(
                    self.random.encoded(out.dtype()),
                    next * out.dtype().size(),
                    part.bytes(),
                    &mut self.scratch,
                ),
            }
            next += count;
            self.device.upload(&part, &self.scratch)?;
        }
        Ok(())
    }
}

/// Buffers of older files that carry no weights, and what is computed of other weights.
fn is_ignored(name: &str) -> bool {
    const SUFFIXES: [&str; 7] = [
        ".rotary_emb.inv_freq",
        ".rotary_pos_emb.inv_freq",
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
        ".attention.fused_q_proj.weight",
    ];
    SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// Random weights, converted to a type once: a large model repeats them thousands of times.
#[derive(Default)]
struct RandomNumbers {
    values: Vec<f32>,
    encoded: Option<(DType, Vec<u8>)>,
}

impl RandomNumbers {
    fn new(values: Vec<f32>) -> Self {
        Self { values, encoded: None }
    }

    fn encoded(&mut self, dtype: DType) -> &[u8] {
        let known = self.encoded.take().filter(|(encoded, _)| *encoded == dtype);
        let (_, bytes) = self.encoded.insert(known.unwrap_or_else(|| {
            let mut bytes = Vec::with_capacity(self.values.len() * dtype.size());
            let values: Vec<f32> = self.values.iter().map(|value| value * RANDOM_DEVIATION).collect();
            append(&values, dtype, &mut bytes);
            (dtype, bytes)
        }));
        bytes
    }
}

/// Appends `count` bytes of `source`, read round and round from `start` on.
fn repeat_from(source: &[u8], start: usize, count: usize, out: &mut Vec<u8>) {
    let end = out.len() + count;
    let mut at = start % source.len();
    while out.len() < end {
        let piece = &source[at..source.len().min(at + end - out.len())];
        out.extend_from_slice(piece);
        at = 0;
    }
}

/// Numbers with mean 0 and deviation 1: sums of four uniform ones, from a multiplicative congruential generator.
fn normal_numbers(count: usize) -> Vec<f32> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (uniform() + uniform() + uniform() + uniform()) * 3.0_f32.sqrt()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_numbers_are_centred_and_scaled() {
        let numbers = normal_numbers(100_000);
        let mean = numbers.iter().sum::<f32>() / 1e5;
        let variance = numbers.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn a_repetition_starts_anywhere_and_wraps() {
        let mut out = vec![9];
        repeat_from(&[1, 2, 3], 5, 5, &mut out);
        assert_eq!(out, [9, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn long_lists_say_how_many_more() {
        let names: Vec<String> = (0..70).map(|i| format!("t{i}")).collect();
        assert!(listed(names.iter().map(String::as_str)).ends_with("t63 and 6 more"));
    }
}
