//! The input tensors of one Triton request, read by name and batch item.

use super::tensors::{Declared, InputRow, SEQUENCE_CONTROLS, Use};
use crate::error::{Error, Result};
use crate::triton::{DataType, Input, decode_strings};

/// The inputs of one request. Every accessor takes the name of a row of the table; aliases are found too.
pub struct Inputs<'a> {
    tensors: Vec<(&'static InputRow, &'a Input<'a>)>,
    /// Whether tensors have a batch dimension.
    batched: bool,
    batch: usize,
}

impl<'a> Inputs<'a> {
    /// Sorts the tensors into the table's rows.
    ///
    /// # Errors
    /// `InvalidArg` for a tensor that is in no row or of another type, and for one given under two names.
    pub fn new(tensors: &'a [Input<'a>], batched: bool) -> Result<Self> {
        let mut found: Vec<(&'static InputRow, &Input<'_>)> = Vec::with_capacity(tensors.len());
        for tensor in tensors.iter().filter(|tensor| !SEQUENCE_CONTROLS.contains(&tensor.name)) {
            let row = InputRow::find(tensor.name)
                .ok_or_else(|| Error::invalid(format!("input {:?} is unknown to this backend", tensor.name)))?;
            if let Some((_, other)) = found.iter().find(|(known, _)| known.name == row.name) {
                return Err(Error::invalid(format!(
                    "inputs {:?} and {:?} mean the same, give one of them",
                    other.name, tensor.name
                )));
            }
            check_type(row, tensor)?;
            found.push((row, tensor));
        }
        let mut inputs = Self { tensors: found, batched, batch: 1 };
        inputs.batch = inputs.batch_size()?;
        Ok(inputs)
    }

    /// Number of prompts, at least 1.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Refuses what is not served.
    ///
    /// # Errors
    /// `Unsupported` naming the tensor.
    pub fn refuse_unsupported(&self) -> Result<()> {
        for (row, tensor) in &self.tensors {
            let neutral = match row.usage {
                Use::Served | Use::Ignored => true,
                Use::OnlyEmpty => tensor.element_count() == 0 || empty_strings(tensor),
                Use::OnlyNumber(number) => all_equal(tensor, number),
            };
            if !neutral {
                let accepted = match row.usage {
                    Use::OnlyNumber(number) => format!("it must be {number} or absent"),
                    _ => "it must be absent or empty".to_owned(),
                };
                return Err(Error::unsupported(format!(
                    "input {:?} is not supported by this version: {accepted}",
                    tensor.name
                )));
            }
        }
        Ok(())
    }

    /// Whether the input was given with at least one element.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The first element of a flag; false where absent. One value serves the whole batch.
    pub fn flag(&self, name: &str) -> bool {
        self.find(name).and_then(|tensor| tensor.bytes.first().copied()).is_some_and(|byte| byte != 0)
    }

    /// The flag of one batch item.
    ///
    /// # Errors
    /// `Invalid size for tensor` unless there is one element for each batch item.
    pub fn flag_of(&self, name: &str, item: usize) -> Result<Option<bool>> {
        self.scalar::<1>(name, item).map(|bytes| bytes.map(|[byte]| byte != 0))
    }

    /// The 32-bit integer of one batch item.
    ///
    /// # Errors
    /// As for [`Inputs::flag_of`].
    pub fn int(&self, name: &str, item: usize) -> Result<Option<i32>> {
        self.scalar(name, item).map(|bytes| bytes.map(i32::from_le_bytes))
    }

    /// The 64-bit integer of one batch item.
    ///
    /// # Errors
    /// As for [`Inputs::flag_of`].
    pub fn uint64(&self, name: &str, item: usize) -> Result<Option<u64>> {
        self.scalar(name, item).map(|bytes| bytes.map(u64::from_le_bytes))
    }

    /// The finite number of one batch item.
    ///
    /// # Errors
    /// As for [`Inputs::flag_of`], and `InvalidArg` for NaN and the infinities.
    pub fn float(&self, name: &str, item: usize) -> Result<Option<f32>> {
        let value = self.scalar(name, item)?.map(f32::from_le_bytes);
        match value {
            Some(value) if !value.is_finite() => {
                Err(Error::invalid(format!("{} is {value}, expected a finite number", self.given_name(name))))
            }
            value => Ok(value),
        }
    }

    /// The integers of one batch item's row; empty where absent.
    ///
    /// # Errors
    /// `InvalidArg` where the tensor cannot be divided among the batch items.
    pub fn ints(&self, name: &str, item: usize) -> Result<Vec<i32>> {
        let Some(tensor) = self.find(name) else { return Ok(Vec::new()) };
        let per_item = self.share(tensor)? * 4;
        let bytes = tensor.bytes.get(item * per_item..(item + 1) * per_item).ok_or_else(|| wrong_size(tensor.name))?;
        Ok(bytes.as_chunks().0.iter().map(|&chunk| i32::from_le_bytes(chunk)).collect())
    }

    /// The texts of one batch item's row; empty where absent.
    ///
    /// # Errors
    /// `InvalidArg` where the tensor is malformed or a text is not UTF-8.
    pub fn texts(&self, name: &str, item: usize) -> Result<Vec<&str>> {
        let Some(tensor) = self.find(name) else { return Ok(Vec::new()) };
        let per_item = self.share(tensor)?;
        let all = decode_strings(tensor.name, &tensor.bytes)?;
        let texts = all.get(item * per_item..(item + 1) * per_item).ok_or_else(|| wrong_size(tensor.name))?;
        let utf8 = |bytes: &&'a [u8]| {
            std::str::from_utf8(bytes)
                .map_err(|error| Error::invalid(format!("{} is not valid UTF-8: {error}", tensor.name)))
        };
        texts.iter().map(utf8).collect()
    }

    /// The name under which the client gave an input.
    pub fn given_name(&self, name: &str) -> &str {
        self.tensors
            .iter()
            .find(|(row, _)| row.name == name)
            .map_or_else(|| InputRow::find(name).map_or("input", |row| row.name), |(_, tensor)| tensor.name)
    }

    /// The tensor, unless it has no element: the ensemble sends such for what its client did not give.
    fn find(&self, name: &str) -> Option<&'a Input<'a>> {
        let tensor = self.tensors.iter().find(|(row, _)| row.name == name).map(|&(_, tensor)| tensor);
        tensor.filter(|tensor| tensor.element_count() > 0)
    }

    /// The element of one batch item of a tensor with exactly one element for each.
    fn scalar<const N: usize>(&self, name: &str, item: usize) -> Result<Option<[u8; N]>> {
        let given = self.tensors.iter().find(|(row, _)| row.name == name).map(|&(_, tensor)| tensor);
        let Some(tensor) = given else { return Ok(None) };
        let elements = tensor.bytes.as_chunks::<N>();
        if tensor.element_count() != self.batch || elements.0.len() != self.batch || !elements.1.is_empty() {
            return Err(wrong_size(tensor.name));
        }
        Ok(Some(elements.0[item]))
    }

    /// Elements of one batch item.
    fn share(&self, tensor: &Input<'_>) -> Result<usize> {
        let rows = if self.batched { tensor.shape.first().map_or(1, |&dim| dim.max(0) as usize) } else { self.batch };
        if rows != self.batch {
            return Err(wrong_size(tensor.name));
        }
        Ok(tensor.element_count() / self.batch)
    }

    fn batch_size(&self) -> Result<usize> {
        let given = |name| self.tensors.iter().find(|(row, _)| row.name == name).map(|&(_, tensor)| tensor);
        let prompt = match (given("input_ids"), given("text_input")) {
            (Some(ids), Some(text)) if ids.element_count() > 0 && text.element_count() > 0 => {
                return Err(Error::invalid("input_ids and text_input are both given, expected one of them"));
            }
            (Some(ids), text) if ids.element_count() > 0 || text.is_none() => ids,
            (_, Some(text)) => text,
            _ => return Ok(1),
        };
        let rank = 1 + usize::from(self.batched);
        if prompt.shape.len() != rank {
            return Err(Error::invalid(format!(
                "{} has shape {:?}, expected {rank} dimensions [{}]",
                prompt.name,
                prompt.shape,
                if self.batched { "batch, length" } else { "length" }
            )));
        }
        Ok(if self.batched { prompt.shape[0].max(1) as usize } else { 1 })
    }
}

