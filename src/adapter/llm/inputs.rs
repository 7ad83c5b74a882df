//! The input tensors of one Triton request, read by name and batch item.

use crate::adapter::tensor::NamedTensor;
use crate::error::{Error, Result};
use crate::tensors::llm::{Declared, InputRow, SEQUENCE_CONTROLS, Use};
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
        // One of the pair alone says nothing.
        let lone_table = !self.has("mrope_position_deltas");
        for (row, tensor) in &self.tensors {
            let neutral = match row.usage {
                Use::Served | Use::Ignored => true,
                Use::OnlyEmpty if row.name == "mrope_rotary_cos_sin" && lone_table => true,
                Use::OnlyEmpty => tensor.element_count() == 0 || empty_strings(tensor),
            };
            if !neutral {
                return Err(Error::unsupported(format!(
                    "input {:?} is not supported by this version: it must be absent or empty",
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
        let first = |tensor: &Input<'_>| {
            let width = tensor.dtype.size_bytes().unwrap_or(tensor.bytes.len());
            tensor.bytes.iter().take(width).any(|&byte| byte != 0)
        };
        self.find(name).is_some_and(first)
    }

    /// The flag of one batch item.
    ///
    /// # Errors
    /// `Invalid size for tensor` unless there is one element for each batch item.
    pub fn flag_of(&self, name: &str, item: usize) -> Result<Option<bool>> {
        Ok(match self.scalar(name)? {
            Some(tensor) => Some(integers(tensor)?[item] != 0),
            None => None,
        })
    }

    /// The 32-bit integer of one batch item.
    ///
    /// # Errors
    /// As for [`Inputs::flag_of`].
    pub fn int(&self, name: &str, item: usize) -> Result<Option<i32>> {
        Ok(match self.scalar(name)? {
            Some(tensor) => Some(integers(tensor)?[item]),
            None => None,
        })
    }

    /// The 64-bit integer of one batch item.
    ///
    /// # Errors
    /// As for [`Inputs::flag_of`].
    pub fn uint64(&self, name: &str, item: usize) -> Result<Option<u64>> {
        let Some(tensor) = self.scalar(name)? else { return Ok(None) };
        Ok(Some(match tensor.dtype {
            DataType::Uint64 | DataType::Int64 => u64::from_le_bytes(tensor.bytes.as_chunks().0[item]),
            _ => NamedTensor::try_from(tensor)?.to_u64()?[item],
        }))
    }

    /// The finite number of one batch item.
    ///
    /// # Errors
    /// As for [`Inputs::flag_of`], and `InvalidArg` for NaN and the infinities.
    pub fn float(&self, name: &str, item: usize) -> Result<Option<f32>> {
        let value = match self.scalar(name)? {
            Some(tensor) => Some(NamedTensor::try_from(tensor)?.to_f32()?[item]),
            None => None,
        };
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
        let per_item = self.share(tensor)?;
        let range = item * per_item..(item + 1) * per_item;
        if let DataType::Int32 | DataType::Uint32 = tensor.dtype {
            // Only the row is decoded: prompts of a large batch are long.
            let row = tensor.bytes.as_chunks().0.get(range).ok_or_else(|| wrong_size(tensor.name))?;
            return Ok(row.iter().map(|&chunk| i32::from_le_bytes(chunk)).collect());
        }
        Ok(integers(tensor)?.get(range).ok_or_else(|| wrong_size(tensor.name))?.to_vec())
    }

    /// The numbers of one batch item's row; empty where absent.
    ///
    /// # Errors
    /// As for [`Inputs::ints`].
    pub fn floats(&self, name: &str, item: usize) -> Result<Vec<f32>> {
        let Some(tensor) = self.find(name) else { return Ok(Vec::new()) };
        let per_item = self.share(tensor)?;
        let values = NamedTensor::try_from(tensor)?.to_f32()?;
        Ok(values.get(item * per_item..(item + 1) * per_item).ok_or_else(|| wrong_size(tensor.name))?.to_vec())
    }

    /// The shape of an input that has elements.
    pub fn shape(&self, name: &str) -> Option<&'a [i64]> {
        self.find(name).map(|tensor| tensor.shape)
    }

    /// The numbers that one batch item has in a tensor of any shape.
    ///
    /// # Errors
    /// As for [`Inputs::ints`].
    pub fn batch_floats(&self, name: &str, item: usize) -> Result<Vec<f32>> {
        let Some(tensor) = self.find(name) else { return Ok(Vec::new()) };
        let (values, per_item) = (NamedTensor::try_from(tensor)?.to_f32()?, tensor.element_count() / self.batch);
        Ok(values.get(item * per_item..(item + 1) * per_item).ok_or_else(|| wrong_size(tensor.name))?.to_vec())
    }

    /// The 64-bit integers of one batch item's row; empty where absent.
    ///
    /// # Errors
    /// As for [`Inputs::ints`].
    pub fn uint64s(&self, name: &str, item: usize) -> Result<Vec<u64>> {
        let Some(tensor) = self.find(name) else { return Ok(Vec::new()) };
        let per_item = self.share(tensor)?;
        let values = match tensor.dtype {
            DataType::Uint64 | DataType::Int64 => {
                tensor.bytes.as_chunks().0.iter().map(|&chunk| u64::from_le_bytes(chunk)).collect()
            }
            _ => NamedTensor::try_from(tensor)?.to_u64()?,
        };
        Ok(values.get(item * per_item..(item + 1) * per_item).ok_or_else(|| wrong_size(tensor.name))?.to_vec())
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

    /// A tensor with exactly one element for each batch item.
    fn scalar(&self, name: &str) -> Result<Option<&'a Input<'a>>> {
        match self.find(name) {
            Some(tensor) if tensor.element_count() != self.batch => Err(wrong_size(tensor.name)),
            tensor => Ok(tensor),
        }
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

/// The elements of a tensor of whole numbers. UINT32 is INT32 in all but its name: -1 comes as its bit pattern.
fn integers(tensor: &Input<'_>) -> Result<Vec<i32>> {
    match tensor.dtype {
        DataType::Int32 | DataType::Uint32 => {
            Ok(tensor.bytes.as_chunks().0.iter().map(|&chunk| i32::from_le_bytes(chunk)).collect())
        }
        _ => NamedTensor::try_from(tensor)?.to_i32(),
    }
}

fn wrong_size(name: &str) -> Error {
    Error::invalid(format!("Invalid size for tensor {name}: expected one element for each batch item"))
}

/// Whole numbers of any width are taken where whole numbers or flags are meant, and numbers with a fraction likewise:
/// repositories of old versions declare other types.
fn check_type(row: &InputRow, tensor: &Input<'_>) -> Result<()> {
    let width = |dtype: DataType| dtype.size_bytes();
    let float = |dtype| matches!(dtype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64);
    let text = |dtype| dtype == DataType::Bytes;
    let kind = |dtype| (float(dtype), text(dtype));
    let read = row.usage == Use::Served && row.declared != Declared::ByUser;
    if read && kind(row.dtype) != kind(tensor.dtype) {
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
