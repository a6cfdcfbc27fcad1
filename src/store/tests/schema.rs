//! Old records: golden bytes of every schema a release wrote, brought forward one step at a time.

use serde_json::{Value, json};

use super::*;
use crate::store::{
    MigrateError, StoreError, envelope,
    record_file::{self, RecordFileError},
};

/// Schema 1: `{name}`. Schema 2: `{name, labels: [text]}`. Schema 3: `{title, labels: {k: v}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Thing {
    title: String,
    labels: std::collections::BTreeMap<String, String>,
}

impl Record for Thing {
    const TABLE: &'static str = "things";
    const SCHEMA: u16 = 3;

    fn migrate(from: u16, mut body: Value) -> Result<Value, MigrateError> {
        let broken = |reason: &str| MigrateError {
            from,
            reason: reason.to_owned(),
        };
        let fields = body
            .as_object_mut()
            .ok_or_else(|| broken("not an object"))?;
        match from {
            1 => drop(fields.insert("labels".to_owned(), json!([]))),
            2 => {
                let name = fields.remove("name").ok_or_else(|| broken("no name"))?;
                fields.insert("title".to_owned(), name);
                let labels = fields.remove("labels").unwrap_or_default();
                let labels: serde_json::Map<String, Value> = labels
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|l| l.as_str()?.split_once('='))
                    .map(|(k, v)| (k.to_owned(), json!(v)))
                    .collect();
                fields.insert("labels".to_owned(), labels.into());
            }
            _ => return Err(broken("unknown")),
        }
        Ok(body)
    }
}

/// The golden records: what releases with schema 1 and 2 left on disk, byte for byte.
const V1: &[u8] = b"\x01\x00\xde\x0c\xf5\x82{\"name\":\"first\"}";
const V2: &[u8] = b"\x02\x00\x0b\x85\x5c\xbc{\"name\":\"second\",\"labels\":[\"a=b\"]}";

fn golden(bytes: &[u8]) -> (u16, Vec<u8>) {
    let (schema, body) = envelope::open(bytes).unwrap();
    (schema, body.to_vec())
}

/// Puts an envelope into a closed store as an older or newer release would have.
fn plant<T: Record>(dir: &Path, key: &str, value: T) {
    let (store, _) = open(dir);
    store.table::<T>().unwrap().put(key, value).wait().unwrap();
    store.rebuild_finished().unwrap();
}

#[derive(Clone, Serialize, Deserialize)]
struct ThingV1 {
    name: String,
}
impl Record for ThingV1 {
    const TABLE: &'static str = "things";
    const SCHEMA: u16 = 1;
}

fn thing(title: &str, labels: &[(&str, &str)]) -> Thing {
    let labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Thing {
        title: title.to_owned(),
        labels,
    }
}

#[test]
fn golden_records_of_every_schema_are_understood() {
    for (bytes, expected) in [
        (V1, thing("first", &[])),
        (V2, thing("second", &[("a", "b")])),
    ] {
        let (schema, body) = golden(bytes);
        assert_eq!(
            envelope::seal(schema, &body),
            bytes,
            "the envelope has not changed"
        );
        let found: Thing = crate::store::table::decode("k", schema, &body).unwrap();
        assert_eq!(found, expected);
    }
}

#[test]
fn an_old_record_is_migrated_once_and_stays_so() {
    let place = place();
    plant(
        &place.store,
        "a",
        ThingV1 {
            name: "first".to_owned(),
        },
    );
    for _ in 0..2 {
        let (store, report) = open(&place.store);
        assert!(!report.must_rebuild());
        assert_eq!(
            *store.table::<Thing>().unwrap().get("a").unwrap(),
            thing("first", &[])
        );
    }
    // It was written back in the new shape: the old release now sees a newer schema.
    let (store, _) = open(&place.store);
    let refused = store.table::<ThingV1>();
    assert!(matches!(
        refused,
        Err(StoreError::Newer {
            found: 3,
            known: 1,
            ..
        })
    ));
}

#[test]
fn a_newer_schema_is_refused_politely_and_left_alone() {
    let place = place();
    plant(&place.store, "a", thing("new", &[]));
    let (store, report) = open(&place.store);
    assert!(!report.must_rebuild(), "a downgrade is no damage");
    let error = store.table::<ThingV1>().err().unwrap();
    assert!(error.to_string().contains("schema 3"), "{error}");
    drop(store);
    let (store, _) = open(&place.store);
    assert_eq!(
        *store.table::<Thing>().unwrap().get("a").unwrap(),
        thing("new", &[])
    );
}

#[test]
fn a_record_that_cannot_be_migrated_is_a_typed_error() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Nameless {}
    impl Record for Nameless {
        const TABLE: &'static str = "things";
        const SCHEMA: u16 = 2;
    }
    let place = place();
    plant(&place.store, "a", Nameless {});
    let (store, _) = open(&place.store);
    let error = store.table::<Thing>().err().unwrap();
    assert!(
        matches!(&error, StoreError::Migrate { key, .. } if key == "a"),
        "{error}"
    );
}

#[test]
fn record_files_migrate_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    record_file::write(
        &path,
        &ThingV1 {
            name: "first".to_owned(),
        },
    )
    .unwrap();
    assert_eq!(
        record_file::read::<Thing>(&path).unwrap(),
        thing("first", &[])
    );
    record_file::write(&path, &thing("new", &[])).unwrap();
    let error = record_file::read::<ThingV1>(&path).err().unwrap();
    assert!(matches!(error, RecordFileError::Body { .. }));
}
