//! Grammars of `rule ::= …` lines (the GBNF of llama.cpp and xgrammar), rewritten as Lark.
//!
//! The Lark engine reads a text as terminals, and terminals are greedy. So everything that needs no recursion becomes one
//! terminal, in which nothing is greedy; only recursive rules stay rules.

use std::collections::HashMap;
use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

use super::grammar::quoted;
use crate::error::{Error, Result};

/// Most rules of a grammar.
const MAX_RULES: usize = 20_000;

/// The grammar in Lark's notation; it starts with `start`.
///
/// # Errors
/// `InvalidArg` that names what is wrong in which rule.
pub fn to_lark(text: &str) -> Result<String> {
    let mut lark = String::from("start: ");
    let rules = rules_as(text, "")?;
    lark.push_str(&rules.root);
    lark.push('\n');
    lark.push_str(&rules.text);
    Ok(lark)
}

/// Rules in Lark's notation.
pub struct LarkRules {
    pub text: String,
    /// Name of the first rule.
    pub root: String,
}

/// The grammar's rules; `suffix` keeps their names apart from others.
///
/// # Errors
/// As for [`to_lark`].
pub fn rules_as(text: &str, suffix: &str) -> Result<LarkRules> {
    let grammar = Grammar::parse(text)?;
    let Some(&root) = grammar.names.get("root") else {
        return Err(Error::invalid("it has no rule root"));
    };
    let mut writer = Writer { regular: grammar.regular(), suffix, text: String::new(), terminals: 0 };
    for (index, rule) in grammar.rules.iter().enumerate() {
        let body = match writer.regular[index] {
            true => writer.terminal(rule),
            false => writer.rule(rule),
        };
        let name = writer.name(index);
        let _ = writeln!(writer.text, "{name}: {body}");
    }
    Ok(LarkRules { root: writer.name(root), text: writer.text })
}

#[derive(Debug)]
enum Expr {
    Text(String),
    /// A regular expression for one character.
    Class(String),
    Rule(usize),
    Sequence(Vec<Expr>),
    Choice(Vec<Expr>),
    Repeat(Box<Expr>, u32, Option<u32>),
}

impl Expr {
    fn rules(&self, found: &mut Vec<usize>) {
        match self {
            Self::Text(_) | Self::Class(_) => {}
            Self::Rule(rule) => found.push(*rule),
            Self::Sequence(parts) | Self::Choice(parts) => parts.iter().for_each(|part| part.rules(found)),
            Self::Repeat(part, ..) => part.rules(found),
        }
    }
}

struct Grammar {
    rules: Vec<Expr>,
    names: HashMap<String, usize>,
}

impl Grammar {
    fn parse(text: &str) -> Result<Self> {
        let mut parser = Parser { chars: text.chars().peekable(), names: HashMap::new(), bodies: Vec::new() };
        parser.skip_blank();
        let mut next = parser.optional_name();
        while let Some(name) = next {
            let index = parser.index(&name)?;
            if parser.bodies[index].is_some() {
                return Err(Error::invalid(format!("rule {name} is defined twice")));
            }
            parser.expect("::=").map_err(|error| in_rule(&name, &error))?;
            let (body, following) = parser.alternatives(0).map_err(|error| in_rule(&name, &error))?;
            parser.bodies[index] = Some(body);
            next = following;
        }
        if let Some(c) = parser.chars.peek() {
            return Err(Error::invalid(format!("a rule begins with {c:?}, expected a name")));
        }
        let Parser { names, bodies, .. } = parser;
        let missing = names.iter().find(|&(_, &index)| bodies[index].is_none());
        if let Some((name, _)) = missing {
            return Err(Error::invalid(format!("rule {name} is used and not defined")));
        }
        Ok(Self { rules: bodies.into_iter().flatten().collect(), names })
    }

    /// Which rules reach no cycle.
    fn regular(&self) -> Vec<bool> {
        let mut uses: Vec<Vec<usize>> = Vec::with_capacity(self.rules.len());
        for rule in &self.rules {
            let mut found = Vec::new();
            rule.rules(&mut found);
            uses.push(found);
        }
        let mut regular = vec![false; self.rules.len()];
        let mut users = vec![Vec::new(); self.rules.len()];
        let mut open: Vec<usize> = uses.iter().map(Vec::len).collect();
        uses.iter().enumerate().for_each(|(user, used)| used.iter().for_each(|&rule| users[rule].push(user)));
        let mut ready: Vec<usize> = (0..open.len()).filter(|&rule| open[rule] == 0).collect();
        while let Some(rule) = ready.pop() {
            regular[rule] = true;
            for &user in &users[rule] {
                open[user] -= 1;
                if open[user] == 0 {
                    ready.push(user);
                }
            }
        }
        regular
    }
}

fn in_rule(name: &str, error: &Error) -> Error {
    Error::invalid(format!("rule {name}: {}", error.message()))
}

