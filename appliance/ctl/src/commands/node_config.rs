//! `aditctl node config`.

use std::path::Path;
use std::time::SystemTime;

use api::v1::node_config_service_client::NodeConfigServiceClient;
use api::v1::{
    ApplyNodeConfigRequest, ApplyNodeConfigResponse, GetNodeConfigRequest, GetSigningRequestRequest,
};
use pki::Validity;

use super::{Context, NodeChannel, pki as authority};
use crate::contexts::Contexts;
use crate::failure::Failure;
use crate::grammar::ConfigVerb;
use crate::output;

/// How long a node's certificate holds, in days.
const NODE_DAYS: u32 = 3650;

/// What takes the place of the code once the node is configured.
struct Credentials {
    cert: String,
    key: String,
}

pub(crate) async fn run(context: &Context, verb: ConfigVerb) -> Result<(), Failure> {
    let mut client =
        NodeConfigServiceClient::with_interceptor(context.channel.clone(), context.code.clone());
    match verb {
        ConfigVerb::Get { previous } => {
            let config = client
                .get_node_config(GetNodeConfigRequest { previous })
                .await?;
            output::object(context.format, &config.into_inner(), |config| {
                let sources = config.sources.iter().map(|source| format!("# {source}\n"));
                format!("{}{}", sources.collect::<String>(), config.toml)
            })
        }
        ConfigVerb::Apply {
            file,
            dry_run,
            sign_with,
            expected_digest,
        } => {
            let mut request = ApplyNodeConfigRequest {
                toml: authority::read(&file)?,
                dry_run,
                expected_digest,
                ..ApplyNodeConfigRequest::default()
            };
            let mut credentials = None;
            if let Some(directory) = &sign_with {
                request.certificate_pem =
                    Some(signed(&mut client, directory, &request.toml).await?);
                credentials = Some(Credentials {
                    cert: authority::read(&directory.join("admin.pem"))?,
                    key: authority::read(&directory.join("admin.key"))?,
                });
            } else if context.code.0.is_some() && !names_authority(&request.toml) {
                let key = pki::generate_key().map_err(authority::usage)?;
                let names = ["admin".to_owned()];
                let wanted = pki::signing_request(&key, &names).map_err(authority::usage)?;
                request.admin_request_pem = Some(wanted);
                credentials = Some(Credentials {
                    cert: String::new(),
                    key,
                });
            }
            let answer = client.apply_node_config(request).await?.into_inner();
            if !dry_run {
                remember(context, &answer, credentials)?;
            }
            output::object(context.format, &answer, |answer| {
                let mut text = format!("digest: {}\n", answer.digest);
                answer
                    .notes
                    .iter()
                    .for_each(|note| text.push_str(&format!("note: {note}\n")));
                text
            })
        }
    }
}

fn names_authority(toml: &str) -> bool {
    let document: Option<toml::Table> = toml.parse().ok();
    let api = document.and_then(|document| document.get("agent")?.get("api").cloned());
    api.is_some_and(|api| api.get("ca").is_some())
}

async fn signed(
    client: &mut NodeConfigServiceClient<NodeChannel>,
    directory: &Path,
    document: &str,
) -> Result<String, Failure> {
    let authority = authority::authority(directory)?;
    let toml = Some(document.to_owned());
    let request = client
        .get_signing_request(GetSigningRequestRequest { toml })
        .await?
        .into_inner();
    let validity = Validity::days(SystemTime::now(), NODE_DAYS);
    authority
        .sign_node(&request.pem, &request.names, validity)
        .map_err(authority::usage)
}

/// What the node shows from now on; where the code opened it, the context gets what does now.
fn remember(
    context: &Context,
    answer: &ApplyNodeConfigResponse,
    credentials: Option<Credentials>,
) -> Result<(), Failure> {
    let Some(name) = &context.context else {
        return Ok(());
    };
    let mut contexts = Contexts::read()?;
    let Some(entry) = contexts.contexts.get_mut(name) else {
        return Ok(());
    };
    let by_code = entry.code.take().is_some();
    entry.server_name = Some(answer.server_name.clone());
    // Pinned as before: a node that signs its own certificate is known by nothing else.
    if by_code || entry.fingerprint.is_some() {
        entry.fingerprint = Some(answer.fingerprint.replace(':', ""));
    }
    if !by_code {
        return contexts.write();
    }
    entry.ca = Some(answer.ca_pem.clone());
    match credentials {
        Some(credentials) => {
            let signed = &answer.admin_certificate_pem;
            let is_signed = !signed.is_empty();
            entry.cert = Some(if is_signed {
                signed.clone()
            } else {
                credentials.cert
            });
            entry.key = Some(credentials.key);
        }
        None => eprintln!(
            "note: the node is configured, and the code opens it no more; give the context your \
             certificate: aditctl context add {name} --endpoint {} --fingerprint {} --cert FILE \
             --key FILE",
            entry.endpoint, answer.fingerprint
        ),
    }
    contexts.write()
}
