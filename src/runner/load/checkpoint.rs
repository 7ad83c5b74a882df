//! The files of a model, opened.

use super::{ModelOptions, ModelSource};
use crate::error::Result;
use crate::model::families::{self, Family};
use crate::model::formats::{self, EngineLimits, OpenedCheckpoint};
use crate::model::{ModelConfig, Section, SpecialTokens, WeightSource, preset};
use std::path::PathBuf;

/// The files of a model.
pub(super) struct Checkpoint {
    pub name: String,
    pub format: String,
    pub family: &'static Family,
    pub section: Section,
    pub special_tokens: SpecialTokens,
    pub weights: WeightSource,
    pub engine: EngineLimits,
    /// Where the weights are; `None`: they are made up.
    pub files: Option<PathBuf>,
}

impl Checkpoint {
    pub fn open(options: &ModelOptions) -> Result<Self> {
        let path = match &options.source {
            ModelSource::Folder(path) => path,
            ModelSource::Dummy(name) => return Self::dummy(format!("dummy {name}"), preset(name)?),
            ModelSource::DummyFolder(path) => {
                let section = families::text_part(Section::read_model(path)?)?;
                return Self::dummy(format!("dummy {}", path.display()), section);
            }
        };
        let OpenedCheckpoint { format, path, config, special_tokens, store, limits } =
            formats::open(path, &options.weight_places)?;
        Ok(Self {
            name: path.display().to_string(),
            format,
            family: families::detect(&config)?,
            section: config,
            special_tokens,
            weights: WeightSource::Checkpoint(store),
            engine: limits,
            files: Some(path),
        })
    }

    fn dummy(name: String, section: Section) -> Result<Self> {
        Ok(Self {
            name,
            format: "made-up weights".to_owned(),
            family: families::detect(&section)?,
            section,
            special_tokens: SpecialTokens::default(),
            weights: WeightSource::Random,
            engine: EngineLimits::default(),
            files: None,
        })
    }

    /// Options where they are given, else what the engine was built for.
    pub fn limited(&self, options: &ModelOptions, config: &ModelConfig) -> ModelOptions {
        let engine_seq_len = self.engine.max_seq_len.map(|longest| longest.min(config.rope.longest_tokens()));
        ModelOptions {
            max_batch_size: options.max_batch_size.or(self.engine.max_batch_size),
            max_seq_len: options.max_seq_len.or(engine_seq_len),
            ..options.clone()
        }
    }
}
