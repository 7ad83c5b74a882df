//! Word lists: texts to token ids and to the `[2, N]` arrays of the wire (`stop_words_list`, `bad_words_list`).
//!
//! Row 0 holds the ids of all words back to back, padded with 0; row 1 the cumulative end of each word, padded
//! with -1. The words `[10, 11]` and `[12]` are `10 11 12` over `2 3 -1`.

use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::text::tokenizer::Tokenizer;

/// Word lists of a batch as one array `[batch, 2, N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedWords {
    /// Row-major `[batch, 2, len]`.
    pub values: Vec<i32>,
    /// N: ids of the longest list of the batch, at least 1.
    pub len: usize,
}

/// The ids of each word, without special tokens; words without tokens are dropped.
///
/// # Errors
/// If the tokenizer cannot represent a word.
pub fn encode_words<S: AsRef<str>>(tokenizer: &Tokenizer, words: &[S]) -> Result<Vec<Vec<TokenId>>> {
    encode_each(tokenizer, words, false)
}

/// The ids of the comma-separated words of one text, each *with* special tokens, as TensorRT-LLM's preprocessing made
/// them in version 0.5. A word with a comma stands in quotes.
///
/// # Errors
/// Invalid for a text of several lines; if the tokenizer cannot represent a word.
pub fn encode_word_line(tokenizer: &Tokenizer, line: &str) -> Result<Vec<Vec<TokenId>>> {
    encode_each(tokenizer, &split_line(line)?, true)
}

fn encode_each<S: AsRef<str>>(tokenizer: &Tokenizer, words: &[S], special_tokens: bool) -> Result<Vec<Vec<TokenId>>> {
    let mut lists = Vec::with_capacity(words.len());
    for word in words {
        let ids = tokenizer.encode(word.as_ref(), special_tokens)?;
        if !ids.is_empty() {
            lists.push(ids);
        }
    }
    Ok(lists)
}

/// The fields of a line of CSV: commas separate, a field that begins with a quote ends at the next one, of which two
/// stand for one. Blanks belong to the fields; an empty line has none.
fn split_line(line: &str) -> Result<Vec<String>> {
    let (mut fields, mut field, mut quoted, mut begins) = (Vec::new(), String::new(), false, true);
    let line = line.strip_suffix('\n').unwrap_or(line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted || begins => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            '\n' | '\r' if !quoted => {
                return Err(Error::invalid(format!("the words {line:?} must be one line of comma-separated texts")));
            }
            c => field.push(c),
        }
        begins = c == ',' && !quoted;
    }
    fields.extend((!line.is_empty()).then_some(field));
    Ok(fields)
}

/// One word list per batch item, as an array `[batch, 2, N]`. Words must not be empty.
pub fn pack_words(batch: &[Vec<Vec<TokenId>>]) -> PackedWords {
    let total = |words: &Vec<Vec<TokenId>>| words.iter().map(Vec::len).sum::<usize>();
    let len = batch.iter().map(total).max().unwrap_or(0).max(1);
    let mut values = Vec::with_capacity(batch.len() * 2 * len);
    for words in batch {
        let start = values.len();
        values.extend(words.iter().flatten());
        values.resize(start + len, 0);
        let ends = words.iter().scan(0, |end, word| {
            *end += word.len() as i32;
            Some(*end)
        });
        values.extend(ends);
        values.resize(start + 2 * len, -1);
    }
    PackedWords { values, len }
}

/// The words of one batch item, from the flattened `[2, N]` array. Empty words are dropped.
///
/// # Errors
/// Invalid, with the reason: `odd length`, `additional -1s`, `out-of-bound offsets`, `non-increasing offsets`.
pub fn unpack_words(values: &[i32]) -> Result<Vec<Vec<TokenId>>> {
    if !values.len().is_multiple_of(2) {
        return Err(Error::invalid(format!("a word list has an odd length of {}, expected [2, N]", values.len())));
    }
    let (ids, ends) = values.split_at(values.len() / 2);
    let used = ends.iter().position(|&end| end == -1).unwrap_or(ends.len());
    if let Some(i) = ends[used..].iter().position(|&end| end != -1) {
        let (at, end) = (used + i, ends[used + i]);
        return Err(Error::invalid(format!(
            "a word list has additional -1s: offset {at} is {end} after offset {used} ended the list"
        )));
    }
    let mut words = Vec::with_capacity(used);
    let mut start = None;
    for &end in &ends[..used] {
        if end > ids.len() as i32 {
            return Err(Error::invalid(format!("a word list of {} ids has out-of-bound offsets: {end}", ids.len())));
        }
        if start.is_some_and(|start| end <= start) || end < 0 {
            let before = start.unwrap_or(0);
            return Err(Error::invalid(format!("a word list has non-increasing offsets: {end} after {before}")));
        }
        if end > 0 {
            words.push(ids[start.unwrap_or(0) as usize..end as usize].to_vec());
        }
        start = Some(end);
    }
    Ok(words)
}

