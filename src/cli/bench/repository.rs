//! `trtllm bench repository`: a model to measure a server with, without a checkpoint.

use crate::device::DeviceKind;
use crate::error::{Error, Result};
use crate::model::preset_config;
use clap::Args;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct RepositoryArgs {
    /// Folder of the repository; the model goes into a folder of its own there.
    folder: PathBuf,
    /// The shape of a well-known model, e.g. llama-3.1-8b.
    #[arg(long)]
    dummy: String,
    /// Name of the model in the repository.
    #[arg(long, default_value = "tensorrt_llm")]
    model: String,
    /// cpu, cuda or auto.
    #[arg(long, default_value_t = DeviceKind::Auto)]
    device: DeviceKind,
    /// Most sequences that run together.
    #[arg(long, visible_alias = "max_batch_size", default_value_t = 64)]
    max_batch_size: usize,
    /// Most tokens in one step; default: by device.
    #[arg(long, visible_alias = "max_num_tokens")]
    max_num_tokens: Option<usize>,
    /// Prompt and output together; default: the model's.
    #[arg(long, visible_alias = "max_seq_len")]
    max_seq_len: Option<usize>,
}

impl RepositoryArgs {
    /// Writes `config.pbtxt` and `1/config.json`.
    ///
    /// # Errors
    /// A shape that there is not; a folder that cannot be written.
    pub fn run(&self) -> Result<()> {
        let shape = preset_config(&self.dummy)?;
        let model = self.folder.join(&self.model);
        let version = model.join("1");
        fs::create_dir_all(&version).map_err(|error| unwritable(&version, &error))?;
        let shape = serde_json::to_string_pretty(&shape).unwrap_or_default();
        for (path, text) in [(version.join("config.json"), shape), (model.join("config.pbtxt"), self.config())] {
            fs::write(&path, text).map_err(|error| unwritable(&path, &error))?;
        }
        println!("{} serves {} with made-up weights", model.display(), self.dummy);
        Ok(())
    }

    fn config(&self) -> String {
        let mut text = "backend: \"tensorrtllm\"\nmodel_transaction_policy { decoupled: true }\n".to_owned();
        text.push_str("instance_group [{ count: 1 kind: KIND_MODEL }]\n");
        let count = |value: Option<usize>| value.map(|value| value.to_string());
        let parameters = [
            ("load_format", Some("dummy".to_owned())),
            ("device", Some(self.device.to_string())),
            ("max_batch_size", Some(self.max_batch_size.to_string())),
            ("max_num_tokens", count(self.max_num_tokens)),
            ("max_seq_len", count(self.max_seq_len)),
        ];
        for (key, value) in parameters {
            if let Some(value) = value {
                // Writing to a text cannot fail.
                let _ = writeln!(text, "parameters {{ key: \"{key}\" value: {{ string_value: \"{value}\" }} }}");
            }
        }
        text
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    Error::invalid(format!("{} cannot be written: {error}", path.display()))
}
