//! Certificates of Adit: who signs, who a node is, who a client is and what it may do.
//!
//! What it is: an [`Authority`] makes and signs certificates; [`self_signed`] and
//! [`signing_request`] are for a node's own key; [`Client`] reads a client's certificate, of which the
//! Organization says the [`Role`] (`O=adit:admin`); [`fingerprint`] names a certificate for people.
//!
//! What it is not: it verifies no chain (TLS does, before [`Client`] is asked) and keeps no files.
//!
//! Keys are ECDSA P-256, as PKCS#8 in PEM. Threading: none; the caller passes the time in. Errors:
//! [`PkiError`].

mod authority;
mod error;
mod reading;
mod role;

pub use crate::authority::{
    Authority, Issued, Validity, generate_key, self_signed, signing_request,
};
pub use crate::error::PkiError;
pub use crate::reading::{Client, certificate_der, fingerprint, is_key_of, sha256_hex};
pub use crate::role::{PREFIX, Role};
