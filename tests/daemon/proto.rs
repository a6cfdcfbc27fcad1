//! The protocol we compile is the protocol that kubelet speaks: the descriptor against the table of
//! facts (`cri-v1.tsv`), row by row and in both directions.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

const TABLE: &str = include_str!("cri-v1.tsv");
const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));

/// The one option that the Rust types do not know, with the messages around it.
mod redact {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Set {
        #[prost(message, repeated, tag = "1")]
        pub file: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct File {
        #[prost(message, repeated, tag = "4")]
        pub message: Vec<Message>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Message {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub field: Vec<Field>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Field {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, optional, tag = "8")]
        pub options: Option<Options>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Options {
        #[prost(bool, tag = "16")]
        pub debug_redact: bool,
    }
}

/// Whether a field must not be printed.
fn is_redacted(message: &str, field: &str) -> bool {
    let set = redact::Set::decode(DESCRIPTOR).unwrap();
    let mut messages = set.file.iter().flat_map(|f| &f.message);
    let message = messages.find(|m| m.name == message).unwrap();
    let field = message.field.iter().find(|f| f.name == field).unwrap();
    field.options.as_ref().is_some_and(|o| o.debug_redact)
}

/// Columns of the table.
const COLUMNS: usize = 11;

fn file() -> FileDescriptorProto {
    let set = FileDescriptorSet::decode(DESCRIPTOR).unwrap();
    assert_eq!(set.file.len(), 1, "the protocol is one file");
    set.file.into_iter().next().unwrap()
}

/// The rows of the table. Trailing empty columns may be missing in the file.
fn table() -> BTreeSet<Vec<String>> {
    let rows: Vec<Vec<String>> = TABLE
        .lines()
        .skip(1)
        .map(|line| {
            let mut row: Vec<String> = line.split('\t').map(str::to_owned).collect();
            row.resize(COLUMNS, String::new());
            row
        })
        .collect();
    let set: BTreeSet<_> = rows.iter().cloned().collect();
    assert_eq!(set.len(), rows.len(), "no row stands twice");
    set
}

/// One row: kind, scope, name, number, type, label, oneof, options, request, response, streaming.
fn row(kind: &str, columns: &[(usize, &str)]) -> Vec<String> {
    let mut row = vec![String::new(); COLUMNS];
    row[0] = kind.to_owned();
    for (at, value) in columns {
        row[*at] = (*value).to_owned();
    }
    row
}

/// The compiled descriptor as rows of the table.
fn compiled() -> BTreeSet<Vec<String>> {
    let file = file();
    let mut rows = BTreeSet::new();
    rows.insert(row("syntax", &[(2, file.syntax())]));
    rows.insert(row("package", &[(2, file.package())]));
    let go_package = file
        .options
        .as_ref()
        .map(|o| o.go_package())
        .unwrap_or_default();
    rows.insert(row("option", &[(2, "go_package"), (4, go_package)]));
    for service in &file.service {
        for rpc in &service.method {
            let streaming = match (rpc.client_streaming(), rpc.server_streaming()) {
                (false, false) => "unary",
                (false, true) => "server",
                (true, false) => "client",
                (true, true) => "both",
            };
            let (input, output) = (short(rpc.input_type()), short(rpc.output_type()));
            let columns = [
                (1, service.name()),
                (2, rpc.name()),
                (8, &input),
                (9, &output),
                (10, streaming),
            ];
            rows.insert(row("rpc", &columns));
        }
    }
    file.enum_type
        .iter()
        .for_each(|e| enumeration(&mut rows, "", e));
    file.message_type.iter().for_each(|m| message(&mut rows, m));
    rows
}

fn enumeration(rows: &mut BTreeSet<Vec<String>>, scope: &str, found: &EnumDescriptorProto) {
    let name = match scope {
        "" => found.name().to_owned(),
        _ => format!("{scope}.{}", found.name()),
    };
    rows.insert(row("enumtype", &[(2, &name)]));
    for value in &found.value {
        let number = value.number().to_string();
        rows.insert(row("enum", &[(1, &name), (2, value.name()), (3, &number)]));
    }
}

fn message(rows: &mut BTreeSet<Vec<String>>, found: &DescriptorProto) {
    rows.insert(row("message", &[(2, found.name())]));
    found
        .enum_type
        .iter()
        .for_each(|e| enumeration(rows, found.name(), e));
    for nested in &found.nested_type {
        let entry = nested.options.as_ref().is_some_and(|o| o.map_entry());
        assert!(entry, "only maps nest: {}.{}", found.name(), nested.name());
    }
    for field in &found.field {
        let map = map_entry(found, field);
        // The table names a type that its message declares as the message does.
        let inner = |name: String| {
            let prefix = format!("{}.", found.name());
            name.strip_prefix(&prefix)
                .map_or_else(|| name.clone(), str::to_owned)
        };
        let (kind, label) = match map {
            Some(entry) => {
                let of = |i: usize| type_name(&entry.field[i]);
                (format!("map<{},{}>", of(0), of(1)), "map")
            }
            None if field.label() == Label::Repeated => (inner(type_name(field)), "repeated"),
            None => (inner(type_name(field)), "singular"),
        };
        let oneof = field.oneof_index.map(|i| {
            let index = usize::try_from(i).unwrap();
            found.oneof_decl[index].name().to_owned()
        });
        let options = field.options.as_ref();
        let set = [
            ("debug_redact=true", is_redacted(found.name(), field.name())),
            ("deprecated=true", options.is_some_and(|o| o.deprecated())),
        ];
        let options: Vec<&str> = set
            .iter()
            .filter(|(_, on)| *on)
            .map(|(text, _)| *text)
            .collect();
        let columns = [
            (1, found.name()),
            (2, field.name()),
            (3, &field.number().to_string()),
            (4, &kind),
            (5, label),
            (6, oneof.as_deref().unwrap_or_default()),
            (7, &options.join(",")),
        ];
        rows.insert(row("field", &columns));
    }
}

fn map_entry<'a>(
    message: &'a DescriptorProto,
    field: &FieldDescriptorProto,
) -> Option<&'a DescriptorProto> {
    let name = short(field.type_name());
    let mut entries = message.nested_type.iter();
    entries.find(|n| field.r#type() == Type::Message && name.ends_with(n.name()))
}

fn type_name(field: &FieldDescriptorProto) -> String {
    let plain = match field.r#type() {
        Type::Message | Type::Enum => return short(field.type_name()),
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::Bool => "bool",
        Type::Double => "double",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Uint32 => "uint32",
        Type::Uint64 => "uint64",
        other => panic!("the protocol has no field of type {other:?}"),
    };
    plain.to_owned()
}