struct Parser<'a> {
    chars: Peekable<Chars<'a>>,
    names: HashMap<String, usize>,
    bodies: Vec<Option<Expr>>,
}

impl Parser<'_> {
    fn index(&mut self, name: &str) -> Result<usize> {
        if let Some(&index) = self.names.get(name) {
            return Ok(index);
        }
        if self.bodies.len() == MAX_RULES {
            return Err(Error::invalid(format!("it has more than {MAX_RULES} rules")));
        }
        self.bodies.push(None);
        self.names.insert(name.to_owned(), self.bodies.len() - 1);
        Ok(self.bodies.len() - 1)
    }

    fn skip_blank(&mut self) {
        while let Some(&c) = self.chars.peek() {
            if c == '#' {
                while self.chars.next_if(|&c| c != '\n').is_some() {}
            } else if !c.is_whitespace() {
                break;
            }
            self.chars.next();
        }
    }

    fn optional_name(&mut self) -> Option<String> {
        let mut name = String::new();
        while let Some(c) = self.chars.next_if(|&c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            name.push(c);
        }
        (!name.is_empty()).then_some(name)
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        self.skip_blank();
        for c in expected.chars() {
            if self.chars.next_if_eq(&c).is_none() {
                return Err(Error::invalid(format!("expected {expected:?}, found {}", self.found())));
            }
        }
        Ok(())
    }

    fn found(&mut self) -> String {
        self.chars.peek().map_or_else(|| "the end".to_owned(), |c| format!("{c:?}"))
    }

    /// Alternatives up to a closing bracket, or at depth 0 up to the name of the next rule, which is returned.
    fn alternatives(&mut self, depth: usize) -> Result<(Expr, Option<String>)> {
        let (mut choices, mut sequence) = (Vec::new(), Vec::new());
        let mut following = None;
        loop {
            self.skip_blank();
            match self.chars.peek() {
                Some('|') => {
                    self.chars.next();
                    choices.push(Expr::Sequence(std::mem::take(&mut sequence)));
                    continue;
                }
                None if depth == 0 => break,
                Some(')') if depth > 0 => break,
                _ => {}
            }
            let part = match self.optional_name() {
                Some(name) => {
                    self.skip_blank();
                    if depth == 0 && self.chars.peek() == Some(&':') {
                        following = Some(name);
                        break;
                    }
                    Expr::Rule(self.index(&name)?)
                }
                None => self.atom(depth)?,
            };
            let part = self.repeated(part)?;
            sequence.push(part);
        }
        choices.push(Expr::Sequence(sequence));
        Ok((if choices.len() == 1 { choices.remove(0) } else { Expr::Choice(choices) }, following))
    }

    fn atom(&mut self, depth: usize) -> Result<Expr> {
        match self.chars.next() {
            Some('"') => self.text(),
            Some('[') => self.class(),
            Some('.') => Ok(Expr::Class("(?s:.)".to_owned())),
            Some('(') => {
                self.skip_blank();
                if self.chars.peek() == Some(&'=') {
                    return Err(Error::invalid("lookahead assertions are not supported"));
                }
                let (inner, _) = self.alternatives(depth + 1)?;
                self.expect(")")?;
                Ok(inner)
            }
            Some(c) => Err(Error::invalid(format!("{c:?} begins nothing"))),
            None => Err(Error::invalid("it ends within brackets")),
        }
    }

    fn repeated(&mut self, part: Expr) -> Result<Expr> {
        let mut part = part;
        loop {
            let (min, max) = match self.chars.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.chars.next();
                    let (min, max) = self.bounds()?;
                    part = Expr::Repeat(Box::new(part), min, max);
                    continue;
                }
                _ => return Ok(part),
            };
            self.chars.next();
            part = Expr::Repeat(Box::new(part), min, max);
        }
    }

    /// `m}`, `m,}`, `m,n}` or `,n}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>)> {
        let mut inside = String::new();
        while let Some(c) = self.chars.next_if(|&c| c != '}') {
            inside.push(c);
        }
        self.expect("}")?;
        let wrong = || Error::invalid(format!("{{{inside}}} is no number of repetitions"));
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let (min, max) = match inside.split_once(',') {
            None => (number(&inside)?, Some(number(&inside)?)),
            Some((min, max)) => (
                if min.trim().is_empty() { 0 } else { number(min)? },
                if max.trim().is_empty() { None } else { Some(number(max)?) },
            ),
        };
        if max.is_some_and(|max| max < min) { Err(wrong()) } else { Ok((min, max)) }
    }

    fn text(&mut self) -> Result<Expr> {
        let mut text = String::new();
        loop {
            match self.chars.next() {
                Some('"') => return Ok(Expr::Text(text)),
                Some('\\') => text.push(self.escape()?),
                Some(c) => text.push(c),
                None => return Err(Error::invalid("a text has no closing quote")),
            }
        }
    }

    fn class(&mut self) -> Result<Expr> {
        let negated = self.chars.next_if_eq(&'^').is_some();
        let mut class = String::from(if negated { "[^" } else { "[" });
        let before = class.len();
        while let Some(start) = self.class_char()? {
            let _ = write!(class, "{}", hex(start));
            let is_range = self.chars.peek() == Some(&'-') && self.chars.clone().nth(1) != Some(']');
            if is_range {
                self.chars.next();
                let end = self.class_char()?.filter(|&end| end >= start);
                let Some(end) = end else { return Err(Error::invalid("a range of characters ends before it begins")) };
                let _ = write!(class, "-{}", hex(end));
            }
        }
        if class.len() == before {
            return Err(Error::invalid("a class of characters is empty"));
        }
        class.push(']');
        Ok(Expr::Class(class))
    }

    /// `None` at the end of the class.
    fn class_char(&mut self) -> Result<Option<char>> {
        match self.chars.next() {
            Some(']') => Ok(None),
            Some('\\') => self.escape().map(Some),
            Some(c) => Ok(Some(c)),
            None => Err(Error::invalid("a class of characters has no closing bracket")),
        }
    }

    fn escape(&mut self) -> Result<char> {
        let Some(c) = self.chars.next() else { return Err(Error::invalid("it ends with a backslash")) };
        let digits = match c {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            '0' => return Ok('\0'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ if !c.is_ascii_alphanumeric() => return Ok(c),
            _ => return Err(Error::invalid(format!("\\{c} is unknown"))),
        };
        let code: String = (0..digits).filter_map(|_| self.chars.next_if(char::is_ascii_hexdigit)).collect();
        let value = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == digits);
        value.and_then(char::from_u32).ok_or_else(|| Error::invalid(format!("\\{c}{code} is no character")))
    }
}

