//! Each schema against records that the formatter made, by that language's own library.

use std::sync::Arc;

use apache_avro::types::Value as Avro;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;

use super::*;
use crate::event::{Event, EventId, Payload, Stamp};
use crate::sink::record::templates::Template;
use crate::sink::record::tests::{format, json, name, time};
use crate::sink::record::{Format, Formatter, Options};
use crate::sink::registry::Schemas;

/// The envelope of an event, its payload, and its record in Avro.
fn envelope() -> impl Strategy<Value = (Value, Result<String, Vec<u8>>, Vec<u8>)> {
    let payload = prop_oneof![
        json().prop_map(|json| Ok(json.to_string())),
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Err)
    ];
    let id = prop_oneof![name().prop_map(Ok), any::<[u8; 16]>().prop_map(Err)];
    (id, name(), name(), name(), time(), payload).prop_map(
        |(id, kind, source_type, source_id, timestamp, payload)| {
            let event = Event {
                way: crate::event::Way::USUAL,
                id: id.as_ref().map_or_else(|id| EventId::Generated(*id), |id| EventId::Given(id)),
                kind: &kind,
                source_type: &source_type,
                source_id: &source_id,
                timestamp,
                received: Stamp { wall_us: 1_772_366_400_000_001, boot_us: 7, clock_trusted: true },
                payload: payload
                    .as_ref()
                    .map_or_else(|bytes| Payload::Bytes(bytes), |json| Payload::Json(json)),
            };
            let (known, schemas) = Schemas::scripted();
            known.send_modify(|ids| {
                Arc::make_mut(ids).insert("t".to_owned(), 0x1234_5678);
            });
            let formatter = |format| {
                let options = Options { format, ..Options::new(Template::literal("t")) };
                Formatter::new(options, &[], Arc::default())
            };
            let envelope = format(&mut formatter(Format::Envelope), &event).payload;
            let avro = format(&mut formatter(Format::Avro).with_schemas(Some(schemas)), &event).payload;
            (serde_json::from_slice(&envelope).unwrap(), payload, avro)
        },
    )
}

fn json_schema() -> jsonschema::Validator {
    let schema = serde_json::from_str(JSON_SCHEMA).unwrap();
    assert!(jsonschema::meta::is_valid(&schema));
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

fn avro_schema() -> apache_avro::Schema {
    apache_avro::Schema::parse_str(AVRO).unwrap()
}

fn message() -> MessageDescriptor {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("envelope.proto"), PROTOBUF).unwrap();
    let files = protox::compile(["envelope.proto"], [folder.path()]).unwrap();
    let pool = DescriptorPool::from_file_descriptor_set(files).unwrap();
    pool.get_message_by_name("fieldpost.Envelope").unwrap()
}

/// The mapping of docs/formats.md.
fn to_avro(envelope: &Value, payload: &Result<String, Vec<u8>>) -> Avro {
    let text = |name: &str| Avro::String(envelope[name].as_str().unwrap().to_owned());
    let some = |value| Avro::Union(1, Box::new(value));
    let none = || Avro::Union(0, Box::new(Avro::Null));
    let (json, bytes) = match payload {
        Ok(json) => (some(Avro::String(json.clone())), none()),
        Err(bytes) => (none(), some(Avro::Bytes(bytes.clone()))),
    };
    let version = Avro::Int(envelope["version"].as_i64().unwrap().try_into().unwrap());
    let mut fields = vec![("version".to_owned(), version)];
    for name in ["id", "type", "source_type", "source_id", "timestamp"] {
        fields.push((name.to_owned(), text(name)));
    }
    fields.extend([("payload_json".to_owned(), json), ("payload_bytes".to_owned(), bytes)]);
    Avro::Record(fields)
}

/// All numbers as doubles: protobuf's JSON has no others.
fn with_doubles(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(items) => items.into_iter().map(with_doubles).collect(),
        Value::Object(entries) => {
            entries.into_iter().map(|(name, value)| (name, with_doubles(value))).collect()
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn every_envelope_keeps_to_the_json_schema((envelope, _, _) in envelope()) {
        let schema = json_schema();
        prop_assert!(schema.is_valid(&envelope), "{:?}", schema.iter_errors(&envelope).next());
    }

    #[test]
    fn every_envelope_is_an_avro_record((envelope, payload, avro) in envelope()) {
        let schema = avro_schema();
        let value = to_avro(&envelope, &payload);
        prop_assert!(value.validate(&schema));
        let expected = apache_avro::to_avro_datum(&schema, value.clone()).unwrap();
        prop_assert_eq!(&avro[..5], &[0, 0x12, 0x34, 0x56, 0x78]);
        prop_assert_eq!(&avro[5..], &expected);
        let found = apache_avro::from_avro_datum(&schema, &mut &avro[5..], None).unwrap();
        prop_assert_eq!(found, value);
    }

    #[test]
    fn every_envelope_is_the_json_of_the_protobuf_message((envelope, payload, _) in envelope()) {
        let message = message();
        let mut text = envelope.to_string();
        let read = DynamicMessage::deserialize(message.clone(), &mut serde_json::Deserializer::from_str(&text)).unwrap();
        let decoded = DynamicMessage::decode(message, read.encode_to_vec().as_slice()).unwrap();
        if let Err(bytes) = payload {
            let found = decoded.get_field_by_name("payload_base64").unwrap();
            prop_assert_eq!(found.as_bytes().unwrap(), &bytes);
            prop_assert_eq!(&STANDARD.encode(&bytes), envelope["payload_base64"].as_str().unwrap());
        }
        text = serde_json::to_string(&decoded).unwrap();
        prop_assert_eq!(
            with_doubles(serde_json::from_str(&text).unwrap()),
            with_doubles(envelope)
        );
    }
}

#[test]
fn what_is_no_envelope_is_refused() {
    let schema = json_schema();
    let good = serde_json::json!({
        "version": 1, "id": "1", "type": "t", "source_type": "s", "source_id": "i",
        "timestamp": "2026-03-01T12:00:00Z", "payload": null
    });
    assert!(schema.is_valid(&good));
    for (name, value) in [
        ("version", 2.into()),
        ("id", "".into()),
        ("type", 1.into()),
        ("timestamp", "yesterday".into()),
        ("payload_base64", "AA==".into()),
        ("more", true.into()),
    ] {
        let mut bad = good.clone();
        bad[name] = value;
        assert!(!schema.is_valid(&bad), "{name}");
    }
    for name in ["version", "id", "type", "source_type", "source_id", "timestamp", "payload"] {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(name);
        assert!(!schema.is_valid(&bad), "without {name}");
    }
}

#[test]
fn the_three_have_the_same_fields_and_the_current_version() {
    let json: Value = serde_json::from_str(JSON_SCHEMA).unwrap();
    assert_eq!(json["properties"]["version"]["const"], crate::sink::record::envelope::ENVELOPE_VERSION);
    let names =
        ["version", "id", "type", "source_type", "source_id", "timestamp", "payload", "payload_base64"];
    assert!(json["properties"].as_object().unwrap().keys().all(|name| names.contains(&name.as_str())));
    assert_eq!(message().fields().map(|field| field.json_name().to_owned()).collect::<Vec<_>>(), names);
    let apache_avro::Schema::Record(record) = avro_schema() else { panic!() };
    let avro: Vec<_> = record.fields.iter().map(|field| field.name.as_str()).collect();
    assert_eq!(avro[..6], names[..6]);
    assert_eq!(avro[6..], ["payload_json", "payload_bytes"]);
}