/// A type's name without the package.
fn short(name: &str) -> String {
    name.trim_start_matches(".runtime.v1.").to_owned()
}

#[test]
fn the_descriptor_is_the_table_row_by_row() {
    let (compiled, table) = (compiled(), table());
    let show = |rows: Vec<&Vec<String>>| {
        rows.iter()
            .map(|r| format!("  {}\n", r.join(" ")))
            .collect::<String>()
    };
    let missing = show(table.difference(&compiled).collect());
    let extra = show(compiled.difference(&table).collect());
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing:\n{missing}too much:\n{extra}"
    );
    assert_eq!(table.len(), 805, "the table is whole");
}

#[test]
fn environment_values_are_bytes() {
    let file = file();
    let pair = file
        .message_type
        .iter()
        .find(|m| m.name() == "KeyValue")
        .unwrap();
    let value = pair.field.iter().find(|f| f.name() == "value").unwrap();
    assert_eq!(value.r#type(), Type::Bytes);
}

#[test]
fn every_service_rpc_message_and_enum_is_explained() {
    let text = include_str!("../../proto/cri/v1/cri.proto");
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let word = line.trim_start().split(' ').next().unwrap_or_default();
        if ["service", "rpc", "message", "enum"].contains(&word) {
            let above = lines[i - 1].trim_start();
            assert!(above.starts_with("// "), "line {}: {line}", i + 1);
        }
    }
}
