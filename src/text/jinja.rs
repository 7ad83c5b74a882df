//! Jinja as Hugging Face's chat templates know it: `minijinja` with the rest of Python's methods, its JSON, its numbers
//! and its dates.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Instructions and memory, in units of 64 bytes, that one rendering may take: seconds at most.
const FUEL: u64 = 5_000_000;

/// Calls within calls; Python stops at 1000, the stack of a server thread before that.
const MAX_RECURSION: usize = 150;

/// Nesting of a value that is written as JSON.
const MAX_JSON_DEPTH: usize = 200;

/// What a template said with `raise_exception`.
#[derive(Debug)]
pub(super) struct Raised(pub String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// An environment with the settings of `apply_chat_template`.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(MAX_RECURSION);
    env.set_formatter(|out, state, value| match float(value) {
        Some(number) => Ok(out.write_str(&float_repr(number))?),
        None => minijinja::escape_formatter(out, state, value),
    });
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    env.add_filter("int", to_int);
    env.add_filter("float", |value: Value, default: Option<f64>| {
        python_float(&value).unwrap_or(default.unwrap_or(0.0))
    });
    env.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, message.to_owned());
        Err(error.with_source(Raised(message.to_owned())))
    });
    Ok(env)
}

/// `value` if it is a floating-point number.
fn float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer()).then(|| f64::try_from(value.clone()).ok())?
}

/// Python's `repr` of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "nan".into() } else { if value > 0.0 { "inf" } else { "-inf" }.into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

fn python_float(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok().or_else(|| bool::try_from(value.clone()).ok().map(f64::from)),
    }
}

/// Jinja's `int`: what is no number gives the default.
fn to_int(value: Value, default: Option<i64>, base: Option<u32>) -> i64 {
    let default = default.unwrap_or(0);
    if let Some(text) = value.as_str() {
        let base = base.filter(|base| (2..=36).contains(base)).unwrap_or(10);
        if let Ok(number) = i64::from_str_radix(text.trim(), base) {
            return number;
        }
    } else if let Some(number) = value.as_i64() {
        return number;
    }
    python_float(&value).filter(|number| number.is_finite()).map_or(default, |number| number as i64)
}

/// Python's methods that `pycompat` lacks; the others are `pycompat`'s.
fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq if method == "index" => {
            let (item,): (Value,) = from_args(args)?;
            let position = value.try_iter()?.position(|other| other == item);
            Some(Value::from(position.ok_or_else(|| invalid(format!("{item} is not in the list")))?))
        }
        ValueKind::Map if method == "copy" => Some(value.clone()),
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let argument = || from_args::<(&str,)>(args).map(|(argument,)| argument);
    Ok(Some(match method {
        "removeprefix" => Value::from(text.strip_prefix(argument()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(argument()?).unwrap_or(text)),
        "partition" => {
            let separator = argument()?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            parts(before, if before.len() < text.len() { separator } else { "" }, after)
        }
        "rpartition" => {
            let separator = argument()?;
            match text.rsplit_once(separator) {
                Some((before, after)) => parts(before, separator, after),
                None => parts("", "", text),
            }
        }
        "rsplit" => {
            let (separator, limit): (&str, Option<i64>) = from_args(args)?;
            let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(text.len());
            let mut found: Vec<Value> = text.rsplitn(limit.saturating_add(1), separator).map(Value::from).collect();
            found.reverse();
            Value::from(found)
        }
        "index" => {
            let wanted = argument()?;
            let at = text.find(wanted).ok_or_else(|| invalid(format!("{wanted:?} is not in the string")))?;
            Value::from(text[..at].chars().count())
        }
        "casefold" => Value::from(text.to_lowercase()),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Value::from(format!("{sign}{}{digits}", fill("0", width, text)?))
        }
        "ljust" | "rjust" => {
            let (width, with): (usize, Option<&str>) = from_args(args)?;
            let filled = fill(with.unwrap_or(" "), width, text)?;
            Value::from(if method == "ljust" { text.to_owned() + &filled } else { filled + text })
        }
        _ => return Ok(None),
    }))
}

fn parts(before: &str, separator: &str, after: &str) -> Value {
    Value::from(minijinja::value::Tuple::from([before, separator, after].map(Value::from)))
}

