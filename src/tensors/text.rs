//! The tensors of the roles `preprocessing` and `postprocessing`.

use super::Row;

/// Inputs of the role `preprocessing`.
#[rustfmt::skip]
pub const PREPROCESSING_INPUTS: &[Row] = &[
    ("QUERY", "TYPE_STRING", &[1], false),
    ("DECODER_QUERY", "TYPE_STRING", &[1], true),
    ("REQUEST_OUTPUT_LEN", "TYPE_INT32", &[1], false),
    ("BAD_WORDS_DICT", "TYPE_STRING", &[-1], true),
    ("STOP_WORDS_DICT", "TYPE_STRING", &[-1], true),
    ("EMBEDDING_BIAS_WORDS", "TYPE_STRING", &[-1], true),
    ("EMBEDDING_BIAS_WEIGHTS", "TYPE_FP32", &[-1], true),
    ("END_ID", "TYPE_INT32", &[1], true),
    ("PAD_ID", "TYPE_INT32", &[1], true),
    ("PROMPT_TABLE_EXTRA_ID", "TYPE_UINT64", &[1], true),
];

/// Its outputs.
#[rustfmt::skip]
pub const PREPROCESSING_OUTPUTS: &[Row] = &[
    ("INPUT_ID", "TYPE_INT32", &[-1], false),
    ("DECODER_INPUT_ID", "TYPE_INT32", &[-1], false),
    ("REQUEST_INPUT_LEN", "TYPE_INT32", &[1], false),
    ("REQUEST_DECODER_INPUT_LEN", "TYPE_INT32", &[1], false),
    ("BAD_WORDS_IDS", "TYPE_INT32", &[2, -1], false),
    ("STOP_WORDS_IDS", "TYPE_INT32", &[2, -1], false),
    ("EMBEDDING_BIAS", "TYPE_FP32", &[-1], false),
    ("REQUEST_OUTPUT_LEN", "TYPE_INT32", &[-1], false),
    ("OUT_END_ID", "TYPE_INT32", &[1], false),
    ("OUT_PAD_ID", "TYPE_INT32", &[1], false),
    ("OUT_PROMPT_TABLE_EXTRA_IDS", "TYPE_UINT64", &[-1], false),
];

/// Inputs of the role `postprocessing`.
#[rustfmt::skip]
pub const POSTPROCESSING_INPUTS: &[Row] = &[
    ("TOKENS_BATCH", "TYPE_INT32", &[-1, -1], false),
    ("SEQUENCE_LENGTH", "TYPE_INT32", &[-1], false),
];

/// Its outputs.
pub const POSTPROCESSING_OUTPUTS: &[Row] = &[("OUTPUT", "TYPE_STRING", &[-1], false)];

/// Inputs of a multimodal `preprocessing`: known, and refused.
#[rustfmt::skip]
pub const VISION_INPUTS: &[Row] = &[
    ("IMAGE", "TYPE_FP16", &[3, 224, 224], true),
    ("IMAGE_BYTES", "TYPE_UINT8", &[-1, -1, -1, -1], true),
    ("IMAGE_URL", "TYPE_STRING", &[1], true),
    ("VIDEO_BYTES", "TYPE_UINT8", &[-1, -1, -1, -1], true),
];

/// Outputs of a multimodal `preprocessing`: known, and never filled.
#[rustfmt::skip]
pub const VISION_OUTPUTS: &[Row] = &[
    ("PIXEL_VALUES", "TYPE_FP16", &[-1, -1, -1, -1], true),
    ("ASPECT_RATIO_IDS", "TYPE_INT64", &[-1], true),
    ("ASPECT_RATIO_MASK", "TYPE_INT64", &[-1, -1], true),
    ("CROSS_ATTENTION_MASK", "TYPE_INT64", &[-1, -1, -1], true),
    ("IMAGE_SIZES", "TYPE_INT64", &[2], true),
    ("IS_VIDEO_INPUT", "TYPE_BOOL", &[1], true),
    ("ATTENTION_MASK", "TYPE_INT64", &[-1], true),
    ("IMAGE_GRID_THW", "TYPE_INT64", &[3], true),
    ("VISION_INPUT_ID", "TYPE_INT32", &[-1], true),
];

/// Inputs that `postprocessing` hands on under another name, as it did up to version 0.13.
#[rustfmt::skip]
pub const HANDED_ON: &[(Row, &str)] = &[
    (("CUM_LOG_PROBS", "TYPE_FP32", &[-1], true), "OUT_CUM_LOG_PROBS"),
    (("OUTPUT_LOG_PROBS", "TYPE_FP32", &[-1, -1], true), "OUT_OUTPUT_LOG_PROBS"),
    (("CONTEXT_LOGITS", "TYPE_FP32", &[-1, -1], true), "OUT_CONTEXT_LOGITS"),
    (("GENERATION_LOGITS", "TYPE_FP32", &[-1, -1, -1], true), "OUT_GENERATION_LOGITS"),
    (("BATCH_INDEX", "TYPE_INT32", &[1], true), "OUT_BATCH_INDEX"),
];
