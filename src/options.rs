//! [`Options`]: how a node and its children are to be opened, as dotted names (`file.filename`) with texts as values.
//!
//! QEMU's two spellings are understood: `driver=qcow2,file.filename=disk.img` and
//! `json:{"driver": "qcow2", "file": {"filename": "disk.img"}}` (QEMU's docs/system/qemu-block-drivers and qapi).

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::error::{Error, Result};
use crate::wire::parse_size;

/// Options of a node and, under dotted names, of its children.
///
/// Taking an option removes it, so that what is left at the end is what nobody understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// No options.
    pub const fn new() -> Self {
        Options(BTreeMap::new())
    }

    /// Reads `name=value,name=value`. A doubled comma stands for one; `name` alone means `on`, `noname` `off`.
    ///
    /// # Errors
    /// A name is empty.
    pub fn parse(text: &str) -> Result<Self> {
        let mut options = Options::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = split_piece(rest);
            rest = after;
            match piece.split_once('=') {
                Some(("", _)) => return Err(Error::invalid("Invalid parameter ''")),
                Some((name, value)) => options.set(name, value),
                None => match piece.strip_prefix("no").filter(|name| !name.is_empty()) {
                    Some(name) => options.set(name, "off"),
                    None => options.set(&piece, "on"),
                },
            }
        }
        Ok(options)
    }

    /// Reads a JSON object. As in QEMU, texts may be in single quotes, nested objects and arrays become dotted names, and
    /// `null` an empty text.
    ///
    /// # Errors
    /// It is not a JSON object.
    #[cfg(feature = "json")]
    pub fn parse_json(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(&double_quoted(text))
            .map_err(|error| Error::invalid(alloc::format!("Could not parse the JSON options: {error}")))?;
        if !value.is_object() {
            return Err(Error::invalid("Invalid JSON object given"));
        }
        let mut options = Options::new();
        options.flatten("", value);
        Ok(options)
    }

    #[cfg(feature = "json")]
    fn flatten(&mut self, name: &str, value: serde_json::Value) {
        use serde_json::Value;
        let below = |part: &str| if name.is_empty() { part.to_string() } else { alloc::format!("{name}.{part}") };
        match value {
            Value::Null => self.set(name, ""),
            Value::Bool(on) => self.set(name, if on { "on" } else { "off" }),
            Value::Number(number) => self.set(name, &number.to_string()),
            Value::String(text) => self.set(name, &text),
            Value::Array(values) => {
                for (index, value) in values.into_iter().enumerate() {
                    self.flatten(&below(&index.to_string()), value);
                }
            }
            Value::Object(values) => {
                for (part, value) in values {
                    self.flatten(&below(&part), value);
                }
            }
        }
    }

    /// Sets an option.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_string(), value.to_string());
    }

    /// Sets an option unless it is set.
    pub fn set_default(&mut self, name: &str, value: &str) {
        self.0.entry(name.to_string()).or_insert_with(|| value.to_string());
    }

    /// Takes over all of `other`, which wins.
    pub fn extend(&mut self, other: Options) {
        self.0.extend(other.0);
    }

    /// The value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether there are no options.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All options, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Takes an option out.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes out the options of a child: those that begin with `name.`, without that.
    pub fn take_child(&mut self, name: &str) -> Options {
        let prefix = alloc::format!("{name}.");
        let names: Vec<String> = self.0.keys().filter(|full| full.starts_with(&prefix)).cloned().collect();
        let mut child = Options::new();
        for full in names {
            if let (Some(value), Some(rest)) = (self.0.remove(&full), full.strip_prefix(&prefix)) {
                child.0.insert(rest.to_string(), value);
            }
        }
        child
    }

    /// Takes out the numbered children `name.0`, `name.1`, … in order.
    pub fn take_list(&mut self, name: &str) -> Vec<Options> {
        let mut all = self.take_child(name);
        let mut list = Vec::new();
        for index in 0usize.. {
            let index = index.to_string();
            let mut item = all.take_child(&index);
            if let Some(reference) = all.take(&index) {
                item.set("", &reference);
            }
            if item.is_empty() {
                break;
            }
            list.push(item);
        }
        for (rest, value) in all.0 {
            self.0.insert(alloc::format!("{name}.{rest}"), value);
        }
        list
    }

    /// Takes out a yes or no.
    ///
    /// # Errors
    /// It is neither.
    pub fn take_switch(&mut self, name: &str) -> Result<Option<bool>> {
        self.take(name).map(|value| switch(name, &value)).transpose()
    }

    /// Takes out a number of bytes, with an optional binary suffix.
    ///
    /// # Errors
    /// It is not one.
    pub fn take_size(&mut self, name: &str) -> Result<Option<u64>> {
        self.take(name)
            .map(|value| {
                parse_size(&value).ok_or_else(|| {
                    Error::invalid(alloc::format!(
                        "Parameter '{name}' expects a non-negative number below 2^64, not '{value}'"
                    ))
                })
            })
            .transpose()
    }

    /// Fails if options are left that nobody took.
    ///
    /// # Errors
    /// Names the first of them.
    pub fn finish(&self, driver: &str) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(Error::invalid(alloc::format!("Block format '{driver}' does not support the option '{name}'")))
            }
        }
    }

    /// As QEMU writes a description: `json:{"driver": "qcow2", "file": {"filename": "disk.img"}}`.
    #[cfg(feature = "json")]
    pub fn to_json_name(&self) -> String {
        alloc::format!("json:{}", self.nested())
    }

    #[cfg(feature = "json")]
    fn nested(&self) -> String {
        let mut parts: Vec<(&str, Options)> = Vec::new();
        for (name, value) in self.iter() {
            let (part, rest) = name.split_once('.').unwrap_or((name, ""));
            match parts.last_mut().filter(|(known, _)| *known == part) {
                Some((_, below)) => below.set(rest, value),
                None => {
                    let mut below = Options::new();
                    below.set(rest, value);
                    parts.push((part, below));
                }
            }
        }
        // QEMU's order, which is that of its hash tables.
        parts.sort_by_key(|(part, _)| ["offset", "driver", "size"].iter().position(|known| known == part).unwrap_or(3));
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let is_list = parts.iter().all(|(part, _)| part.bytes().all(|byte| byte.is_ascii_digit()));
        let members: Vec<String> = parts
            .iter()
            .map(|(part, below)| {
                let value = match below.value("") {
                    Some(text) => quoted(text),
                    None => below.nested(),
                };
                if is_list { value } else { alloc::format!("{}: {value}", quoted(part)) }
            })
            .collect();
        let members = members.join(", ");
        if is_list { alloc::format!("[{members}]") } else { alloc::format!("{{{members}}}") }
    }

    /// As a map.
    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }
}

