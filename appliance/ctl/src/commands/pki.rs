//! `aditctl pki`: an authority in a folder. Its key never leaves this machine.

use std::path::Path;
use std::time::SystemTime;

use pki::{Authority, Issued, Role, Validity};

use crate::contexts::write_private;
use crate::failure::Failure;
use crate::grammar::PkiVerb;
use crate::output;

/// How long the first administrator's certificate holds, in days.
const ADMIN_DAYS: u32 = 365;

pub(crate) fn run(verb: &PkiVerb) -> Result<(), Failure> {
    match verb {
        PkiVerb::Init {
            directory,
            name,
            days,
        } => init(directory, name, *days),
        PkiVerb::Issue {
            directory,
            name,
            role,
            days,
        } => {
            let role = Role::ALL.into_iter().find(|known| known.name() == role);
            let role = role.ok_or_else(|| {
                Failure::Usage("--role must be reader, operator or admin".to_owned())
            })?;
            let authority = authority(directory)?;
            let validity = Validity::days(SystemTime::now(), *days);
            let issued = authority
                .issue_client(name, role, validity)
                .map_err(usage)?;
            keep(directory, name, &issued)
        }
    }
}

fn init(directory: &Path, name: &str, days: u32) -> Result<(), Failure> {
    if directory.join("ca.key").exists() {
        return Err(Failure::Usage(format!(
            "{} holds an authority already; take another directory",
            directory.display()
        )));
    }
    let now = SystemTime::now();
    let (authority, issued) = Authority::make(name, Validity::days(now, days)).map_err(usage)?;
    keep(directory, "ca", &issued)?;
    let admin = authority.issue_client("admin", Role::Admin, Validity::days(now, ADMIN_DAYS));
    keep(directory, "admin", &admin.map_err(usage)?)
}

/// The authority in a folder.
pub(crate) fn authority(directory: &Path) -> Result<Authority, Failure> {
    let certificate = read(&directory.join("ca.pem"))?;
    Authority::read(&certificate, &read(&directory.join("ca.key"))?).map_err(usage)
}

pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|source| Failure::File {
        path: path.display().to_string(),
        source,
    })
}

fn keep(directory: &Path, name: &str, issued: &Issued) -> Result<(), Failure> {
    if name.contains('/') || name.starts_with('.') {
        return Err(Failure::Usage(format!(
            "{name:?} cannot be the name of a file"
        )));
    }
    let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
    write_private(&directory.join(&key), &issued.key_pem)?;
    write_private(&directory.join(&certificate), &issued.certificate_pem)?;
    output::text(&format!(
        "{certificate} and {key} are in {}\n",
        directory.display()
    ))
}

pub(crate) fn usage(error: pki::PkiError) -> Failure {
    Failure::Usage(error.to_string())
}
