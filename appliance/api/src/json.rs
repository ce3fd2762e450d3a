//! Messages as JSON, and documents as people write them.
//!
//! Output is protobuf's JSON form with the field names of the .proto files, 64-bit integers as
//! numbers and unset fields with no presence shown as zero, so that a program finds every field.
//!
//! Input takes the same and, for people: enumeration values in short lower case (`"optimized"` for
//! `"ANA_STATE_OPTIMIZED"`), sizes and times with a unit in the fields whose name ends in a unit
//! (`size_bytes = "1GiB"`, `min_kato_ms = "10s"`), and addresses as URIs.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor,
    SerializeOptions,
};
use serde_json::Value;

use crate::{quantity, v1};

/// Why a text is no such message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// A field does not exist or its value has the wrong type.
    #[error("{0}")]
    Field(String),
    /// A quantity, an address or an enumeration value could not be read.
    #[error("{path}: {problem}")]
    Value {
        /// Where in the document.
        path: String,
        /// What was wrong and what would be right.
        problem: String,
    },
}

pub(crate) static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(crate::FILE_DESCRIPTOR_SET)
        .expect("the set was compiled together with this crate")
});

/// The descriptor of a message of this API.
pub(crate) fn descriptor<M: Name>() -> MessageDescriptor {
    POOL.get_message_by_name(&M::full_name())
        .expect("every message of this crate is in the pool")
}

/// The message as a JSON value.
#[must_use]
pub fn to_json<M: Message + Name>(message: &M) -> Value {
    let dynamic = DynamicMessage::decode(descriptor::<M>(), message.encode_to_vec().as_slice())
        .expect("a message decodes under its own descriptor");
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("protobuf's JSON form of these messages always exists")
}

/// Reads a message from a JSON value, in the form for people too.
///
/// # Errors
/// When a field is unknown or a value is wrong; the error says which.
pub fn from_json<M: Message + Name + Default>(mut value: Value) -> Result<M, JsonError> {
    let descriptor = descriptor::<M>();
    normalise(&descriptor, &mut value, "")?;
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor, value, &options)
        .map_err(|error| JsonError::Field(error.to_string()))?;
    M::decode(dynamic.encode_to_vec().as_slice())
        .map_err(|error| JsonError::Field(error.to_string()))
}