impl From<BTreeMap<String, String>> for Options {
    fn from(map: BTreeMap<String, String>) -> Self {
        Options(map)
    }
}

/// `on` or `off`, whichever way it is spelled.
pub(crate) fn switch(name: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(Error::invalid(alloc::format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

/// What stands before the first single comma, with doubled ones made single, and what follows it.
fn split_piece(text: &str) -> (String, &str) {
    let mut piece = String::new();
    let mut rest = text;
    loop {
        let Some((before, after)) = rest.split_once(',') else {
            piece.push_str(rest);
            return (piece, "");
        };
        piece.push_str(before);
        match after.strip_prefix(',') {
            Some(after) => {
                piece.push(',');
                rest = after;
            }
            None => return (piece, after),
        }
    }
}

/// Texts in single quotes put into double ones.
#[cfg(feature = "json")]
fn double_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => {
                quote = Some(c);
                out.push('"');
            }
            (Some(open), c) if c == open => {
                quote = None;
                out.push('"');
            }
            (Some('\''), '"') => out.push_str("\\\""),
            (Some(_), '\\') => match chars.next() {
                // The only escape that JSON does not know.
                Some('\'') => out.push('\''),
                Some(next) => out.extend(['\\', next]),
                None => out.push('\\'),
            },
            (_, c) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn a_doubled_comma_is_part_of_the_value() {
        let options = Options::parse("file.filename=a,,b,read-only,nodiscard").unwrap();
        assert_eq!(options.value("file.filename"), Some("a,b"));
        assert_eq!((options.value("read-only"), options.value("discard")), (Some("on"), Some("off")));
        assert!(Options::parse("=x").is_err());
    }

    #[test]
    fn children_are_told_by_their_prefix() {
        let mut options = Options::parse("file.filename=a,filename=b,children.0.driver=x,children.1=name").unwrap();
        assert_eq!(options.take_child("file").value("filename"), Some("a"));
        let list = options.take_list("children");
        assert_eq!((list[0].value("driver"), list[1].value("")), (Some("x"), Some("name")));
        assert_eq!(options.iter().collect::<alloc::vec::Vec<_>>(), [("filename", "b")]);
    }

    #[cfg(feature = "json")]
    #[test]
    fn json_becomes_dotted_names() {
        let text = r#"{'driver': "raw", 'size': 1024, 'file': {'filename': 'it\'s "x"'}, 'list': [{'a': true}, null]}"#;
        let options = Options::parse_json(text).unwrap();
        let found: alloc::vec::Vec<_> = options.iter().collect();
        assert_eq!(
            found,
            [("driver", "raw"), ("file.filename", "it's \"x\""), ("list.0.a", "on"), ("list.1", ""), ("size", "1024")]
        );
        assert_eq!(
            options.to_json_name(),
            r#"json:{"driver": "raw", "size": "1024", "file": {"filename": "it's \"x\""}, "list": [{"a": "on"}, ""]}"#
        );
        assert!(Options::parse_json("[1]").is_err());
        assert!(Options::parse_json("{").is_err());
    }
}
