//! Where the members of an uncompressed zip archive lie. Source: APPNOTE.TXT 6.3, sections 4.3.7, 4.3.12 to 4.3.16.

use std::collections::BTreeMap;
use std::ops::Range;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// The end record with the longest comment.
const MAX_END_BYTES: usize = 22 + 0xffff;
/// The field of large sizes.
const EXTRA_64: u16 = 1;

/// The names of all members, and the bytes of each.
///
/// # Errors
/// What is wrong with the archive.
pub(super) fn members(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let (mut at, count) =
        directory(bytes).ok_or("it is no zip archive, which is what torch has saved since version 1.6")?;
    let mut members = BTreeMap::new();
    for _ in 0..count {
        let (name, range, next) = member(bytes, at)?;
        members.insert(name, range);
        at = next;
    }
    Ok(members)
}

/// Where the directory begins, and how many members it has.
fn directory(bytes: &[u8]) -> Option<(usize, usize)> {
    let from = bytes.len().saturating_sub(MAX_END_BYTES);
    let end = (from..=bytes.len().checked_sub(22)?).rev().find(|&at| number(bytes, at, 4) == Some(u64::from(END)))?;
    let (count, start) = (number(bytes, end + 10, 2)?, number(bytes, end + 16, 4)?);
    if count != 0xffff && start != 0xffff_ffff {
        return Some((usize::try_from(start).ok()?, usize::try_from(count).ok()?));
    }
    let locator = end.checked_sub(20).filter(|&at| number(bytes, at, 4) == Some(u64::from(LOCATOR_64)))?;
    let end = usize::try_from(number(bytes, locator + 8, 8)?).ok()?;
    let end = Some(end).filter(|&at| number(bytes, at, 4) == Some(u64::from(END_64)))?;
    let count = usize::try_from(number(bytes, end.checked_add(32)?, 8)?).ok()?;
    let start = usize::try_from(number(bytes, end.checked_add(48)?, 8)?).ok()?;
    // A member takes at least the fixed part of its entry.
    (count <= bytes.len() / 46).then_some((start, count))
}

/// Name and bytes of the member whose entry is at `at`, and where the next entry is.
fn member(bytes: &[u8], at: usize) -> Result<(String, Range<usize>, usize), String> {
    let damaged = || "its directory is damaged: cut off while copying?".to_owned();
    let field = |offset: usize, size: usize| number(bytes, at.checked_add(offset)?, size);
    let read = |offset, size| field(offset, size).ok_or_else(damaged);
    if read(0, 4)? != u64::from(CENTRAL) {
        return Err(damaged());
    }
    let [name_len, extra_len, comment_len] = [read(28, 2)?, read(30, 2)?, read(32, 2)?].map(|len| len as usize);
    let name_at = at + 46;
    let name = bytes.get(name_at..name_at + name_len).ok_or_else(damaged)?;
    let name = std::str::from_utf8(name).map_err(|_| damaged())?.to_owned();
    let extra = bytes.get(name_at + name_len..name_at + name_len + extra_len).ok_or_else(damaged)?;
    if read(10, 2)? != 0 {
        return Err(format!("its member {name:?} is compressed"));
    }
    let mut large = large_fields(extra);
    let mut wide = |value: u64| if value == 0xffff_ffff { large.next().ok_or_else(damaged) } else { Ok(value) };
    // In this order: whole size, stored size, place.
    let size = wide(read(24, 4)?)?;
    wide(read(20, 4)?)?;
    let local = usize::try_from(wide(read(42, 4)?)?).map_err(|_| damaged())?;
    let in_local = |offset: usize, len| number(bytes, local.checked_add(offset)?, len);
    if in_local(0, 4) != Some(u64::from(LOCAL)) {
        return Err(damaged());
    }
    let skipped = in_local(26, 2).zip(in_local(28, 2)).ok_or_else(damaged)?;
    let start = local + 30 + skipped.0 as usize + skipped.1 as usize;
    let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size)).filter(|&end| end <= bytes.len());
    let end = end.ok_or_else(|| format!("its member {name:?} is outside the file: cut off while copying?"))?;
    Ok((name, start..end, name_at + name_len + extra_len + comment_len))
}

/// The 64-bit numbers of the extra field that replaces those that are too large.
fn large_fields(extra: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let mut at = 0;
    let mut found = 0..0;
    while let (Some(kind), Some(len)) = (number(extra, at, 2), number(extra, at + 2, 2)) {
        let end = (at + 4 + len as usize).min(extra.len());
        if kind == u64::from(EXTRA_64) {
            found = at + 4..end;
            break;
        }
        at += 4 + len as usize;
    }
    found.step_by(8).map_while(|at| number(extra, at, 8))
}

/// A little-endian number of `size` bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}