/// What brings `text` to `width` characters.
fn fill(with: &str, width: usize, text: &str) -> Result<String, Error> {
    if width > 1 << 16 {
        return Err(invalid(format!("a width of {width} is beyond the bound of 65536")));
    }
    Ok(with.repeat(width.saturating_sub(text.chars().count())))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let mut given = names.map(|_| None);
    if args.len() > names.len() {
        return Err(invalid(format!("tojson takes at most {} arguments", names.len())));
    }
    for (i, name) in names.into_iter().enumerate() {
        given[i] = args.get(i).cloned().or(kwargs.get::<Option<Value>>(name)?).filter(|value| !value.is_none());
    }
    kwargs.assert_all_used()?;
    let [ensure_ascii, indent, separators, sort_keys] = given;
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match indent {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => fill(" ", usize::try_from(indent)?, "")?,
        }),
        None => None,
    };
    let separator = |i: usize, default: &str| match &separators {
        Some(pair) => Ok(pair.get_item_by_index(i)?.to_string()),
        None => Ok::<_, Error>(default.to_owned()),
    };
    let mut json = Json {
        comma: separator(0, if indent.is_some() { "," } else { ", " })?,
        colon: separator(1, ": ")?,
        indent,
        ensure_ascii: is_true(ensure_ascii),
        sort_keys: is_true(sort_keys),
        out: String::new(),
    };
    json.write(value, 0)?;
    Ok(Value::from_safe_string(json.out))
}

struct Json {
    comma: String,
    colon: String,
    indent: Option<String>,
    ensure_ascii: bool,
    sort_keys: bool,
    out: String,
}

impl Json {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_JSON_DEPTH {
            return Err(invalid(format!("a value nested deeper than {MAX_JSON_DEPTH} cannot be written as JSON")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.list('[', ']', depth, items.iter(), |json, item| json.write(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if self.sort_keys {
                    keys.sort();
                }
                self.list('{', '}', depth, keys.iter(), |json, key| {
                    json.string(&key_text(key)?);
                    json.out.push_str(&json.colon.clone());
                    json.write(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("a value that is {kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    fn list<'a>(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: impl Iterator<Item = &'a Value>,
        mut write: impl FnMut(&mut Self, &'a Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.out.push_str(&self.comma.clone());
            }
            is_empty = false;
            self.newline(depth + 1);
            write(self, item)?;
        }
        if !is_empty {
            self.newline(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn newline(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..'\u{20}' => self.unit(c as u16),
                _ if self.ensure_ascii && (!c.is_ascii() || c == '\u{7f}') => {
                    c.encode_utf16(&mut [0; 2]).iter().for_each(|&unit| self.unit(unit));
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn unit(&mut self, unit: u16) {
        self.out.push_str(&format!("\\u{unit:04x}"));
    }
}

fn number(value: &Value) -> String {
    match float(value) {
        Some(number) if number.is_nan() => "NaN".into(),
        Some(number) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Some(number) => float_repr(number),
        None => value.to_string(),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(invalid(format!("a key of JSON must be a string, not {kind}"))),
    }
}

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Python's `strftime` of a local time in seconds since 1970-01-01 00:00, in English.
pub(super) fn strftime(now_s: i64, format: &str) -> Result<String, Error> {
    let days = now_s.div_euclid(86400);
    let second = now_s.rem_euclid(86400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = (days + 3).rem_euclid(7) as usize;
    let (day_name, month_name) = (DAYS[weekday], MONTHS[(month - 1) as usize]);
    let year_day = days - days_before_year(year) + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let is_bare = code == Some('-');
        if is_bare {
            code = chars.next();
        }
        let padded = |value: i64, width: usize| if is_bare { value.to_string() } else { format!("{value:0width$}") };
        let twelve = (hour + 11) % 12 + 1;
        let text = match code {
            Some('Y') => year.to_string(),
            Some('y') => padded(year.rem_euclid(100), 2),
            Some('m') => padded(month, 2),
            Some('d') => padded(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => padded(year_day, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded(twelve, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('f') => "000000".into(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('u') => (weekday + 1).to_string(),
            Some('w') => ((weekday + 1) % 7).to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('D' | 'x') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('T' | 'X') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('c') => {
                let (day_name, month_name) = (&day_name[..3], &month_name[..3]);
                format!("{day_name} {month_name} {day:2} {hour:02}:{minute:02}:{second:02} {year}")
            }
            Some('s') => now_s.to_string(),
            Some('Z' | 'z') => String::new(),
            Some('%') => "%".into(),
            _ => return Err(invalid(format!("strftime_now does not know the format {format:?}"))),
        };
        out.push_str(&text);
    }
    Ok(out)
}

/// Year, month and day of the proleptic Gregorian calendar.
/// Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before_year(year: i64) -> i64 {
    let before = year - 1;
    before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 719_162
}
