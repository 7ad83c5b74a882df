//! Parameters that are one word of a few.

use super::value::{FromParameter, is_placeholder};
use crate::error::{Error, Result};

macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// The words, in the order of the documentation.
            pub const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl FromParameter for $name {
            const TYPE: &'static str = "word";

            fn from_parameter(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn show(&self) -> String {
                match self {
                    $(Self::$variant => $word.to_owned(),)+
                }
            }
        }
    };
}

choice! {
    /// Who gets KV memory.
    BatchSchedulerPolicy {
        /// A request starts when it can be expected to end beside the others; where that was wrong, one is paused.
        Balanced = "balanced",
        /// A request starts when memory for its longest possible output is there.
        GuaranteedNoEvict = "guaranteed_no_evict",
        /// A request starts as soon as its tokens fit; it may be paused and computed again.
        MaxUtilization = "max_utilization",
    }
}

choice! {
    /// How prompts that do not fit in one step share it.
    ContextChunkingPolicy {
        /// Each takes what it can before the next gets anything.
        FirstComeFirstServed = "first_come_first_served",
        /// One block for each in turn.
        EqualProgress = "equal_progress",
    }
}

choice! {
    /// What follows when the engine has failed for good.
    FatalAction {
        /// The model is not ready any more.
        NotReady = "not_ready",
        /// The server's process ends, so that whoever runs it starts it anew.
        Exit = "exit",
    }
}

choice! {
    /// Where the model runs.
    DeviceKind {
        /// The GPU where there is one, else the CPU.
        Auto = "auto",
        Cpu = "cpu",
        Cuda = "cuda",
    }
}

choice! {
    /// Where the weights come from.
    LoadFormat {
        /// The model's files.
        Auto = "auto",
        /// They are made up.
        Dummy = "dummy",
    }
}

choice! {
    /// How tokens are proposed and chosen.
    DecodingMode {
        TopK = "top_k",
        TopP = "top_p",
        TopKTopP = "top_k_top_p",
        BeamSearch = "beam_search",
        Medusa = "medusa",
        Redrafter = "redrafter",
        Lookahead = "lookahead",
        Eagle = "eagle",
    }
}

choice! {
    /// Whether guides are taken. All words but `off` mean the same engine; a vocabulary must be at hand.
    GuidedBackend {
        Xgrammar = "xgrammar",
        Llguidance = "llguidance",
        Auto = "auto",
        Off = "off",
    }
}

choice! {
    /// Order of the passes over the logits.
    SamplingOrder {
        /// Temperature, then penalties.
        TensorRtLlm = "tensorrt_llm",
        /// Penalties, then temperature.
        OpenAi = "openai",
    }
}

/// What a model of this backend does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelRole {
    /// Tokens (or text) in, tokens (or text) out.
    #[default]
    Llm,
    /// Text to tokens.
    Preprocessing,
    /// Tokens to text.
    Postprocessing,
    /// Text in, text out through the other models of the server.
    Bls,
    /// The LLM with the tensors of TensorRT-LLM's LLM-API model.
    LlmApi,
    /// The LLM with the tensors of Triton's vLLM backend.
    Vllm,
}

impl ModelRole {
    /// The accepted words.
    pub const WORDS: &'static [&'static str] = &["llm", "preprocessing", "postprocessing", "bls", "llmapi", "vllm"];

    /// The role that the parameter `model_role` names.
    ///
    /// # Errors
    /// `InvalidArg` that lists the roles.
    pub fn parse(given: Option<&str>) -> Result<Self> {
        match given {
            None | Some("" | "llm" | "tensorrt_llm") => Ok(Self::Llm),
            Some(text) if is_placeholder(text) => Ok(Self::Llm),
            Some("preprocessing") => Ok(Self::Preprocessing),
            Some("postprocessing") => Ok(Self::Postprocessing),
            Some("bls" | "tensorrt_llm_bls") => Ok(Self::Bls),
            Some("llmapi") => Ok(Self::LlmApi),
            Some("vllm") => Ok(Self::Vllm),
            Some(other) => Err(Error::invalid(format!(
                "model_role is {other:?}, expected one of {} (default llm)",
                Self::WORDS.join(", ")
            ))),
        }
    }
}

/// How requests share steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchingType {
    /// A request joins the running batch at any step.
    #[default]
    Inflight,
    /// `V1`: a batch starts together and ends together.
    Static,
}

/// The words of `gpt_model_type`.
pub struct GptModelType;

impl GptModelType {
    pub const WORDS: &'static [&'static str] = &["inflight_fused_batching", "inflight_batching", "V1", "v1"];

    /// The batching type that the parameter names; in-flight where the parameter is missing.
    ///
    /// # Errors
    /// `InvalidArg` with `Invalid gpt_model_type` for any other text, an unsubstituted placeholder included.
    pub fn parse(given: Option<&str>) -> Result<BatchingType> {
        match given {
            None | Some("inflight_batching" | "inflight_fused_batching") => Ok(BatchingType::Inflight),
            Some("V1" | "v1") => Ok(BatchingType::Static),
            Some(other) => Err(Error::invalid(format!(
                "Invalid gpt_model_type. Must be one of {}, got {other:?}",
                Self::WORDS.join(", ")
            ))),
        }
    }
}
