//! Embeddings that a request brings for prompt tokens behind the vocabulary.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::inputs::Inputs;
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::step::PromptTable;

const NAME: &str = "prompt_embedding_table";

/// The table of one batch item, of rows of `width` values; none where it is absent or empty.
///
/// # Errors
/// `InvalidArg` for another shape than `[rows, width]` behind the batch axis; `Unsupported` where the model takes none.
pub fn read(inputs: &Inputs<'_>, row: usize, width: Option<usize>) -> Result<Option<PromptTable>> {
    let Some(shape) = inputs.shape(NAME) else { return Ok(None) };
    let Some(width) = width else {
        return Err(Error::unsupported(format!("input \"{NAME}\" is not supported by this version for this model")));
    };
    let fits = match shape {
        [batch, _, last] => *last == width as i64 && *batch == inputs.batch() as i64,
        [_, last] => *last == width as i64 && inputs.batch() == 1,
        _ => false,
    };
    if !fits {
        return Err(Error::invalid(format!(
            "{NAME} has shape {shape:?}, expected rows of {width}, the embedding size of the model: [{}, rows, {width}]",
            inputs.batch()
        )));
    }
    PromptTable::new(width, inputs.batch_floats(NAME, row)?).map(Some)
}

/// What tells tokens of equal number and different rows apart, for requests that do not say it themselves: nothing, or a
/// number for each token of the prompt.
pub fn identities(table: &PromptTable, prompt: &[TokenId], vocab_size: usize) -> Vec<u64> {
    let is_row = |token: &TokenId| *token as usize >= vocab_size;
    if !prompt.iter().any(is_row) {
        return Vec::new();
    }
    let identity = |row: usize| {
        let mut hasher = DefaultHasher::new();
        table.row(row).iter().for_each(|value| value.to_bits().hash(&mut hasher));
        hasher.finish().max(1)
    };
    let of = |token: &TokenId| if is_row(token) { identity(*token as usize - vocab_size) } else { 0 };
    prompt.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_are_equal_and_ordinary_tokens_are_nothing() {
        let table = PromptTable::new(2, vec![1.0, 2.0, 3.0, 4.0, 1.0, 2.0]).unwrap();
        let ids = identities(&table, &[7, 10, 11, 12, 3], 10);
        assert_eq!((ids[0], ids[4], ids[1]), (0, 0, ids[3]));
        assert!(ids[1] != 0 && ids[1] != ids[2]);
        assert!(identities(&table, &[1, 2], 10).is_empty());
    }
}
