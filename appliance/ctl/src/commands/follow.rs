//! Waits for long work, and shows on a terminal how far it is.

use std::time::{Duration, Instant};

use api::v1::operation_service_client::OperationServiceClient;
use api::v1::{Operation, OperationKind, OperationState, WaitOperationRequest};
use indicatif::{ProgressBar, ProgressStyle};

use super::Context;
use super::pool::{kind, show_operation, well};
use crate::failure::Failure;
use crate::grammar::Detach;
use crate::output;

/// Time between two looks while a bar is shown.
const LOOK_MS: u64 = 200;

impl Context {
    /// Waits until an operation has ended, with a bar if this is a terminal. With `--detach` it is printed and
    /// goes on alone; so it does when the command is interrupted, or `--wait` runs out.
    pub(crate) async fn follow(&self, begun: Operation, detach: &Detach) -> Result<(), Failure> {
        if detach.detach {
            return output::object(self.format, &begun, show_operation);
        }
        let name = begun.name.clone();
        let what = format!("{} {}", kind(&begun), begun.object);
        let ended = tokio::select! {
            ended = self.watch(begun) => ended?,
            interrupted = tokio::signal::ctrl_c() => {
                // Without the handler the signal ends the program by itself.
                drop(interrupted);
                return Err(goes_on(name, what));
            }
        };
        if ended.state() == OperationState::Running {
            return Err(goes_on(name, what));
        }
        output::object(self.format, &ended, show_operation)?;
        well(&ended)
    }

    async fn watch(&self, mut operation: Operation) -> Result<Operation, Failure> {
        let mut client = OperationServiceClient::new(self.channel.clone());
        let bar = bar(&operation);
        let start = Instant::now();
        let most = self.wait_ms.map(Duration::from_millis);
        while operation.state() == OperationState::Running {
            if most.is_some_and(|most| start.elapsed() >= most) {
                break;
            }
            bar.set_length(operation.total);
            bar.set_position(operation.done);
            let request = WaitOperationRequest {
                name: operation.name.clone(),
                timeout_ms: Some(LOOK_MS),
            };
            operation = client.wait_operation(request).await?.into_inner();
        }
        bar.finish_and_clear();
        Ok(operation)
    }
}

/// A bar on the standard error, if that is a terminal.
fn bar(operation: &Operation) -> ProgressBar {
    let counts_bytes = matches!(
        operation.kind(),
        OperationKind::Import | OperationKind::Export | OperationKind::Copy
    );
    let template = if counts_bytes {
        "{msg} [{bar:30}] {percent:>3} % {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
    } else {
        "{msg} [{bar:30}] {percent:>3} % {eta}"
    };
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(operation.total).with_style(style.progress_chars("=> "));
    bar.with_message(format!("{} {}", kind(operation), operation.object))
}

fn goes_on(name: String, what: String) -> Failure {
    let state = format!(
        "goes on; aditctl operation show {name} looks at it, aditctl operation cancel {name} ends it"
    );
    Failure::Operation { name, what, state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_command_says_how_to_go_on() {
        let failure = goes_on("p/7".into(), "import p/v".into());
        let text = failure.to_string();
        assert!(text.contains("operation show p/7"), "{text}");
        assert!(text.contains("operation cancel p/7"), "{text}");
    }

    #[test]
    fn a_bar_has_a_template_for_each_unit() {
        for kind in [OperationKind::Import, OperationKind::Scrub] {
            let operation = Operation {
                kind: kind.into(),
                object: "p/v".into(),
                total: 10,
                ..Operation::default()
            };
            assert_eq!(bar(&operation).length(), Some(10));
        }
    }
}