fn wrong_size(name: &str) -> Error {
    Error::invalid(format!("Invalid size for tensor {name}: expected one element for each batch item"))
}

/// Types of the same width are accepted: repositories of old versions declare UINT32 where INT32 is meant.
fn check_type(row: &InputRow, tensor: &Input<'_>) -> Result<()> {
    let width = |dtype: DataType| dtype.size_bytes();
    let float = |dtype| matches!(dtype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64);
    let read = matches!(row.usage, Use::Served | Use::OnlyNumber(_)) && row.declared != Declared::ByUser;
    if read && (width(row.dtype) != width(tensor.dtype) || float(row.dtype) != float(tensor.dtype)) {
        return Err(Error::invalid(format!(
            "input {:?} has type {}, expected {}",
            tensor.name,
            tensor.dtype.name(),
            row.dtype.name()
        )));
    }
    let expected = width(tensor.dtype).map(|bytes| bytes * tensor.element_count());
    if expected.is_some_and(|expected| expected != tensor.bytes.len()) {
        return Err(Error::invalid(format!(
            "Invalid size for tensor {}: {} bytes do not fill shape {:?}",
            tensor.name,
            tensor.bytes.len(),
            tensor.shape
        )));
    }
    Ok(())
}

/// The HTTP frontend's `""` is one text of no bytes.
fn empty_strings(tensor: &Input<'_>) -> bool {
    tensor.dtype == DataType::Bytes
        && decode_strings(tensor.name, &tensor.bytes).is_ok_and(|texts| texts.iter().all(|text| text.is_empty()))
}

fn all_equal(tensor: &Input<'_>, number: i32) -> bool {
    let bytes = &tensor.bytes;
    match tensor.dtype.size_bytes() {
        Some(1) => bytes.iter().all(|&byte| i32::from(byte) == number),
        Some(4) if tensor.dtype == DataType::Fp32 => {
            bytes.as_chunks().0.iter().all(|&chunk| f32::from_le_bytes(chunk) == number as f32)
        }
        Some(4) => bytes.as_chunks().0.iter().all(|&chunk| i32::from_le_bytes(chunk) == number),
        Some(8) => bytes.as_chunks().0.iter().all(|&chunk| i64::from_le_bytes(chunk) == i64::from(number)),
        _ => bytes.is_empty(),
    }
}
