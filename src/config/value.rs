//! How the text of a parameter becomes a value: the C++ backend's rules, exactly.
//!
//! Numbers follow `stoi`, `stoul`, `stoull` and `stof`: leading blanks and a sign are skipped, a valid prefix is used, the
//! rest of the text is ignored; no prefix or an overflow is a failure.

/// A type that a parameter can have.
pub trait FromParameter: Sized {
    /// Name of the type in the documentation.
    const TYPE: &'static str;

    /// The value of the text, or `None` if the text is none of this type.
    fn from_parameter(text: &str) -> Option<Self>;

    /// How the value is written in logs.
    fn show(&self) -> String;

    /// The value as a number, where a range applies to it.
    fn number(&self) -> Option<f64> {
        None
    }
}

/// Whether the text is a `${name}` that nobody substituted.
pub fn is_placeholder(text: &str) -> bool {
    let text = text.trim();
    text.starts_with("${") && text.ends_with('}')
}

impl FromParameter for i32 {
    const TYPE: &'static str = "int32";

    fn from_parameter(text: &str) -> Option<Self> {
        let (negative, magnitude) = integer_prefix(text)?;
        let value = if negative { -i128::from(magnitude) } else { i128::from(magnitude) };
        i32::try_from(value).ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn number(&self) -> Option<f64> {
        Some(f64::from(*self))
    }
}

impl FromParameter for u32 {
    const TYPE: &'static str = "uint32";

    fn from_parameter(text: &str) -> Option<Self> {
        // `stoul` has 64 bits, the C++ backend then truncates to 32: "-1" is 4294967295.
        u64::from_parameter(text).map(|value| value as u32)
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn number(&self) -> Option<f64> {
        Some(f64::from(*self))
    }
}

impl FromParameter for u64 {
    const TYPE: &'static str = "uint64";

