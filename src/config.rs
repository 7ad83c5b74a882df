//! The parameters of a `config.pbtxt`: one table, its parsing rules, and what the operator is told about them.
//!
//! A parameter is one row of [`table`]: field, key, type, default, range, effect and documentation. The row feeds
//! parsing, the log at load and `docs/parameters.md`. This is also the only module that reads environment variables.

mod choices;
mod concerns;
mod docs;
mod engine_arguments;
mod load;
mod pbtxt;
mod table;
mod value;

pub use choices::{
    BatchSchedulerPolicy, BatchingType, ContextChunkingPolicy, DecodingMode, DeviceKind, FatalAction, GptModelType,
    GuidedBackend, LoadFormat, ModelRole, SamplingOrder,
};
pub use concerns::readers;
pub use docs::parameters_markdown;
pub use engine_arguments::{WithArguments, engine_arguments_markdown, with_engine_arguments};
pub use load::{Level, Loaded, Note, closest};
pub use pbtxt::parse_config;
pub use table::{Effect, PARAMETERS, ParameterRow, Parameters, Range, Setting, Source};
pub use value::{BraceLists, FromParameter, GpuLists, GpuName, InstanceLists, Switch, TenantWeights, is_placeholder};

/// An environment variable that is set to something.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
