//! The inputs of a request that has one prompt, by name.

use crate::adapter::tensor::NamedTensor;
use crate::error::{Error, Result};
use crate::tensors::Row;
use crate::triton::Input;

/// The inputs; those without elements are absent.
pub struct Given(Vec<NamedTensor>);

impl Given {
    /// Decodes the inputs.
    ///
    /// # Errors
    /// `InvalidArg` for an input that is in none of the rows, and for one that is malformed.
    pub fn new(inputs: &[Input<'_>], rows: &[Row]) -> Result<Self> {
        if let Some(input) = inputs.iter().find(|input| !rows.iter().any(|row| row.0 == input.name)) {
            return Err(Error::invalid(format!("input {:?} is unknown to this role", input.name)));
        }
        let tensors = inputs.iter().map(NamedTensor::try_from).collect::<Result<Vec<_>>>()?;
        Ok(Self(tensors.into_iter().filter(|tensor| !tensor.data.is_empty()).collect()))
    }

    /// The tensor, if it has an element.
    pub fn find(&self, name: &str) -> Option<&NamedTensor> {
        self.0.iter().find(|tensor| tensor.name == name)
    }

    /// The texts of a tensor; empty ones, which HTTP clients send for nothing, are left out.
    ///
    /// # Errors
    /// `InvalidArg` where they are not UTF-8.
    pub fn texts(&self, name: &str) -> Result<Vec<String>> {
        let texts = self.find(name).map(NamedTensor::to_strings).transpose()?.unwrap_or_default();
        Ok(texts.into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect())
    }

    /// The prompt: the first element of `text_input`.
    ///
    /// # Errors
    /// `InvalidArg` where there is none or more than one dimension.
    pub fn prompt(&self) -> Result<String> {
        let tensor = self.find("text_input").ok_or_else(|| Error::invalid("text_input is missing from the request"))?;
        if tensor.shape.len() > 1 {
            return Err(Error::invalid(format!(
                "text_input has shape {:?}, expected a 1D tensor: one prompt a request",
                tensor.shape
            )));
        }
        let texts = tensor.to_strings()?;
        Ok(texts.first().copied().unwrap_or_default().to_owned())
    }

    /// A flag; false where absent.
    ///
    /// # Errors
    /// As for [`Given::int`].
    pub fn flag(&self, name: &str) -> Result<bool> {
        Ok(self.given_flag(name)?.unwrap_or(false))
    }

    /// A flag that may be absent.
    ///
    /// # Errors
    /// As for [`Given::int`].
    pub fn given_flag(&self, name: &str) -> Result<Option<bool>> {
        self.scalar(name)?.map(|tensor| Ok(tensor.to_bool()?[0])).transpose()
    }

    /// A whole number.
    ///
    /// # Errors
    /// `InvalidArg` where the tensor has several elements or another type.
    pub fn int(&self, name: &str) -> Result<Option<i32>> {
        self.scalar(name)?.map(|tensor| Ok(tensor.to_i32()?[0])).transpose()
    }

    /// A number without sign.
    ///
    /// # Errors
    /// As for [`Given::int`].
    pub fn uint64(&self, name: &str) -> Result<Option<u64>> {
        self.scalar(name)?.map(|tensor| Ok(tensor.to_u64()?[0])).transpose()
    }

    /// A number.
    ///
    /// # Errors
    /// As for [`Given::int`].
    pub fn float(&self, name: &str) -> Result<Option<f32>> {
        self.scalar(name)?.map(|tensor| Ok(tensor.to_f32()?[0])).transpose()
    }

    fn scalar(&self, name: &str) -> Result<Option<&NamedTensor>> {
        match self.find(name) {
            Some(tensor) if tensor.data.len() != 1 => {
                Err(Error::invalid(format!("Expected a scalar tensor for tensor {name}, got shape {:?}", tensor.shape)))
            }
            tensor => Ok(tensor),
        }
    }
}
