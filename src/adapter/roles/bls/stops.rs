//! Stop words found in the text of an answer, which is cut right after them.

use std::collections::BTreeMap;

/// A row of an answer: batch item, return sequence, beam.
pub type RowKey = (i32, i32, usize);

/// Looks for stop words in every row of one request.
pub struct TextStops {
    /// The words of each batch item.
    words: Vec<Vec<String>>,
    rows: BTreeMap<RowKey, Row>,
}

#[derive(Default)]
struct Row {
    /// The end of the text so far, as long as a stop word may begin in it.
    tail: String,
    stopped: bool,
}

impl TextStops {
    /// `words` has one list for each batch item; empty words never match.
    pub fn new(mut words: Vec<Vec<String>>) -> Self {
        words.iter_mut().for_each(|list| list.retain(|word| !word.is_empty()));
        Self { words, rows: BTreeMap::new() }
    }

    /// The next piece of a row's text, up to and with the first stop word; nothing after it.
    pub fn piece(&mut self, key: RowKey, piece: String) -> String {
        let words = self.words.get(key.0.max(0) as usize).map_or(&[][..], Vec::as_slice);
        let row = self.rows.entry(key).or_default();
        if row.stopped {
            return String::new();
        }
        let before = row.tail.len();
        row.tail.push_str(&piece);
        if let Some(end) = first_end(&row.tail, words, 0) {
            row.stopped = true;
            // A word that ended before the piece would have been found with the piece before.
            return piece[..end.saturating_sub(before)].to_owned();
        }
        let longest = words.iter().map(String::len).max().unwrap_or(0);
        let keep = longest.saturating_sub(1);
        let cut = (row.tail.len().saturating_sub(keep)..=row.tail.len()).find(|&at| row.tail.is_char_boundary(at));
        row.tail.drain(..cut.unwrap_or(0));
        piece
    }

    /// A whole text of a row, cut right after the first stop word behind its first `skip` bytes.
    pub fn whole(&mut self, key: RowKey, mut text: String, skip: usize) -> String {
        let words = self.words.get(key.0.max(0) as usize).map_or(&[][..], Vec::as_slice);
        let row = self.rows.entry(key).or_default();
        if let Some(end) = first_end(&text, words, skip) {
            row.stopped = true;
            text.truncate(end);
        }
        text
    }

    /// Whether all rows of all batch items met a stop word, when each item has this many rows.
    pub fn all_stopped(&self, batch: usize, rows: usize) -> bool {
        self.rows.len() >= batch * rows && self.rows.values().all(|row| row.stopped)
    }
}

/// The end of the stop word that ends first behind `skip`.
fn first_end(text: &str, words: &[String], skip: usize) -> Option<usize> {
    let text_from = text.get(skip..)?;
    words.iter().filter_map(|word| text_from.find(word.as_str()).map(|at| skip + at + word.len())).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(words: &[&str]) -> TextStops {
        TextStops::new(vec![words.iter().map(|word| (*word).to_owned()).collect()])
    }

    #[test]
    fn s6_4_a_stop_word_across_pieces_ends_the_row_right_after_it() {
        let mut stops = stops(&["STOP", ""]);
        let key = (0, 0, 0);
        let pieces: Vec<_> = ["a ST", "O", "P b", "more"].map(|piece| stops.piece(key, piece.to_owned())).into();
        assert_eq!(pieces, ["a ST", "O", "P", ""]);
        assert!(stops.all_stopped(1, 1) && !stops.all_stopped(1, 2) && !stops.all_stopped(2, 1));
    }

    #[test]
    fn s6_4_rows_stop_on_their_own_and_by_the_words_of_their_batch_item() {
        let mut stops = TextStops::new(vec![vec!["é好".to_owned()], vec!["x".to_owned()]]);
        assert_eq!(stops.piece((0, 0, 0), "é".to_owned()), "é");
        assert_eq!(stops.piece((1, 0, 0), "a好x!".to_owned()), "a好x");
        assert!(!stops.all_stopped(2, 1));
        assert_eq!(stops.piece((0, 0, 0), "好x".to_owned()), "好");
        assert!(stops.all_stopped(2, 1));
    }

    #[test]
    fn s6_4_a_whole_text_is_searched_behind_the_prompt() {
        let mut stops = stops(&["end", "."]);
        assert_eq!(stops.whole((0, 0, 0), "the end. An end here.".to_owned(), 8), "the end. An end");
        assert_eq!(stops.whole((0, 0, 1), "nothing".to_owned(), 0), "nothing");
        assert!(!stops.all_stopped(1, 2));
    }

    #[test]
    fn without_words_everything_passes() {
        let mut stops = stops(&[]);
        assert_eq!(stops.piece((0, 0, 0), "abc".to_owned()), "abc");
        assert!(!stops.all_stopped(1, 1));
    }
}