    fn from_parameter(text: &str) -> Option<Self> {
        let (negative, magnitude) = integer_prefix(text)?;
        Some(if negative { magnitude.wrapping_neg() } else { magnitude })
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl FromParameter for f32 {
    const TYPE: &'static str = "float";

    fn from_parameter(text: &str) -> Option<Self> {
        float_prefix(text)
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn number(&self) -> Option<f64> {
        Some(f64::from(*self))
    }
}

impl FromParameter for bool {
    const TYPE: &'static str = "bool";

    fn from_parameter(text: &str) -> Option<Self> {
        match text {
            "True" | "true" | "TRUE" | "1" => Some(true),
            "False" | "false" | "FALSE" | "0" => Some(false),
            _ => None,
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl FromParameter for String {
    const TYPE: &'static str = "string";

    fn from_parameter(text: &str) -> Option<Self> {
        (!text.is_empty() && !is_placeholder(text)).then(|| text.to_owned())
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl FromParameter for Vec<i32> {
    const TYPE: &'static str = "int list";

    fn from_parameter(text: &str) -> Option<Self> {
        int_list(text)
    }

    fn show(&self) -> String {
        join(self.iter(), ",")
    }
}

/// Lists in braces: `{0, 0, 0}, {0, 1}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BraceLists(pub Vec<Vec<i32>>);

impl FromParameter for BraceLists {
    const TYPE: &'static str = "lists in braces";

    fn from_parameter(text: &str) -> Option<Self> {
        let mut lists = Vec::new();
        for group in text.split_inclusive('}') {
            let Some(body) = group.strip_suffix('}') else { break };
            let body = body.trim_start_matches([',', ' ', '\t', '\n']);
            lists.push(int_list(body.strip_prefix('{').unwrap_or(body))?);
        }
        (!lists.is_empty()).then_some(Self(lists))
    }

    fn show(&self) -> String {
        join(self.0.iter().map(|list| format!("{{{}}}", join(list.iter(), ","))), ",")
    }
}

/// One list for each model instance: `0,1;2,3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceLists(pub Vec<Vec<i32>>);

impl FromParameter for InstanceLists {
    const TYPE: &'static str = "int lists separated by `;`";

    fn from_parameter(text: &str) -> Option<Self> {
        // A part that fails ends the parsing; the parts before it stay in effect.
        let lists: Vec<_> = text.split(';').map_while(int_list).collect();
        (!lists.is_empty()).then_some(Self(lists))
    }

    fn show(&self) -> String {
        join(self.0.iter().map(|list| join(list.iter(), ",")), ";")
    }
}

/// Weights by the name of a tenant: `gold:4,silver:2`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantWeights(pub Vec<(String, u32)>);

impl TenantWeights {
    /// The weight of a tenant; 1 for one that is not listed.
    pub fn of(&self, tenant: &str) -> u32 {
        self.0.iter().find(|(name, _)| name == tenant).map_or(1, |&(_, weight)| weight)
    }
}

impl FromParameter for TenantWeights {
    const TYPE: &'static str = "`name:weight` list";

    fn from_parameter(text: &str) -> Option<Self> {
        let weight = |item: &str| {
            let (name, weight) = item.rsplit_once(':')?;
            let weight = weight.trim().parse().ok().filter(|&weight| weight > 0)?;
            Some((name.trim().to_owned(), weight))
        };
        text.split(',').map(weight).collect::<Option<_>>().map(Self)
    }

    fn show(&self) -> String {
        if self.0.is_empty() {
            return "unset".to_owned();
        }
        join(self.0.iter().map(|(name, weight)| format!("{name}:{weight}")), ",")
    }
}

/// One GPU of `gpu_device_ids`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuName {
    Number(i32),
    /// `GPU-…` or `MIG-…`.
    Uuid(String),
}

/// The GPUs of each model instance: `0,1;2,3`, or UUIDs in place of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuLists(pub Vec<Vec<GpuName>>);

impl FromParameter for GpuLists {
    const TYPE: &'static str = "lists of ints or UUIDs, separated by `;`";

    fn from_parameter(text: &str) -> Option<Self> {
        // A part that fails ends the parsing; the parts before it stay in effect.
        let lists: Vec<_> = text.split(';').map_while(gpu_list).collect();
        (!lists.is_empty()).then_some(Self(lists))
    }

    fn show(&self) -> String {
        let name = |gpu: &GpuName| match gpu {
            GpuName::Number(number) => number.to_string(),
            GpuName::Uuid(uuid) => uuid.clone(),
        };
        join(self.0.iter().map(|list| join(list.iter().map(name), ",")), ";")
    }
}

fn gpu_list(text: &str) -> Option<Vec<GpuName>> {
    let is_uuid = |entry: &str| entry.starts_with("GPU-") || entry.starts_with("MIG-");
    if !text.split(',').any(|entry| is_uuid(entry.trim())) {
        return Some(int_list(text)?.into_iter().map(GpuName::Number).collect());
    }
    let name = |entry: &str| match entry.trim() {
        uuid if is_uuid(uuid) => Some(GpuName::Uuid(uuid.to_owned())),
        number => number.parse().ok().map(GpuName::Number),
    };
    text.split(',').map(name).collect()
}

/// A switch in Python's words, case-insensitive: `true false 1 0 t f y n yes no`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromParameter for Switch {
    const TYPE: &'static str = "switch";

    fn from_parameter(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "t" | "y" | "yes" => Some(Self(true)),
            "false" | "0" | "f" | "n" | "no" => Some(Self(false)),
            _ => None,
        }
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl<T: FromParameter> FromParameter for Option<T> {
    const TYPE: &'static str = T::TYPE;

    fn from_parameter(text: &str) -> Option<Self> {
        T::from_parameter(text).map(Some)
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "unset".to_owned(), T::show)
    }

    fn number(&self) -> Option<f64> {
        self.as_ref().and_then(T::number)
    }
}

fn join(items: impl Iterator<Item = impl ToString>, separator: &str) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(separator)
}

/// Sign and magnitude of the integer that the text starts with.
fn integer_prefix(text: &str) -> Option<(bool, u64)> {
    let (negative, digits) = split_sign(text.trim_start());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    Some((negative, digits[..end].parse().ok()?))
}

fn split_sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    }
}

fn int_list(text: &str) -> Option<Vec<i32>> {
    let mut list = Vec::new();
    for item in text.split(',').map(str::trim_start) {
        if item.is_empty() {
            break;
        }
        list.push(i32::from_parameter(item)?);
    }
    (!list.is_empty()).then_some(list)
}

fn float_prefix(text: &str) -> Option<f32> {
    let (negative, body) = split_sign(text.trim_start());
    let lower = body.to_ascii_lowercase();
    let magnitude = if lower.starts_with("inf") {
        f32::INFINITY
    } else if lower.starts_with("nan") {
        f32::NAN
    } else if let Some(value) = lower.strip_prefix("0x").and_then(hex_float_prefix) {
        in_range(value)?
    } else {
        in_range(decimal_prefix(&lower)?)?
    };
    Some(if negative { -magnitude } else { magnitude })
}

/// Overflow and underflow are failures of `stof`.
fn in_range(value: f64) -> Option<f32> {
    let single = value as f32;
    (single.is_finite() && (single != 0.0 || value == 0.0)).then_some(single)
}

/// The longest prefix `digits[.digits][e[sign]digits]` with at least one digit in the mantissa.
fn decimal_prefix(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let whole = digits(0);
    let mut end = whole;
    let mut mantissa_digits = whole;
    if bytes.get(end) == Some(&b'.') {
        let fraction = digits(end + 1);
        mantissa_digits += fraction;
        end += 1 + fraction;
    }
    if mantissa_digits == 0 {
        return None;
    }
    if bytes.get(end) == Some(&b'e') {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits((end + 1 + sign).min(bytes.len()));
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    text[..end].parse().ok()
}

/// The part of a hexadecimal float after its `0x`.
fn hex_float_prefix(text: &str) -> Option<f64> {
    let mut value = 0.0f64;
    let mut scale = 1.0f64;
    let mut point = false;
    let mut digits = 0;
    let mut rest = text;
    for (at, c) in text.char_indices() {
        rest = &text[at..];
        match c.to_digit(16) {
            Some(digit) => {
                value = value * 16.0 + f64::from(digit);
                scale *= if point { 16.0 } else { 1.0 };
                digits += 1;
            }
            None if c == '.' && !point => point = true,
            None => break,
        }
        rest = &text[at + c.len_utf8()..];
    }
    let exponent = rest.strip_prefix('p').and_then(i32::from_parameter).unwrap_or(0);
    (digits > 0).then(|| value / scale * 2f64.powi(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: FromParameter>(text: &str) -> Option<T> {
        T::from_parameter(text)
    }

    #[test]
    fn integers_use_the_leading_digits_as_stoi_does() {
        assert_eq!(parse::<i32>(" 42"), Some(42));
        assert_eq!(parse::<i32>("12abc"), Some(12));
        assert_eq!(parse::<i32>("1.5"), Some(1));
        assert_eq!(parse::<i32>("0x10"), Some(0));
        assert_eq!(parse::<i32>("-7"), Some(-7));
        assert_eq!(parse::<i32>("2147483648"), None);
        for text in ["", "abc", "${max_beam_width}", "-", "+ 1"] {
            assert_eq!(parse::<i32>(text), None, "{text:?}");
        }
    }

    #[test]
    fn unsigned_integers_wrap_as_stoul_does() {
        assert_eq!(parse::<u32>("-1"), Some(u32::MAX));
        assert_eq!(parse::<u64>("1e9"), Some(1));
        assert_eq!(parse::<u64>("-1"), Some(u64::MAX));
        assert_eq!(parse::<u64>("18446744073709551616"), None);
    }

    #[test]
    fn floats_use_the_longest_prefix_as_stof_does() {
        assert_eq!(parse::<f32>("0.9"), Some(0.9));
        assert_eq!(parse::<f32>(" .5x"), Some(0.5));
        assert_eq!(parse::<f32>("1e-2junk"), Some(0.01));
        assert_eq!(parse::<f32>("1e"), Some(1.0));
        assert_eq!(parse::<f32>("0x1.8p1"), Some(3.0));
        assert_eq!(parse::<f32>("0xg"), Some(0.0));
        assert_eq!(parse::<f32>("-inf"), Some(f32::NEG_INFINITY));
        assert!(parse::<f32>("nan").is_some_and(f32::is_nan));
        assert_eq!(parse::<f32>("1e39"), None);
        assert_eq!(parse::<f32>("1e-60"), None);
        assert_eq!(parse::<f32>("."), None);
    }

    #[test]
    fn booleans_have_eight_words() {
        assert_eq!(parse::<bool>("TRUE"), Some(true));
        assert_eq!(parse::<bool>("0"), Some(false));
        for text in ["yes", "t", "", "${x}", "tRUE", " true"] {
            assert_eq!(parse::<bool>(text), None, "{text:?}");
        }
        assert_eq!(parse::<Switch>("Yes"), Some(Switch(true)));
        assert_eq!(parse::<Switch>("${add_special_tokens}"), None);
    }

    #[test]
    fn lists_end_at_the_first_empty_item() {
        assert_eq!(parse::<Vec<i32>>("1, 2,3"), Some(vec![1, 2, 3]));
        assert_eq!(parse::<Vec<i32>>("1,,2"), Some(vec![1]));
        assert_eq!(parse::<Vec<i32>>("1,"), Some(vec![1]));
        assert_eq!(parse::<Vec<i32>>(""), None);
        assert_eq!(parse::<Vec<i32>>("1,x"), None);
        assert_eq!(parse::<BraceLists>("{0, 0, 0}, {0, 1}"), Some(BraceLists(vec![vec![0, 0, 0], vec![0, 1]])));
        assert_eq!(parse::<BraceLists>(""), None);
        assert_eq!(parse::<InstanceLists>("0,1;2,3"), Some(InstanceLists(vec![vec![0, 1], vec![2, 3]])));
        assert_eq!(parse::<InstanceLists>("0,1;x;2"), Some(InstanceLists(vec![vec![0, 1]])));
        assert_eq!(parse::<InstanceLists>("${gpu_device_ids}"), None);
    }
}