/// Rewrites the forms for people into protobuf's JSON form, in place.
fn normalise(message: &MessageDescriptor, value: &mut Value, path: &str) -> Result<(), JsonError> {
    if message.full_name() == v1::Address::full_name()
        && let Value::String(uri) = value
    {
        let address = v1::Address::from_uri(uri).map_err(|error| JsonError::Value {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        *value = to_json(&address);
        return Ok(());
    }
    let Value::Object(members) = value else {
        return Ok(());
    };
    for (name, member) in members {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let field = message
            .get_field_by_name(name)
            .or_else(|| message.get_field_by_json_name(name));
        let Some(field) = field else {
            let known: Vec<_> = message
                .fields()
                .map(|field| field.name().to_owned())
                .collect();
            return Err(JsonError::Value {
                path,
                problem: format!("there is no such field; there are {}", known.join(", ")),
            });
        };
        match member {
            Value::Array(items) if field.is_list() => {
                for (index, item) in items.iter_mut().enumerate() {
                    normalise_one(&field, item, &format!("{path}[{index}]"))?;
                }
            }
            other => normalise_one(&field, other, &path)?,
        }
    }
    Ok(())
}

fn normalise_one(field: &FieldDescriptor, value: &mut Value, path: &str) -> Result<(), JsonError> {
    let wrong = |problem: String| JsonError::Value {
        path: path.to_owned(),
        problem,
    };
    match (field.kind(), &*value) {
        (Kind::Message(message), _) => return normalise(&message, value, path),
        (Kind::Enum(kind), Value::String(text)) => {
            let names: Vec<_> = kind.values().map(|value| value.name().to_owned()).collect();
            let prefix = common_prefix(&names);
            let long = format!("{prefix}{}", text.to_ascii_uppercase().replace('-', "_"));
            if !names.contains(text) {
                if !names.contains(&long) {
                    let short: Vec<_> = names
                        .iter()
                        .map(|name| name[prefix.len()..].to_ascii_lowercase())
                        .filter(|name| name != "unspecified")
                        .collect();
                    return Err(wrong(format!(
                        "{text:?} is not one of {}",
                        short.join(", ")
                    )));
                }
                *value = Value::String(long);
            }
        }
        (Kind::Uint32 | Kind::Uint64, Value::String(text)) => {
            let number = unit_of(field.name(), text).map_err(|error| wrong(error.to_string()))?;
            *value = Value::from(number);
        }
        _ => {}
    }
    Ok(())
}

/// Reads a quantity in the unit that the field's name ends in.
fn unit_of(field: &str, text: &str) -> Result<u64, quantity::QuantityError> {
    let per_unit_ns = match field.rsplit('_').next() {
        Some("ns") => 1,
        Some("us") => 1_000,
        Some("ms" | "kato") => 1_000_000,
        Some("s" | "sec") => 1_000_000_000,
        _ => return quantity::parse_bytes(text),
    };
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text
            .parse()
            .map_err(|_| quantity::QuantityError::OutOfRange(text.to_owned()));
    }
    let ns = quantity::parse_duration_ns(text)?;
    if !ns.is_multiple_of(per_unit_ns) {
        return Err(quantity::QuantityError::OutOfRange(text.to_owned()));
    }
    Ok(ns / per_unit_ns)
}

/// `ANA_STATE_` of `ANA_STATE_UNSPECIFIED`, `ANA_STATE_OPTIMIZED`...
fn common_prefix(names: &[String]) -> String {
    let zero = names.first().map_or("", String::as_str);
    zero.strip_suffix("UNSPECIFIED")
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn output_has_names_of_the_proto_files_and_plain_numbers() {
        let bdev = v1::Bdev {
            generation: u64::MAX,
            num_blocks: 8,
            ..Default::default()
        };
        let value = to_json(&bdev);
        assert_eq!(value["generation"], json!(u64::MAX));
        assert_eq!(value["num_blocks"], json!(8));
        assert_eq!(value["claimed"], json!(false));
    }

    #[test]
    fn documents_take_units_uris_and_short_names() {
        let document: v1::Document = from_json(json!({
            "transports": [{ "trtype": "tcp", "min_kato": "10s", "max_io_size": "128KiB" }],
            "bdevs": [
                { "name": "d0", "malloc": { "size_bytes": "1GiB" } },
                { "name": "slow", "delay": { "base_bdev": "d0", "avg_read_latency_us": "5ms" } },
            ],
            "subsystems": [{
                "subsystem": { "nqn": "nqn.2026-11.io.adit:a" },
                "listeners": [{ "address": "tcp://127.0.0.1:4420", "ana_state": "non-optimized" }],
            }],
        }))
        .unwrap();
        assert_eq!(document.transports[0].min_kato, Some(10_000));
        assert_eq!(document.transports[0].max_io_size, Some(131_072));
        let Some(v1::bdev_spec::Kind::Malloc(malloc)) = &document.bdevs[0].kind else {
            panic!()
        };
        assert_eq!(malloc.size_bytes, 1 << 30);
        let Some(v1::bdev_spec::Kind::Delay(delay)) = &document.bdevs[1].kind else {
            panic!()
        };
        assert_eq!(delay.avg_read_latency_us, 5000);
        let listener = &document.subsystems[0].listeners[0];
        assert_eq!(listener.address.as_ref().unwrap().trsvcid, "4420");
        assert_eq!(listener.ana_state(), v1::AnaState::NonOptimized);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_path() {
        for (value, path) in [
            (json!({ "subsystem": [] }), "subsystem"),
            (
                json!({ "bdevs": [{ "name": "a", "malloc": { "size": 1 } }] }),
                "bdevs[0].malloc.size",
            ),
            (
                json!({ "bdevs": [{ "malloc": { "size_bytes": "1 parsec" } }] }),
                "bdevs[0].malloc.size_bytes",
            ),
            (
                json!({ "subsystems": [{ "listeners": [{ "address": "udp" }] }] }),
                "subsystems[0].listeners[0].address",
            ),
            (
                json!({ "subsystems": [{ "listeners": [{ "ana_state": "fine" }] }] }),
                "subsystems[0].listeners[0].ana_state",
            ),
        ] {
            let error = from_json::<v1::Document>(value).unwrap_err().to_string();
            assert!(error.starts_with(path), "{error}");
        }
        assert!(from_json::<v1::Document>(json!({ "bdevs": 1 })).is_err());
    }

    #[test]
    fn a_document_round_trips() {
        let document: v1::Document = from_json(json!({
            "bdevs": [{ "name": "d0", "null": { "size_bytes": 4096 }, "qos": { "rw_ios_per_sec": 5 } }],
        }))
        .unwrap();
        assert_eq!(
            from_json::<v1::Document>(to_json(&document)).unwrap(),
            document
        );
    }
}
