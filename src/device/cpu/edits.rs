//! Edits of logits, a row a task, by the passes of [`crate::decode::logits`].

use super::CpuDevice;
use super::view::{Matrix, indices};
use crate::decode::SamplingParams;
use crate::decode::logits::{History, Occurrences, apply_at};
use crate::device::{EditLogits, RowEdits, RowSampling, TableList};
use crate::error::{Error, Result};
use crate::ids::TokenId;

pub(super) fn edit_logits(device: &CpuDevice, args: &EditLogits<'_>) -> Result<()> {
    let logits = Matrix::<f32>::of(args.logits, "edit_logits: logits")?;
    let out = Matrix::<f32>::of(args.out, "edit_logits: out")?;
    let sampling = Matrix::<i32>::of(args.sampling, "edit_logits: sampling")?;
    let masks = args.masks.map(|masks| Matrix::<i32>::of(masks, "edit_logits: masks")).transpose()?;
    let words = Matrix::<i32>::of(args.rows, "edit_logits: rows")?;
    // SAFETY: the row exists; records are written by `upload` only, and calls on a device are ordered.
    let decode = |r| RowEdits::decode(unsafe { words.row(r) });
    let rows = (0..words.rows).map(decode).collect::<Result<Vec<_>>>()?;
    append_tokens(args, &rows)?;
    let tables = indices(args.tables, "edit_logits: tables")?;
    let requests = rows.iter().map(|row| row.as_ref().map(|row| Request::of(row, tables)).transpose());
    let requests = requests.collect::<Result<Vec<_>>>()?;
    device.pool.run(rows.len(), &|r| {
        let (Some(row), Some(request)) = (&rows[r], &requests[r]) else { return };
        // SAFETY: nobody writes to the logits meanwhile, and row r of the others is this task's alone.
        let (logits, out, sampling) = unsafe { (logits.row(r), out.row_mut(r), sampling.row_mut(r)) };
        out.copy_from_slice(logits);
        // SAFETY: nobody writes to the masks.
        let mask = masks.zip(row.mask).map(|(masks, mask)| unsafe { masks.row(mask as usize) });
        request.edit(out, row, mask);
        if row.top_p.is_some() {
            let top_p = request.params.for_next(&request.history()).top_p.unwrap_or(1.0);
            sampling[RowSampling::TOP_P_WORD] = top_p.to_bits() as i32;
        }
    })
}

/// Puts each row's own token at the end of its history.
fn append_tokens(args: &EditLogits<'_>, rows: &[Option<RowEdits>]) -> Result<()> {
    let tokens = indices(args.tokens, "edit_logits: tokens")?;
    let tables = Matrix::<i32>::of(args.tables, "edit_logits: tables")?;
    for row in rows.iter().flatten() {
        let Some(history) = row.history else { continue };
        let last = (history.start + history.len).checked_sub(1).filter(|&last| (last as usize) < tables.cols);
        let (Some(last), Some(&token)) = (last, tokens.get(row.token as usize)) else {
            return Err(Error::internal(format!("token {} is to be the last of {history:?}", row.token)));
        };
        // SAFETY: the place was checked, and nobody else uses the tables now.
        unsafe { *tables.pointer(0).add(last as usize) = token };
    }
    Ok(())
}

/// A row's request, put together again.
struct Request<'a> {
    params: SamplingParams,
    tokens: &'a [TokenId],
    prompt_len: usize,
    occurrences: Occurrences,
}

impl<'a> Request<'a> {
    fn of(row: &RowEdits, tables: &'a [i32]) -> Result<Self> {
        let list = |list: Option<TableList>| -> Result<&'a [i32]> {
            let Some(TableList { start, len }) = list else { return Ok(&[]) };
            let all = tables.get(start as usize..).and_then(|from| from.get(..len as usize));
            all.ok_or_else(|| Error::internal(format!("{len} words at {start} of tables of {}", tables.len())))
        };
        let (repetition_penalty, presence_penalty, frequency_penalty) = row.penalties.unwrap_or((1.0, 0.0, 0.0));
        let bias = list(row.bias)?.iter().map(|&bits| f32::from_bits(bits as u32)).collect();
        let params = SamplingParams {
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            prompt_ignore_length: row.ignored,
            no_repeat_ngram_size: row.no_repeat_ngram_size,
            embedding_bias: row.bias.map(|_| bias),
            // Whoever made the row has compared the lengths.
            min_tokens: if row.end_ids.is_some() { u32::MAX } else { 0 },
            end_ids: list(row.end_ids)?.to_vec(),
            bad_words: match row.words {
                Some(words) => words_of(list(Some(words))?, tables, words.start as usize + words.len as usize)?,
                None => Vec::new(),
            },
            top_p: row.top_p.map(|top_p| top_p.start),
            top_p_decay: row.top_p.map_or(1.0, |top_p| top_p.decay),
            top_p_min: row.top_p.map_or(1.0, |top_p| top_p.min),
            top_p_reset_id: row.top_p.map(|top_p| top_p.reset_id),
            ..Default::default()
        };
        let tokens = list(row.history)?;
        let prompt_len = (row.prompt_len as usize).min(tokens.len());
        let occurrences = Occurrences::of(tokens, prompt_len, &params);
        Ok(Self { params, tokens, prompt_len, occurrences })
    }

    fn history(&self) -> History<'_> {
        History { tokens: self.tokens, prompt_len: self.prompt_len, occurrences: &self.occurrences }
    }

    fn edit(&self, logits: &mut [f32], row: &RowEdits, mask: Option<&[i32]>) {
        apply_at(logits, &self.params, row.inverse_temperature, &self.history());
        let allowed = |mask: &[i32], token: usize| mask[token / 32] as u32 >> (token % 32) & 1 == 1;
        if let Some(mask) = mask {
            let outside = logits.iter_mut().enumerate().filter(|(token, _)| !allowed(mask, *token));
            outside.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
    }
}

/// Words from the ends of each and all their tokens, which start at `first`.
fn words_of(ends: &[i32], tables: &[i32], first: usize) -> Result<Vec<Vec<TokenId>>> {
    let starts = std::iter::once(&0).chain(ends);
    let word = |(&start, &end): (&i32, &i32)| {
        let range = first + start as usize..first + end as usize;
        let tokens = tables.get(range.clone()).map(<[i32]>::to_vec);
        tokens.ok_or_else(|| Error::internal(format!("a word at {range:?} of tables of {}", tables.len())))
    };
    starts.zip(ends).map(word).collect()
}
