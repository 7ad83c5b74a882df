//! Reading a JSON object with errors that name the file, the key, the value and the bound.

use super::formats::found_in;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// One JSON object of a configuration file.
#[derive(Clone, Debug)]
pub struct Section {
    /// For errors: `"/models/llama/config.json"`, or with `: rope_scaling` behind.
    origin: String,
    map: Map<String, Value>,
}

impl Section {
    /// Reads a file that holds one JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|error| Error::invalid(format!("cannot read {origin}: {error}")))?;
        let value = serde_json::from_str(&text)
            .map_err(|error| Error::invalid(format!("{origin} is not valid JSON: {error}")))?;
        Self::from_value(origin, value)
    }

    /// `config.json` of a model's folder.
    ///
    /// # Errors
    /// Says what was found when the folder is no model.
    pub fn read_model(folder: &Path) -> Result<Self> {
        let shown = folder.display();
        if folder.extension().is_some_and(|extension| extension == "nemo") {
            return Err(Error::unsupported(format!(
                "{shown} is a NeMo archive, which is not served yet: name the model's Hugging Face folder"
            )));
        }
        if !folder.is_dir() {
            let what = match (folder.exists(), folder.parent().filter(|parent| parent.join("config.json").exists())) {
                (true, Some(parent)) => format!("is a file of the model in {}", parent.display()),
                (true, None) => "is a file".to_owned(),
                (false, _) => "does not exist".to_owned(),
            };
            return Err(Error::not_found(format!("{shown} {what}; a model is a folder with a config.json")));
        }
        let path = folder.join("config.json");
        // A link that leads nowhere is there, and reading it says what is wrong.
        if path.symlink_metadata().is_err() {
            return Err(Error::not_found(format!("{shown} is no model: it has no config.json ({})", found_in(folder))));
        }
        Self::read(&path)
    }

    /// `origin` is named in errors.
    pub fn from_value(origin: impl Into<String>, value: Value) -> Result<Self> {
        let origin = origin.into();
        match value {
            Value::Object(map) => Ok(Self { origin, map }),
            other => Err(Error::invalid(format!("{origin} must hold a JSON object, not {}", shown(&other)))),
        }
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The whole object as JSON.
    pub fn to_json(&self) -> String {
        Value::Object(self.map.clone()).to_string()
    }

    /// The same object with values for keys that are absent or null: the defaults of a family.
    pub fn with_defaults(&self, defaults: Value) -> Self {
        let mut section = self.clone();
        for (key, value) in defaults.as_object().into_iter().flatten() {
            if section.map.get(key).is_none_or(Value::is_null) {
                section.map.insert(key.clone(), value.clone());
            }
        }
        section
    }

    /// [`Section::with_defaults`] from the other keys of an object, but for those named.
    pub fn with_defaults_of(&self, other: &Self, but: &[&str]) -> Self {
        let mut defaults = other.map.clone();
        but.iter().for_each(|&key| drop(defaults.remove(key)));
        self.with_defaults(Value::Object(defaults))
    }

    /// The same object with one value replaced.
    pub fn with(&self, key: &'static str, value: Value) -> Self {
        let mut section = self.clone();
        section.map.insert(key.to_owned(), value);
        section
    }

    /// The configurations of full and of sliding layers, where `rope_parameters` has both kinds.
    pub fn ropes_by_kind(&self) -> Result<Option<(Self, Self)>> {
        let Some(ropes) = self.section("rope_parameters")? else { return Ok(None) };
        let of = |kind| ropes.first(&[kind]).map(|(_, value)| self.with("rope_parameters", value.clone()));
        Ok(of("full_attention").zip(of("sliding_attention")))
    }

    /// The first of `keys` that is there and not null.
    pub fn first(&self, keys: &[&'static str]) -> Option<(&'static str, &Value)> {
        keys.iter().find_map(|&key| self.map.get(key).filter(|value| !value.is_null()).map(|value| (key, value)))
    }

    /// Whether `key` is there and null.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// A nested object; null is absent.
    pub fn section(&self, key: &'static str) -> Result<Option<Section>> {
        let Some((_, value)) = self.first(&[key]) else { return Ok(None) };
        match value {
            Value::Object(map) => Ok(Some(Self { origin: format!("{}: {key}", self.origin), map: map.clone() })),
            other => Err(self.error(key, other, "an object")),
        }
    }

    /// The values of the object.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.map.values()
    }

    /// An integer in `1..=max`.
    pub fn count(&self, keys: &[&'static str], max: usize) -> Result<Option<usize>> {
        let Some((key, value)) = self.first(keys) else { return Ok(None) };
        let count =
            value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| (1..=max).contains(count));
        count.map(Some).ok_or_else(|| self.error(key, value, &format!("an integer from 1 to {max}")))
    }

    /// [`Section::count`] of a key that must be there.
    pub fn required_count(&self, keys: &[&'static str], max: usize) -> Result<usize> {
        self.count(keys, max)?.ok_or_else(|| self.missing(keys))
    }

    /// An integer from 0 on.
    pub fn index(&self, keys: &[&'static str]) -> Result<Option<usize>> {
        let Some((key, value)) = self.first(keys) else { return Ok(None) };
        let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
        index.map(Some).ok_or_else(|| self.error(key, value, "an integer from 0 on"))
    }

    /// A finite number greater than 0.
    pub fn positive(&self, keys: &[&'static str]) -> Result<Option<f64>> {
        let Some((key, value)) = self.first(keys) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        number.map(Some).ok_or_else(|| self.error(key, value, "a finite number greater than 0"))
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &'static str, default: bool) -> Result<bool> {
        let Some((_, value)) = self.first(&[key]) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(key, value, "true or false"))
    }

    /// A string.
    pub fn text(&self, keys: &[&'static str]) -> Result<Option<&str>> {
        let Some((key, value)) = self.first(keys) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(key, value, "a string"))
    }

    /// A list of exactly `len` finite numbers greater than 0.
    pub fn positives(&self, key: &'static str, len: usize) -> Result<Vec<f64>> {
        let (_, value) = self.first(&[key]).ok_or_else(|| self.missing(&[key]))?;
        let wanted = || self.error(key, value, &format!("a list of {len} numbers greater than 0"));
        let list = value.as_array().filter(|list| list.len() == len).ok_or_else(wanted)?;
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        list.iter().map(number).collect::<Option<_>>().ok_or_else(wanted)
    }

    /// "`key` is `value`, not `wanted`".
    pub fn error(&self, key: &str, value: &Value, wanted: &str) -> Error {
        Error::invalid(format!("{}: {key} is {}; it must be {wanted}", self.origin, shown(value)))
    }

    /// None of `keys` is there.
    pub fn missing(&self, keys: &[&'static str]) -> Error {
        Error::invalid(format!("{} has no {}", self.origin, keys.join(" or ")))
    }
}

/// A value for an error message, shortened.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.chars().count() > 60 {
        text = text.chars().take(60).chain("…".chars()).collect();
    }
    text
}
