//! The source of a chat template, made into one that `minijinja` reads as `jinja2` does.

/// Changes what the engine would read otherwise: newlines are those of Python, `'…' % x` is the filter `format`, and the
/// `generation` block, which only marks text for training, is a block without effect.
pub(super) fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    let mut is_raw = false;
    while let Some(start) = rest.find('{') {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let kind = tag.get(..2).unwrap_or_default();
        let end = match kind {
            "{#" if !is_raw => tag.find("#}"),
            "{{" if !is_raw => find_outside_strings(&tag[2..], "}}").map(|end| end + 2),
            "{%" => find_outside_strings(&tag[2..], "%}").map(|end| end + 2),
            _ => None,
        };
        let Some(end) = end else {
            out.push('{');
            rest = &tag[1..];
            continue;
        };
        let body = &tag[2..end];
        out.push_str(kind);
        match (kind, name(body)) {
            ("{#", _) => out.push_str(body),
            ("{%", "endraw") => {
                is_raw = false;
                out.push_str(body);
            }
            _ if is_raw => out.push_str(body),
            ("{%", "raw") => {
                is_raw = true;
                out.push_str(body);
            }
            ("{%", "generation") => out.push_str(&body.replacen("generation", "with", 1)),
            ("{%", "endgeneration") => out.push_str(&body.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(&percent_to_filter(body)),
        }
        out.push_str(&tag[end..end + 2]);
        rest = &tag[end + 2..];
    }
    out + rest
}

/// The only word of a tag such as `{%- raw -%}`; empty if there is more in it.
fn name(body: &str) -> &str {
    let word = body.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
    if word.contains(|c: char| !c.is_ascii_alphabetic()) { "" } else { word }
}

/// Where `wanted` is in `text`, outside of string literals.
fn find_outside_strings(text: &str, wanted: &str) -> Option<usize> {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if text[at..].starts_with(wanted) {
            return Some(at);
        }
        at += if matches!(c, '\'' | '"') { literal_len(&text[at..]) } else { c.len_utf8() };
    }
    None
}

/// Length of the string literal that `text` begins with; all of it if the literal does not end.
fn literal_len(text: &str) -> usize {
    let quote = text.chars().next();
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if Some(c) == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// `'…' % (a, b)` and `'…' % a` as `'…'|format(a, b)` and `'…'|format(a)`.
fn percent_to_filter(body: &str) -> String {
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(start) = rest.find(['\'', '"']) {
        let end = start + literal_len(&rest[start..]);
        out.push_str(&rest[..end]);
        rest = &rest[end..];
        let Some(after) = rest.trim_start().strip_prefix('%') else { continue };
        let operand = after.trim_start();
        let len = operand_len(operand);
        let text = &operand[..len];
        let is_tuple = text.starts_with('(') && group_len(text) == len;
        let arguments = if is_tuple { text[1..len - 1].trim_end().trim_end_matches(',') } else { text };
        out.push_str("|format(");
        out.push_str(&percent_to_filter(arguments));
        out.push(')');
        rest = &operand[len..];
    }
    out + rest
}

/// Length of the operand that `text` begins with: a group, a literal or a name, what is called on it, and its filters.
fn operand_len(text: &str) -> usize {
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let len = match rest.chars().next() {
            Some('(' | '[' | '{') => group_len(rest),
            Some('\'' | '"') if at == 0 => literal_len(rest),
            Some('-') if at == 0 => 1,
            Some('.' | '|') => 1 + rest[1..].len() - rest[1..].trim_start().len(),
            Some(c) if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            Some(c) if c.is_whitespace() && rest.trim_start().starts_with('|') => rest.len() - rest.trim_start().len(),
            _ => return at,
        };
        at += len;
    }
}

/// Length of the group in brackets that `text` begins with; all of it if the group does not end.
fn group_len(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(c) = text[at..].chars().next() {
        match c {
            '\'' | '"' => {
                at += literal_len(&text[at..]);
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += c.len_utf8();
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::prepare;

    #[test]
    fn percent_after_a_literal_is_the_filter_format() {
        for (source, prepared) in [
            ("{{ '%s' % x }}", "{{ '%s'|format(x) }}"),
            ("{{ '%s %d' % (a, b[1]) ~ 'c' }}", "{{ '%s %d'|format(a, b[1]) ~ 'c' }}"),
            ("{{ \"%s\" % (a,) }}", "{{ \"%s\"|format(a) }}"),
            ("{% set y = '%s' % m.x(')')[0] | upper + 'a' %}", "{% set y = '%s'|format(m.x(')')[0] | upper) + 'a' %}"),
            ("{{ '%s' % ('%d' % 3) }}", "{{ '%s'|format('%d'|format(3)) }}"),
            ("{{ '%s' % (a)|upper }}", "{{ '%s'|format((a)|upper) }}"),
            ("{{ a % 2 }} '%s' % x {# '%s' % x #}", "{{ a % 2 }} '%s' % x {# '%s' % x #}"),
            ("{% if x == 'a' %}'%}", "{% if x == 'a' %}'%}"),
            (
                "{% raw %}{{ '%s' % x }}{% generation %}{% endraw %}",
                "{% raw %}{{ '%s' % x }}{% generation %}{% endraw %}",
            ),
        ] {
            assert_eq!(prepare(source), prepared);
        }
    }

    #[test]
    fn generation_is_a_block_without_effect() {
        let source = "{%- generation -%}a{%endgeneration%}{{ generation }}{% set generation = 1 %}\r\n{ {";
        let prepared = "{%- with -%}a{%endwith%}{{ generation }}{% set generation = 1 %}\n{ {";
        assert_eq!(prepare(source), prepared);
    }

    #[test]
    fn what_does_not_end_is_left_alone() {
        for source in ["{{ 'a", "{% 'a' % (", "{#", "{", "{{ '\\", "{{ '%s' % ( }}", "{{ \"é\" % é", "{é"] {
            prepare(source);
        }
    }
}
