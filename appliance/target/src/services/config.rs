//! The whole state at once.

use api::v1::config_service_server::ConfigService;
use api::v1::{ApplyRequest, ApplyResponse, GetDocumentRequest, GetDocumentResponse};
use tonic::{Request, Response};

use super::{Answer, Services, required};
use crate::error::ControlError;
use crate::model::Transaction;

#[tonic::async_trait]
impl ConfigService for Services {
    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let request = request.into_inner();
        let document = required(request.document, "document")?;
        let edit = |edit: &mut Transaction<'_>| {
            let actual = edit.model().revision();
            if let Some(expected) = request.expected_revision.filter(|e| *e != actual) {
                let name = String::new();
                return Err(ControlError::Generation {
                    kind: "state",
                    name,
                    expected,
                    actual,
                });
            }
            edit.apply(&document, request.keep_others)?;
            Ok(edit.changes())
        };
        let changes = if request.dry_run {
            self.control.trial(edit)?
        } else {
            self.control.change_with_bdevs(edit).await?
        };
        let revision = self.control.read(|view| view.model.revision());
        Ok(Response::new(ApplyResponse { changes, revision }))
    }

    async fn get_document(&self, _: Request<GetDocumentRequest>) -> Answer<GetDocumentResponse> {
        let (document, revision) = self
            .control
            .read(|view| (view.model.document(), view.model.revision()));
        Ok(Response::new(GetDocumentResponse {
            document: Some(document),
            revision,
        }))
    }
}
