//! `aditctl context`.

use crate::contexts::{Contexts, Entry};
use crate::failure::Failure;
use crate::grammar::{ContextVerb, Format, Global};
use crate::output;
use crate::pinned::canonical;
use crate::table::Table;

pub(crate) async fn run(global: &Global, verb: &ContextVerb) -> Result<(), Failure> {
    let mut contexts = Contexts::read()?;
    match verb {
        ContextVerb::Add {
            name,
            endpoint,
            code,
            fingerprint,
        } => {
            let entry = entry(global, endpoint, code, fingerprint)?;
            if contexts.contexts.is_empty() {
                contexts.current = Some(name.clone());
            }
            contexts.contexts.insert(name.clone(), entry);
            contexts.write()
        }
        ContextVerb::Use { name } if name == "-" => {
            contexts.current = None;
            contexts.write()
        }
        ContextVerb::Use { name } => {
            contexts.chosen(Some(name))?;
            contexts.current = Some(name.clone());
            contexts.write()
        }
        ContextVerb::Remove { name } => {
            contexts.chosen(Some(name))?;
            contexts.contexts.remove(name);
            contexts.current = contexts.current.filter(|current| current != name);
            contexts.write()
        }
        ContextVerb::List => list(global.output, &contexts),
    }
}

fn entry(
    global: &Global,
    endpoint: &str,
    code: &Option<String>,
    fingerprint: &Option<String>,
) -> Result<Entry, Failure> {
    let pem = |path: &Option<std::path::PathBuf>| {
        let path = path.as_ref();
        path.map(|path| crate::connection::Pem::File(path.clone()).read())
            .transpose()
    };
    let (ca, cert, key) = (pem(&global.ca)?, pem(&global.cert)?, pem(&global.key)?);
    if cert.is_some() != key.is_some() {
        return Err(Failure::Usage("--cert and --key go together".to_owned()));
    }
    if code.is_some() && cert.is_some() {
        let problem = "--code is for a node that knows no certificates yet";
        return Err(Failure::Usage(problem.to_owned()));
    }
    if ca.is_none() && fingerprint.is_none() {
        let problem =
            "say how the node is known: --ca FILE, or --fingerprint SHA256 from its console";
        return Err(Failure::Usage(problem.to_owned()));
    }
    Ok(Entry {
        endpoint: endpoint.to_owned(),
        ca,
        cert,
        key,
        server_name: global.server_name.clone(),
        fingerprint: fingerprint.as_deref().map(canonical).transpose()?,
        code: code.clone(),
    })
}

fn list(format: Format, contexts: &Contexts) -> Result<(), Failure> {
    let is_current = |name: &String| contexts.current.as_ref() == Some(name);
    let by = |entry: &Entry| match (&entry.code, &entry.cert) {
        (Some(_), _) => "code",
        (None, Some(_)) => "certificate",
        (None, None) => "nothing",
    };
    if format == Format::Json {
        let items: Vec<_> = contexts
            .contexts
            .iter()
            .map(|(name, entry)| {
                serde_json::json!({
                    "name": name, "endpoint": entry.endpoint, "by": by(entry),
                    "current": is_current(name),
                })
            })
            .collect();
        return output::json(&serde_json::json!({ "contexts": items }));
    }
    let mut table = Table::new(&["CURRENT", "NAME", "ENDPOINT", "BY"]);
    for (name, entry) in &contexts.contexts {
        let mark = if is_current(name) { "*" } else { "" };
        table.row([
            mark.into(),
            name.clone(),
            entry.endpoint.clone(),
            by(entry).into(),
        ]);
    }
    output::text(&table.to_string())
}
