//! The pickle machine, as far as saved tensors need it: it builds dictionaries, tuples, numbers and texts, and knows
//! four functions by name, none of which it calls. Any other name or instruction ends the reading.
//!
//! Source: the opcodes of Python's `pickletools`; the layout of `torch.save`.

use std::collections::HashMap;
use std::rc::Rc;

/// Values on the stack or in one place, at most.
const MAX_VALUES: usize = 1 << 20;
/// Tuples in tuples.
const MAX_DEPTH: usize = 16;

/// Where the elements of a tensor are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorPlace {
    /// The name that torch gives the type of the storage: `"FloatStorage"`.
    pub storage: Rc<str>,
    /// Member of the archive.
    pub key: Rc<str>,
    /// First element.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Value {
    Nothing,
    Int(i64),
    Text(Rc<str>),
    Tuple(Rc<[Value]>, usize),
    /// Number of a dictionary.
    Dict(usize),
    Function(Function),
    StorageType(Rc<str>),
    Storage(Rc<str>, Rc<str>),
    Tensor(Rc<TensorPlace>),
}

#[derive(Clone, Copy, Debug)]
enum Function {
    Dictionary,
    Tensor,
    Parameter,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    dicts: Vec<Vec<(Value, Value)>>,
}

/// The tensors of the dictionary that the pickle holds, or of its `state_dict`.
///
/// # Errors
/// What is there instead.
pub(super) fn tensors(bytes: &[u8]) -> Result<Vec<(String, TensorPlace)>, String> {
    let mut machine =
        Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), dicts: Vec::new() };
    let root = machine.run()?;
    let entries = |value: &Value| match value {
        Value::Dict(number) => machine.dicts.get(*number),
        _ => None,
    };
    let mut found = entries(&root).ok_or("it holds no dictionary of tensors")?;
    for (key, value) in found {
        if let (Value::Text(key), Some(inner)) = (key, entries(value))
            && matches!(key.as_ref(), "state_dict" | "model" | "module")
        {
            found = inner;
            break;
        }
    }
    let tensor = |(key, value): &(Value, Value)| match (key, value) {
        (Value::Text(name), Value::Tensor(place)) => Some((name.to_string(), place.as_ref().clone())),
        _ => None,
    };
    Ok(found.iter().filter_map(tensor).collect())
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Value, String> {
        loop {
            let opcode = self.take(1)?[0];
            match opcode {
                b'.' => return self.pop(),
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'}' => self.new_dict()?,
                // Lists hold nothing that is asked for.
                b']' => self.push(Value::Nothing)?,
                b'a' => drop(self.pop()?),
                b'e' => drop(self.popped_to_mark()?),
                b'q' | b'r' => {
                    let slot = self.number(if opcode == b'q' { 1 } else { 4 })?;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' | b'j' => {
                    let slot = self.number(if opcode == b'h' { 1 } else { 4 })?;
                    let value = self.memo.get(&slot).cloned().ok_or("it asks for a value that was never stored")?;
                    self.push(value)?;
                }
                b'N' | 0x88 | 0x89 => self.push(Value::Nothing)?,
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Nothing)?;
                }
                b'K' => self.push_number(1)?,
                b'M' => self.push_number(2)?,
                b'J' => {
                    let number = self.number(4)? as u32 as i32;
                    self.push(Value::Int(number.into()))?;
                }
                0x8a => self.long()?,
                b'X' | 0x8c => {
                    let len = self.number(if opcode == b'X' { 4 } else { 1 })?;
                    let text = self.text(len)?;
                    self.push(Value::Text(text))?;
                }
                b'c' | 0x93 => self.global(opcode)?,
                b'Q' => self.storage()?,
                b')' => self.tuple(Vec::new())?,
                0x85..=0x87 => {
                    let count = usize::from(opcode - 0x84);
                    let first = self.stack.len().checked_sub(count).ok_or("it takes more values than there are")?;
                    let items = self.stack.split_off(first);
                    self.tuple(items)?;
                }
                b't' => {
                    let items = self.popped_to_mark()?;
                    self.tuple(items)?;
                }
                b'R' => self.reduce()?,
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.popped_to_mark()?;
                    self.set_items(items)?;
                }
                // Attributes of a dictionary (`_metadata`) say nothing about tensors.
                b'b' => drop(self.pop()?),
                other => {
                    return Err(format!(
                        "it has the instruction {other:#04x} at byte {}, which saved tensors do not need",
                        self.at - 1
                    ));
                }
            }
        }
    }

    fn global(&mut self, opcode: u8) -> Result<(), String> {
        let (module, name) = if opcode == b'c' {
            (self.line()?, self.line()?)
        } else {
            match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => (module.to_string(), name.to_string()),
                _ => return Err("it names a function without a text".to_owned()),
            }
        };
        let value = match (module.as_str(), name.as_str()) {
            ("collections", "OrderedDict") => Value::Function(Function::Dictionary),
            ("torch._utils", "_rebuild_tensor_v2") => Value::Function(Function::Tensor),
            ("torch._utils", "_rebuild_parameter") => Value::Function(Function::Parameter),
            ("torch", storage) if storage.ends_with("Storage") => Value::StorageType(storage.into()),
            _ => {
                return Err(format!(
                    "it names {:?}, which is not read: only tensors are",
                    short(&format!("{module}.{name}"))
                ));
            }
        };
        self.push(value)
    }

    /// `("storage", type, key, place, elements)` as a storage.
    fn storage(&mut self) -> Result<(), String> {
        let Value::Tuple(items, _) = self.pop()? else { return Err("a storage is no tuple".to_owned()) };
        match items.as_ref() {
            [Value::Text(kind), Value::StorageType(storage), Value::Text(key), ..] if kind.as_ref() == "storage" => {
                self.push(Value::Storage(storage.clone(), key.clone()))
            }
            _ => Err("a storage has no type or name".to_owned()),
        }
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Function(function), Value::Tuple(items, _)) = (function, arguments) else {
            return Err("it calls what is no function of tensors".to_owned());
        };
        match function {
            Function::Dictionary => self.new_dict(),
            Function::Parameter => self.push(items.first().cloned().unwrap_or(Value::Nothing)),
            Function::Tensor => {
                let [Value::Storage(storage, key), Value::Int(offset), shape, strides, ..] = items.as_ref() else {
                    return Err("a tensor lacks its storage, offset, shape or strides".to_owned());
                };
                let numbers = |value: &Value| match value {
                    Value::Tuple(items, _) => items.iter().map(natural).collect::<Option<Vec<_>>>(),
                    _ => None,
                };
                let place = numbers(shape).zip(numbers(strides)).zip(natural(&Value::Int(*offset)));
                let ((shape, strides), offset) = place.ok_or("a tensor's shape or strides are no sizes")?;
                let (storage, key) = (storage.clone(), key.clone());
                self.push(Value::Tensor(Rc::new(TensorPlace { storage, key, offset, shape, strides })))
            }
        }
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), String> {
        let Some(Value::Dict(number)) = self.stack.last() else {
            return Err("it puts values into what is no dictionary".to_owned());
        };
        let dict = self.dicts.get_mut(*number).ok_or("a dictionary is not there")?;
        if dict.len() + items.len() > MAX_VALUES {
            return Err(format!("a dictionary has more than {MAX_VALUES} values"));
        }
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            dict.push((key, value));
        }
        Ok(())
    }

    fn new_dict(&mut self) -> Result<(), String> {
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    fn tuple(&mut self, items: Vec<Value>) -> Result<(), String> {
        let depth = |value: &Value| if let Value::Tuple(_, depth) = value { *depth } else { 0 };
        let depth = items.iter().map(depth).max().unwrap_or(0) + 1;
        if depth > MAX_DEPTH {
            return Err(format!("it nests tuples deeper than {MAX_DEPTH}"));
        }
        self.push(Value::Tuple(items.into(), depth))
    }

    fn long(&mut self) -> Result<(), String> {
        let len = self.number(1)? as usize;
        let bytes = self.take(len)?;
        let mut wide = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { [0xff; 8] } else { [0; 8] };
        let value = match wide.get_mut(..len) {
            Some(part) => {
                part.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            None => Value::Nothing,
        };
        self.push(value)
    }

    fn push_number(&mut self, size: usize) -> Result<(), String> {
        let number = self.number(size)? as i64;
        self.push(Value::Int(number))
    }

    fn remember(&mut self, slot: u64) -> Result<(), String> {
        let top = self.stack.last().cloned().ok_or("it stores a value that is not there")?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.stack.len() == MAX_VALUES {
            return Err(format!("it holds more than {MAX_VALUES} values at a time"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "it takes a value that is not there".to_owned())
    }

    fn popped_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        let mark = mark.ok_or("it looks for a mark that is not there")?;
        Ok(self.stack.split_off(mark))
    }

    fn text(&mut self, len: u64) -> Result<Rc<str>, String> {
        let len = usize::try_from(len).map_err(|_| "a text is too long".to_owned())?;
        std::str::from_utf8(self.take(len)?).map(Rc::from).map_err(|_| "a text is not UTF-8".to_owned())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or("a name does not end")?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map(str::to_owned).map_err(|_| "a name is not UTF-8".to_owned())
    }

    fn number(&mut self, size: usize) -> Result<u64, String> {
        Ok(self.take(size)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn take(&mut self, len: usize) -> Result<&[u8], String> {
        let taken = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("it ends before its last instruction")?;
        self.at += len;
        Ok(taken)
    }
}

fn natural(value: &Value) -> Option<usize> {
    match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_is_no_tensors_is_named_and_not_called() {
        let error = tensors(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.").unwrap_err();
        assert_eq!(error, "it names \"os.system\", which is not read: only tensors are");
        let builtins = tensors(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.").unwrap_err();
        assert!(builtins.contains("builtins.eval"), "{builtins}");
        assert!(tensors(b"\x80\x02i.").unwrap_err().contains("instruction 0x69"));
    }

    #[test]
    fn damaged_programs_end_in_a_sentence() {
        let deep = [b"\x80\x02)".as_slice(), &[0x85; 100], b"."].concat();
        assert!(tensors(&deep).unwrap_err().contains("nests tuples"));
        for (program, part) in [
            (b"".as_slice(), "ends before"),
            (b".", "not there"),
            (b"t.", "mark"),
            (b"h\x05.", "never stored"),
            (b"K\x01.", "no dictionary"),
            (b"\x86.", "more values"),
            (b"K\x01K\x02K\x03s.", "no dictionary"),
            (b"X\xff\xff\xff\xff.", "ends before"),
        ] {
            assert!(tensors(program).unwrap_err().contains(part), "{program:?}");
        }
    }
}
