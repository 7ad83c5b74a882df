//! Whole requests through the entry points: tensors in, tensors out, with an executor whose tokens a test writes down.

#[path = "adapter/beams.rs"]
mod beams;
#[path = "adapter/bls.rs"]
mod bls;
#[path = "adapter/contract.rs"]
mod contract;
#[path = "adapter/docs.rs"]
mod docs;
#[path = "adapter/ensemble.rs"]
mod ensemble;
#[path = "abi/fake.rs"]
mod fake;
#[path = "adapter/lifecycle.rs"]
mod lifecycle;
#[path = "adapter/llm.rs"]
mod llm;
#[path = "adapter/logits.rs"]
mod logits;
#[path = "adapter/operation.rs"]
mod operation;
#[path = "adapter/parameters.rs"]
mod parameters;
#[path = "adapter/prompt_tables.rs"]
mod prompt_tables;
#[path = "adapter/prompts.rs"]
mod prompts;
#[path = "adapter/repositories.rs"]
mod repositories;
#[path = "adapter/rows.rs"]
mod rows;
#[path = "adapter/scheduling.rs"]
mod scheduling;
#[path = "adapter/script.rs"]
mod script;
#[path = "adapter/surroundings.rs"]
mod surroundings;
#[path = "adapter/tensors.rs"]
mod tensors;
#[path = "adapter/text.rs"]
mod text;
