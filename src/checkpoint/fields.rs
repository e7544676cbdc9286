//! Reads values out of a JSON configuration and remembers everything that is wrong with them.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::Problem;

/// Upper bound of every width, token count and table length. Far above any real model, and low enough that the
/// product of three of them fits 64 bits.
const MAX_DIMENSION: usize = 1 << 20;

/// Upper bound of a square's side.
const MAX_SIDE: usize = 1 << 9;

/// Upper bound of every layer count.
const MAX_LAYERS: usize = 1 << 10;

/// One object of a configuration file. Problems of all objects of the file go into one list; after a problem the
/// value returned is a stand-in, so the caller looks at that list (or at [`Fields::sound`]) before it uses any.
pub(super) struct Fields<'a> {
    file: &'a str,
    /// Path of the object inside the file, with a trailing dot, or empty.
    path: String,
    object: Option<&'a Map<String, Value>>,
    problems: &'a RefCell<Vec<Problem>>,
}

impl<'a> Fields<'a> {
    /// The whole document, which must be an object.
    pub fn new(file: &'a str, document: &'a Value, problems: &'a RefCell<Vec<Problem>>) -> Self {
        if !document.is_object() {
            problems.borrow_mut().push(Problem::file(file, "a JSON object", document.to_string()));
        }
        Self { file, path: String::new(), object: document.as_object(), problems }
    }

    /// The object under `key`; `None` where the key is absent.
    pub fn section(&self, key: &str) -> Option<Fields<'a>> {
        let value = self.get(key)?;
        if !value.is_object() {
            self.problem(key, "a JSON object", value.to_string());
        }
        let path = format!("{}{key}.", self.path);
        Some(Fields { file: self.file, path, object: value.as_object(), problems: self.problems })
    }

    /// Like [`Fields::section`] for an object that must be there.
    pub fn required_section(&self, key: &str) -> Option<Fields<'a>> {
        if self.object.is_some() && self.get(key).is_none() {
            self.problem(key, "a JSON object", "no such key");
        }
        self.section(key)
    }

    /// A width, a token count, a table length: at least 1. Without a default the key is required.
    pub fn dimension(&self, key: &str, default: Option<usize>) -> usize {
        self.whole_number(key, default, 1..=MAX_DIMENSION)
    }

    /// A number of layers: at least 1.
    pub fn layers(&self, key: &str, default: Option<usize>) -> usize {
        self.whole_number(key, default, 1..=MAX_LAYERS)
    }

    /// The side of a square in pixels: at least 1, and small enough that its area is a [`Fields::dimension`] too.
    pub fn side(&self, key: &str) -> usize {
        self.whole_number(key, None, 1..=MAX_SIDE)
    }

    fn whole_number(&self, key: &str, default: Option<usize>, range: RangeInclusive<usize>) -> usize {
        let parse = |value: &Value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n))
        };
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        self.value(key, default, parse, expected).unwrap_or(*range.start())
    }

    /// A number within a range.
    pub fn number(&self, key: &str, default: Option<f64>, range: RangeInclusive<f64>) -> f64 {
        let parse = |value: &Value| value.as_f64().filter(|n| range.contains(n));
        let expected = || format!("a number from {:?} to {:?}", range.start(), range.end());
        self.value(key, default, parse, expected).unwrap_or(*range.start())
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &str, default: bool) -> bool {
        self.value(key, Some(default), Value::as_bool, || "true or false".to_owned()).unwrap_or(default)
    }

    /// A choice of which only one value is built here. `default` is what the reference takes for an absent key; it
    /// need not be the supported one.
    pub fn only(&self, key: &str, default: Value, supported: Value) {
        if self.object.is_none() {
            return;
        }
        let expected = format!("{supported}, the only variant supported");
        match self.get(key) {
            Some(value) if !same(value, &supported) => self.problem(key, expected, value.to_string()),
            None if !same(&default, &supported) => {
                self.problem(key, expected, format!("no such key, which means {default}"));
            }
            _ => {}
        }
    }

    /// Whether no object of the file has shown a problem so far.
    pub fn sound(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// Records a problem of one key.
    pub fn problem(&self, key: &str, expected: impl Into<String>, found: impl Into<String>) {
        let key = format!("{}{key}", self.path);
        self.problems.borrow_mut().push(Problem::item(self.file, &key, expected, found));
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object?.get(key)
    }

    fn value<T>(
        &self,
        key: &str,
        default: Option<T>,
        parse: impl Fn(&Value) -> Option<T>,
        expected: impl Fn() -> String,
    ) -> Option<T> {
        // The object itself is already reported as missing or of the wrong type.
        self.object?;
        match (self.get(key), default) {
            (Some(value), _) => {
                let parsed = parse(value);
                if parsed.is_none() {
                    self.problem(key, expected(), value.to_string());
                }
                parsed
            }
            (None, None) => {
                self.problem(key, expected(), "no such key");
                None
            }
            (None, default) => default,
        }
    }
}

/// Equality of JSON values in which 1 and 1.0 are the same number, as they are to the reference.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
