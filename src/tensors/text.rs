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
