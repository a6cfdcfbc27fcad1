//! YAML files as JSON values, for the few formats whose files come as both.
//!
//! Taken is what such files hold: mappings, sequences, scalars. Aliases are refused, since a few
//! lines of them stand for gigabytes, and so are tags and doubled keys. Plain scalars mean what the
//! programs in Go make of them that write these files.

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// Why a text is no file of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct YamlError {
    /// Where, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// A collection that is being filled.
enum Open {
    Sequence(Vec<Value>),
    /// With the key whose value comes next.
    Mapping(Map<String, Value>, Option<String>),
}

/// Reads a text of one document; an empty one is null.
///
/// # Errors
/// [`YamlError`] with the first problem.
pub fn parse(text: &str) -> Result<Value, YamlError> {
    let mut open: Vec<Open> = Vec::new();
    let mut document = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| YamlError {
            line: error.marker().line(),
            problem: error.info().to_owned(),
        })?;
        let wrong = |problem: &str| YamlError {
            line: span.start.line(),
            problem: problem.to_owned(),
        };
        let value = match event {
            Event::Alias(_) => return Err(wrong("aliases are not allowed")),
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => return Err(wrong("tags are not allowed")),
            Event::DocumentStart(_) if document.is_some() => {
                return Err(wrong("there is more than one document"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::Sequence(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Mapping(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::Sequence(items)) => Some(Value::Array(items)),
                Some(Open::Mapping(fields, _)) => Some(Value::Object(fields)),
                None => None,
            },
            Event::Scalar(text, style, _, None) => match open.last_mut() {
                // A key is a text, however it looks.
                Some(Open::Mapping(fields, key @ None)) => {
                    if fields.contains_key(&*text) {
                        return Err(wrong(&format!("{text:?} is there twice")));
                    }
                    *key = Some(text.into_owned());
                    None
                }
                _ => Some(scalar(text, style)),
            },
            _ => None,
        };
        if open.len() > MAX_DEPTH {
            return Err(wrong("it is nested too deeply"));
        }
        let Some(value) = value else { continue };
        match open.last_mut() {
            None => document = Some(value),
            Some(Open::Sequence(items)) => items.push(value),
            Some(Open::Mapping(fields, key)) => {
                let key = key.take();
                let key = key.ok_or_else(|| wrong("a key must be a text"))?;
                fields.insert(key, value);
            }
        }
    }
    Ok(document.unwrap_or(Value::Null))
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.into_owned());
    }
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        plain => number(plain).map_or_else(|| Value::String(plain.to_owned()), Value::Number),
    }
}

/// A number with an optional sign: 0x, 0o, 0b or a leading 0 before digits of that base, else
/// decimal, else a fraction.
fn number(text: &str) -> Option<Number> {
    let (negative, rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let (base, digits) = match rest.get(..2) {
        Some("0x") => (16, &rest[2..]),
        Some("0o") => (8, &rest[2..]),
        Some("0b") => (2, &rest[2..]),
        Some(two) if two.starts_with('0') && two.as_bytes()[1].is_ascii_digit() => (8, &rest[1..]),
        _ => (10, rest),
    };
    // No second sign.
    if digits.starts_with(|c: char| c.is_ascii_alphanumeric())
        && let Ok(value) = u64::from_str_radix(digits, base)
    {
        return match negative {
            false => Some(value.into()),
            true => Some(0_i64.checked_sub_unsigned(value)?.into()),
        };
    }
    let fraction = |c: char| c.is_ascii_digit() || ".eE+-".contains(c);
    let plain = rest.chars().all(fraction) && rest.contains(|c: char| c.is_ascii_digit());
    plain.then(|| text.parse().ok().and_then(Number::from_f64))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_of_a_vendor_is_read() {
        let text = "---\n# written by a program\ncdiVersion: 0.5.0\nkind: vendor.com/gpu\ndevices:\n\
                    - name: \"0\"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/gpu0\n      \
                    major: 195\n      fileMode: 0666\n      uid: 0x10\n    env: [A=1, 'B=x: y']\n\
                    - {name: all, annotations: {}}\nempty:\n";
        let expected = json!({
            "cdiVersion": "0.5.0",
            "kind": "vendor.com/gpu",
            "devices": [
                {"name": "0", "containerEdits": {
                    "deviceNodes": [
                        {"path": "/dev/gpu0", "major": 195, "fileMode": 0o666, "uid": 16}
                    ],
                    "env": ["A=1", "B=x: y"],
                }},
                {"name": "all", "annotations": {}},
            ],
            "empty": null,
        });
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn plain_scalars_mean_what_they_look_like() {
        for (text, value) in [
            ("12", json!(12)),
            ("-7", json!(-7)),
            ("0b101", json!(5)),
            ("0o17", json!(15)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            ("0.6.0", json!("0.6.0")),
            ("089", json!(89.0)),
            ("--1", json!("--1")),
            ("yes", json!("yes")),
            ("~", json!(null)),
            ("True", json!(true)),
            ("\"1\"", json!("1")),
            ("50M", json!("50M")),
            ("18446744073709551615", json!(u64::MAX)),
        ] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
        assert_eq!(parse(""), Ok(Value::Null));
        assert_eq!(parse("|\n  a\n  b\n"), Ok(json!("a\nb\n")));
    }

    #[test]
    fn what_is_dangerous_or_ambiguous_is_refused_with_its_line() {
        for (text, expected) in [
            ("a: &x [1]\nb: *x\n", "line 2: aliases are not allowed"),
            ("a: !!str 1\n", "line 1: tags are not allowed"),
            ("a: 1\na: 2\n", "line 2: \"a\" is there twice"),
            (
                "a: 1\n---\nb: 2\n",
                "line 2: there is more than one document",
            ),
            ("[1, 2]: x\n", "line 1: a key must be a text"),
            ("a: [1\n", "line "),
            ("a:\n\t- 1\n", "line "),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        let deep = "[".repeat(65);
        let error = parse(&deep).unwrap_err().to_string();
        assert!(error.contains("nested too deeply"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~\n\t\u{e4}:#{}\\[\\]&*!|>'\"-]{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn json_is_read_as_what_it_is(
            list in proptest::collection::vec(("[a-z]{1,6}", any::<i32>(), "[ -~]{0,12}"), 0..6)
        ) {
            let value: Vec<Value> = list
                .iter()
                .map(|(key, number, text)| json!({ "key": key, "number": number, "text": text }))
                .collect();
            let value = Value::Array(value);
            prop_assert_eq!(parse(&value.to_string()), Ok(value));
        }
    }
}
