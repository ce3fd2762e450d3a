//! `aditctl apply`, `export` and `watch`.

use api::v1::config_service_client::ConfigServiceClient;
use api::v1::watch_service_client::WatchServiceClient;
use api::v1::{ApplyRequest, ApplyResponse, Event, EventType, GetDocumentRequest, WatchRequest};

use super::{Context, short};
use crate::failure::Failure;
use crate::grammar::Format;
use crate::output;

pub(crate) async fn apply(context: &Context, request: ApplyRequest) -> Result<(), Failure> {
    let dry_run = request.dry_run;
    let mut client = ConfigServiceClient::new(context.channel.clone());
    let answer = client.apply(request).await?.into_inner();
    output::object(context.format, &answer, |answer| changes(answer, dry_run))
}

/// The document is JSON in any case: `apply` takes it.
pub(crate) async fn export(context: &Context) -> Result<(), Failure> {
    let mut client = ConfigServiceClient::new(context.channel.clone());
    let answer = client
        .get_document(GetDocumentRequest {})
        .await?
        .into_inner();
    let mut document = api::json::to_json(&answer.document.unwrap_or_default());
    strip_empty(&mut document);
    output::text(&format!("{document:#}\n"))
}

pub(crate) async fn watch(
    context: &Context,
    kinds: Vec<String>,
    after_revision: Option<u64>,
) -> Result<(), Failure> {
    let mut client = WatchServiceClient::new(context.channel.clone());
    let request = WatchRequest {
        kinds,
        after_revision,
    };
    let mut events = client.watch(request).await?.into_inner();
    loop {
        let event = tokio::select! {
            event = events.message() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(event) = event else { return Ok(()) };
        match context.format {
            Format::Json => output::json_line(&event)?,
            Format::Table => output::text(&line(&event))?,
        }
    }
}

fn changes(answer: &ApplyResponse, dry_run: bool) -> String {
    let mut text = String::new();
    for change in &answer.changes {
        let action = short(change.action().as_str_name(), "CHANGE_ACTION_");
        text.push_str(&format!("{action} {} {}\n", change.kind, change.name));
        for difference in &change.differences {
            text.push_str(&format!("  {difference}\n"));
        }
    }
    let count = answer.changes.len();
    text.push_str(&match (count, dry_run) {
        (0, _) => format!("nothing to change at revision {}\n", answer.revision),
        (_, true) => format!(
            "{count} changes would be made at revision {}\n",
            answer.revision
        ),
        (_, false) => format!("{count} changes made; revision {}\n", answer.revision),
    });
    text
}

fn line(event: &Event) -> String {
    let what = match event.r#type() {
        EventType::Synced => return format!("{}  watching\n", event.revision),
        other => short(other.as_str_name(), "EVENT_TYPE_"),
    };
    let text = if event.text.is_empty() {
        String::new()
    } else {
        format!(": {}", event.text)
    };
    format!(
        "{}  {what} {} {}{text}\n",
        event.revision, event.kind, event.name
    )
}

/// Leaves out members that say nothing, so that a person can read the document.
fn strip_empty(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(strip_empty);
            members.retain(|_, member| match member {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::String(text) => !text.is_empty() && !text.ends_with("_UNSPECIFIED"),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(strip_empty),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use api::v1::{BdevSpec, Change, ChangeAction, Document, MallocBdev, bdev_spec};

    use super::*;

    #[test]
    fn an_exported_document_can_be_applied() {
        let document = Document {
            bdevs: vec![BdevSpec {
                name: "m".into(),
                kind: Some(bdev_spec::Kind::Malloc(MallocBdev {
                    size_bytes: 4096,
                    block_size: Some(512),
                })),
                ..BdevSpec::default()
            }],
            ..Document::default()
        };
        let mut value = api::json::to_json(&document);
        strip_empty(&mut value);
        assert!(value.get("subsystems").is_none());
        assert_eq!(api::json::from_json::<Document>(value).unwrap(), document);
    }

    #[test]
    fn changes_are_told_in_lines() {
        let answer = ApplyResponse {
            changes: vec![Change {
                action: ChangeAction::Update.into(),
                kind: "bdev".into(),
                name: "m".into(),
                differences: vec!["qos: unset, wanted 5".into()],
            }],
            revision: 7,
        };
        assert_eq!(
            changes(&answer, false),
            "update bdev m\n  qos: unset, wanted 5\n1 changes made; revision 7\n"
        );
    }
}