/// The bias `[vocab_size]` that adds each word's weight to each of its ids. Words are encoded *with* special tokens,
/// as TensorRT-LLM's preprocessing does, so that a tokenizer that prepends BOS biases BOS as well.
///
/// # Errors
/// Invalid if the counts differ, or if a word cannot be tokenized.
pub fn embedding_bias<S: AsRef<str>>(tokenizer: &Tokenizer, words: &[S], weights: &[f32]) -> Result<Vec<f32>> {
    if words.len() != weights.len() {
        return Err(Error::invalid(format!(
            "embedding bias has {} words but {} weights, expected as many",
            words.len(),
            weights.len()
        )));
    }
    let mut bias = vec![0.0; tokenizer.vocab_size()];
    for (word, weight) in words.iter().zip(weights) {
        for id in tokenizer.encode(word.as_ref(), true)? {
            match bias.get_mut(id as usize) {
                Some(bias) => *bias += weight,
                None => {
                    return Err(Error::invalid(format!(
                        "embedding bias word {:?} has token {id}, beyond the vocabulary of {}",
                        word.as_ref(),
                        tokenizer.vocab_size()
                    )));
                }
            }
        }
    }
    Ok(bias)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{self, Random};

    #[test]
    fn the_example_of_the_contract() {
        let packed = pack_words(&[vec![vec![10, 11], vec![12]]]);
        assert_eq!(packed, PackedWords { values: vec![10, 11, 12, 2, 3, -1], len: 3 });
        assert_eq!(unpack_words(&packed.values).unwrap(), [vec![10, 11], vec![12]]);
    }

    #[test]
    fn a_batch_has_the_length_of_its_longest_list() {
        let packed = pack_words(&[vec![vec![1]], vec![], vec![vec![2, 3], vec![4]]]);
        assert_eq!(packed.len, 3);
        assert_eq!(packed.values, [1, 0, 0, 1, -1, -1, 0, 0, 0, -1, -1, -1, 2, 3, 4, 2, 3, -1]);
    }

    #[test]
    fn no_words_are_one_column() {
        let tokenizer = testing::tokenizer(&testing::byte_level());
        let words = encode_words(&tokenizer, &[""]).unwrap();
        assert_eq!(pack_words(&[words]), PackedWords { values: vec![0, -1], len: 1 });
    }

    #[test]
    fn s6_1_a_line_of_words_is_split_by_the_rules_of_csv() {
        for (line, words) in [
            ("", &[][..]),
            ("\n", &[]),
            ("stop", &["stop"]),
            (" I am happy, I am sad", &[" I am happy", " I am sad"]),
            ("a,,b,", &["a", "", "b", ""]),
            ("\"a, b\",c", &["a, b", "c"]),
            ("\"say \"\"hi\"\"\",x\r\n", &["say \"hi\"", "x"]),
            ("5\" nail, \"b\"", &["5\" nail", " \"b\""]),
            ("\"two\nlines\"", &["two\nlines"]),
            ("\"open, end", &["open, end"]),
            ("\"a\"b,c", &["ab", "c"]),
        ] {
            assert_eq!(split_line(line).unwrap(), words, "{line:?}");
        }
        assert!(split_line("a\nb").unwrap_err().message().contains("must be one line"));
    }

    #[test]
    fn packing_and_unpacking_are_inverse() {
        let mut random = Random(5);
        for _ in 0..1000 {
            let mut words = || -> Vec<Vec<TokenId>> {
                (0..random.below(5)).map(|_| (0..=random.below(4)).map(|_| random.below(9) as i32).collect()).collect()
            };
            let batch = [words(), words(), words()];
            let packed = pack_words(&batch);
            for (item, words) in packed.values.chunks(2 * packed.len).zip(&batch) {
                assert_eq!(&unpack_words(item).unwrap(), words);
            }
        }
    }

    #[test]
    fn malformed_lists_are_refused_with_the_reason() {
        for (values, reason) in [
            (vec![1, 2, 3], "odd length"),
            (vec![1, 2, 3, 1, -1, 3], "additional -1s"),
            (vec![1, 2, 3, 1, 4, -1], "out-of-bound offsets"),
            (vec![1, 2, 3, i32::MAX, -1, -1], "out-of-bound offsets"),
            (vec![1, 2, 3, 2, 2, 3], "non-increasing offsets"),
            (vec![1, 2, 3, 2, 1, -1], "non-increasing offsets"),
            (vec![1, 2, 3, -2, 1, -1], "non-increasing offsets"),
            (vec![1, 2, 3, i32::MIN, 1, -1], "non-increasing offsets"),
        ] {
            let error = unpack_words(&values).unwrap_err();
            assert!(error.message().contains(reason), "{values:?}: {error}");
        }
    }

    #[test]
    fn lists_without_words_are_empty() {
        for values in [vec![], vec![7, -1], vec![1, 2, -1, -1], vec![1, 2, 0, -1]] {
            assert_eq!(unpack_words(&values).unwrap(), Vec::<Vec<TokenId>>::new());
        }
        assert_eq!(unpack_words(&[1, 2, 0, 2]).unwrap(), [[1, 2]]);
    }

    #[test]
    fn bias_is_added_to_every_id_of_a_word() {
        let tokenizer = testing::tokenizer(&testing::byte_level());
        let bias = embedding_bias(&tokenizer, &["ab", "a"], &[1.5, -0.5]).unwrap();
        assert_eq!(bias.len(), tokenizer.vocab_size());
        assert_eq!((bias[b'a' as usize], bias[b'b' as usize]), (1.0, 1.5));
        assert_eq!(bias.iter().filter(|&&bias| bias != 0.0).count(), 2);
        assert!(embedding_bias(&tokenizer, &["a"], &[]).unwrap_err().message().contains("1 words but 0 weights"));
    }
}
