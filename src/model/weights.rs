//! From a checkpoint to device memory: fused, cast and copied piece by piece, never the whole model on the host.

use super::copy::{Copy, PIECE_BYTES, copy_all};
use super::formats::{TensorStore, push};
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
        matches!(self, Self::Checkpoint(store) if matches!(store.tensor(name), Ok(Some(_))))
    }

    /// Rows of the tensor `name`.
    pub fn rows(&self, name: &str) -> Result<Option<usize>> {
        match self {
            Self::Checkpoint(store) => Ok(store.tensor(name)?.and_then(|tensor| tensor.shape.first().copied())),
            Self::Random => Ok(None),
        }
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
        let Self::Checkpoint(store) = self else { return Ok(false) };
        Ok(match (store.tensor(a)?, store.tensor(b)?) {
            (Some(a), Some(b)) => a.is_equal(&b),
            _ => false,
        })
    }
}

/// What a vector is; decides what random weights look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorKind {
    Norm,
    Bias,
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

    /// A matrix `[Σ rows, cols]` from one tensor, or several below each other: `(name, rows)`.
    pub fn matrix(&mut self, parts: &[(String, usize)], cols: usize) -> Result<Weight> {
        Ok(Weight::Dense(self.table(parts, cols)?))
    }

    /// [`WeightLoader::matrix`] as a plain tensor, for lookups.
    pub fn table(&mut self, parts: &[(String, usize)], cols: usize) -> Result<Tensor> {
        let out = self.allocate(parts, cols, self.matrix_dtype)?;
        let mut row = 0;
        for (name, rows) in parts {
            self.fill(&out.row_range(row, *rows), name, &[*rows, cols], None)?;
            row += rows;
        }
        Ok(out)
    }

    /// A vector `[1, Σ lengths]` from one tensor, or several behind each other: `(name, length)`.
    pub fn vector(&mut self, parts: &[(String, usize)], kind: VectorKind) -> Result<Tensor> {
        let len = parts.iter().map(|(_, len)| len).sum();
        let out = self.allocate(&[(parts[0].0.clone(), 1)], len, self.vector_dtype)?;
        let mut start = 0;
        for (name, len) in parts {
            self.fill(&out.columns(start, *len), name, &[*len], Some(kind))?;
            start += len;
        }
        Ok(out)
    }

    /// The table of cosines and sines of `rope`.
    pub fn rope_table(&mut self, rope: &Rope, max_seq_len: usize, style: RopeStyle) -> Result<RopeTable> {
        let cos_sin =
            Tensor::zeros(&self.device, max_seq_len, rope.rotary_dim, DType::F32, "the table of rotary positions")?;
        self.bytes += cos_sin.bytes();
        if self.reads {
            let bytes: Vec<u8> = rope.table(max_seq_len).iter().flat_map(|value| value.to_ne_bytes()).collect();
            self.device.upload(&cos_sin, &bytes)?;
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

    fn allocate(&mut self, parts: &[(String, usize)], cols: usize, dtype: DType) -> Result<Tensor> {
        let rows = parts.iter().try_fold(0_usize, |sum, (_, rows)| sum.checked_add(*rows));
        let rows = rows.ok_or_else(|| Error::invalid(format!("the rows of {} overflow", parts[0].0)))?;
        let out = Tensor::zeros(&self.device, rows, cols, dtype, &parts[0].0)?;
        self.bytes += out.bytes();
        self.parameters += (rows * cols) as u64;
        Ok(out)
    }

    fn fill(&mut self, out: &Tensor, name: &str, shape: &[usize], kind: Option<VectorKind>) -> Result<()> {
        let WeightSource::Checkpoint(store) = self.source else { return self.fill_made_up(out, kind) };
        let Some(stored) = store.tensor(name)? else {
            self.missing.push(name.to_owned());
            return Ok(());
        };
        self.used.insert(name.to_owned());
        if stored.shape != shape {
            return Err(Error::invalid(format!(
                "{}: {name} has shape {:?}; config.json asks for {shape:?}",
                stored.file.display(),
                stored.shape
            )));
        }
        if self.reads {
            self.copies.push(Copy { out: out.clone(), stored });
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
                Some(VectorKind::Norm) => (0..count).for_each(|_| push(1.0, out.dtype(), &mut self.scratch)),
                Some(VectorKind::Bias) => self.scratch.resize(part.bytes(), 0),
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

/// Buffers of older files that carry no weights.
fn is_ignored(name: &str) -> bool {
    [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"].iter().any(|suffix| name.ends_with(suffix))
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
            self.values.iter().for_each(|value| push(value * RANDOM_DEVIATION, dtype, &mut bytes));
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
