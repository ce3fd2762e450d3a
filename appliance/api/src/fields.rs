//! Comparison and partial update of messages, field by field.

use prost::{Message, Name};
use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage as _, Value};

use crate::json::descriptor;

/// A field that differs between two messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path of the field, e.g. `tcp.tos`.
    pub field: String,
    /// Its value in the first message.
    pub first: String,
    /// Its value in the second.
    pub second: String,
}

/// Why an update could not be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpdateError {
    /// The mask names nothing.
    #[error("update_mask names no field; name those to change: {allowed}")]
    Empty {
        /// Fields that may change.
        allowed: String,
    },
    /// The mask names a field that is not there or must not change.
    #[error("{path:?} cannot be changed; these can: {allowed}")]
    NotAllowed {
        /// The path in the mask.
        path: String,
        /// Fields that may change.
        allowed: String,
    },
}

/// The fields in which two messages differ, in the order of their numbers.
#[must_use]
pub fn differences<M: Message + Name>(first: &M, second: &M) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&dynamic(first), &dynamic(second), "", &mut found);
    found
}

/// Copies the fields that `paths` names from `from` to `into`. A path must be one of `allowed` or lie
/// below one; a message on the way that is not there yet is made.
///
/// # Errors
/// When the mask is empty or names something else.
pub fn update<M: Message + Name + Default>(
    into: &M,
    from: &M,
    paths: &[String],
    allowed: &[&str],
) -> Result<M, UpdateError> {
    if paths.is_empty() {
        return Err(UpdateError::Empty {
            allowed: allowed.join(", "),
        });
    }
    let mut target = dynamic(into);
    let source = dynamic(from);
    for path in paths {
        let permitted = allowed.iter().any(|allowed| {
            path == allowed
                || path
                    .strip_prefix(allowed)
                    .is_some_and(|rest| rest.starts_with('.'))
        });
        if !permitted || !copy(&mut target, &source, path) {
            return Err(UpdateError::NotAllowed {
                path: path.clone(),
                allowed: allowed.join(", "),
            });
        }
    }
    Ok(M::decode(target.encode_to_vec().as_slice())
        .expect("a dynamic message decodes into the type it was made from"))
}

fn dynamic<M: Message + Name>(message: &M) -> DynamicMessage {
    DynamicMessage::decode(descriptor::<M>(), message.encode_to_vec().as_slice())
        .expect("a message decodes under its own descriptor")
}

fn copy(target: &mut DynamicMessage, source: &DynamicMessage, path: &str) -> bool {
    let (name, rest) = path
        .split_once('.')
        .map_or((path, None), |(name, rest)| (name, Some(rest)));
    let Some(field) = target.descriptor().get_field_by_name(name) else {
        return false;
    };
    let Some(rest) = rest else {
        if source.has_field(&field) {
            target.set_field(&field, source.get_field(&field).into_owned());
        } else {
            target.clear_field(&field);
        }
        return true;
    };
    let value = source.get_field(&field).into_owned();
    let (Some(inner), Value::Message(below)) = (value.as_message(), target.get_field_mut(&field))
    else {
        return false;
    };
    copy(below, inner, rest)
}

fn compare(first: &DynamicMessage, second: &DynamicMessage, at: &str, found: &mut Vec<Difference>) {
    for field in first.descriptor().fields() {
        let (a, b) = (show(first, &field), show(second, &field));
        if a == b {
            continue;
        }
        let path = if at.is_empty() {
            field.name().to_owned()
        } else {
            format!("{at}.{}", field.name())
        };
        if let (Some(Value::Message(x)), Some(Value::Message(y))) = (&a, &b) {
            compare(x, y, &path, found);
        } else {
            found.push(Difference {
                field: path,
                first: text(a.as_ref()),
                second: text(b.as_ref()),
            });
        }
    }
}

fn show(message: &DynamicMessage, field: &FieldDescriptor) -> Option<Value> {
    message
        .has_field(field)
        .then(|| message.get_field(field).into_owned())
}

fn text(value: Option<&Value>) -> String {
    match value {
        None => "unset".to_owned(),
        Some(Value::String(text)) => format!("{text:?}"),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    fn transport() -> v1::TransportSpec {
        v1::TransportSpec {
            trtype: "tcp".into(),
            max_queue_depth: Some(128),
            options: Some(v1::transport_spec::Options::Tcp(v1::TcpOptions {
                tos: Some(1),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    #[test]
    fn equal_messages_do_not_differ() {
        assert_eq!(differences(&transport(), &transport()), []);
    }

    #[test]
    fn differences_name_the_field_and_both_values() {
        let mut other = transport();
        other.max_queue_depth = None;
        let Some(v1::transport_spec::Options::Tcp(tcp)) = &mut other.options else {
            panic!()
        };
        tcp.tos = Some(2);
        let found = differences(&transport(), &other);
        let fields: Vec<_> = found
            .iter()
            .map(|d| (d.field.as_str(), d.first.as_str(), d.second.as_str()))
            .collect();
        assert_eq!(
            fields,
            [("max_queue_depth", "128", "unset"), ("tcp.tos", "1", "2")]
        );
    }

    #[test]
    fn only_fields_in_the_mask_change() {
        let mut new = transport();
        new.max_queue_depth = Some(64);
        let Some(v1::transport_spec::Options::Tcp(tcp)) = &mut new.options else {
            panic!()
        };
        tcp.tos = Some(7);
        tcp.sock_priority = Some(3);
        let changed = update(
            &transport(),
            &new,
            &["tcp.tos".to_owned()],
            &["max_queue_depth", "tcp"],
        )
        .unwrap();
        assert_eq!(changed.max_queue_depth, Some(128));
        let Some(v1::transport_spec::Options::Tcp(tcp)) = changed.options else {
            panic!()
        };
        assert_eq!((tcp.tos, tcp.sock_priority), (Some(7), None));
    }

    #[test]
    fn masks_outside_the_allowed_fields_are_refused() {
        let t = transport();
        for path in [
            "trtype",
            "max_queue_dept",
            "tcp.nothing",
            "tcp.tos.deeper",
            "tcpx",
            "",
        ] {
            let error =
                update(&t, &t, &[path.to_owned()], &["max_queue_depth", "tcp"]).unwrap_err();
            assert!(matches!(error, UpdateError::NotAllowed { .. }), "{path}");
        }
        assert!(matches!(
            update(&t, &t, &[], &["tcp"]),
            Err(UpdateError::Empty { .. })
        ));
    }
}