fn hex(c: char) -> String {
    format!("\\x{{{:x}}}", c as u32)
}

struct Writer<'a> {
    regular: Vec<bool>,
    suffix: &'a str,
    text: String,
    terminals: usize,
}

impl Writer<'_> {
    fn name(&self, rule: usize) -> String {
        let suffix = self.suffix;
        if self.regular[rule] { format!("T{rule}{}", suffix.to_uppercase()) } else { format!("r{rule}{suffix}") }
    }

    fn is_regular(&self, expr: &Expr) -> bool {
        let mut rules = Vec::new();
        expr.rules(&mut rules);
        rules.iter().all(|&rule| self.regular[rule])
    }

    fn terminal(&self, expr: &Expr) -> String {
        match expr {
            Expr::Text(text) => quoted(text),
            Expr::Class(class) => format!("/{}/", class.replace('/', "\\/")),
            Expr::Rule(rule) => self.name(*rule),
            Expr::Sequence(parts) => joined(parts.iter().map(|part| self.terminal(part)), " "),
            Expr::Choice(parts) => joined(parts.iter().map(|part| self.terminal(part)), " | "),
            Expr::Repeat(part, min, max) => repeat(&self.terminal(part), *min, *max),
        }
    }

    /// The longest parts of a recursive rule that need no recursion become terminals.
    fn rule(&mut self, expr: &Expr) -> String {
        if self.is_regular(expr) {
            let body = self.terminal(expr);
            return self.extract(&body);
        }
        match expr {
            Expr::Text(_) | Expr::Class(_) => self.terminal(expr),
            Expr::Rule(rule) => self.name(*rule),
            Expr::Choice(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| self.rule(part)).collect();
                joined(parts.into_iter(), " | ")
            }
            Expr::Repeat(part, min, max) => repeat(&self.rule(part), *min, *max),
            Expr::Sequence(parts) => {
                let mut written = Vec::new();
                let mut rest = parts.as_slice();
                while let Some(first) = rest.first() {
                    let run = rest.iter().take_while(|part| self.is_regular(part)).count();
                    if run > 0 {
                        let body = joined(rest[..run].iter().map(|part| self.terminal(part)), " ");
                        written.push(self.extract(&body));
                    } else {
                        written.push(self.rule(first));
                    }
                    rest = &rest[run.max(1)..];
                }
                joined(written.into_iter(), " ")
            }
        }
    }

    fn extract(&mut self, body: &str) -> String {
        let name = format!("X{}{}", self.terminals, self.suffix.to_uppercase());
        self.terminals += 1;
        let _ = writeln!(self.text, "{name}: {body}");
        name
    }
}

fn joined(parts: impl Iterator<Item = String>, separator: &str) -> String {
    let text = parts.collect::<Vec<_>>().join(separator);
    if text.is_empty() { "\"\"".to_owned() } else { format!("({text})") }
}

fn repeat(part: &str, min: u32, max: Option<u32>) -> String {
    match (min, max) {
        (0, None) => format!("({part})*"),
        (1, None) => format!("({part})+"),
        (0, Some(1)) => format!("({part})?"),
        (min, None) => format!("({part}){{{min},}}"),
        (min, Some(max)) => format!("({part}){{{min},{max}}}"),
    }
}
