//! What can go wrong.

/// Why a certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A key could not be made.
    #[error("a key cannot be made: {0}")]
    Generate(String),
    /// A text is no private key.
    #[error("this is no private key: {0}; give PKCS#8 in PEM")]
    Key(String),
    /// A text is no certificate.
    #[error("this is no certificate: {0}; give X.509 in PEM")]
    Certificate(String),
    /// A text is no signing request, or it is not signed by its own key.
    #[error("this is no signing request: {0}; give PKCS#10 in PEM")]
    Request(String),
    /// A name cannot stand in a certificate.
    #[error("{name:?} cannot be a name in a certificate: {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A certificate could not be signed.
    #[error("the certificate for {name:?} cannot be signed: {problem}")]
    Sign {
        /// For whom.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A certificate that is no authority was to sign.
    #[error("{0:?} is no certificate authority")]
    NoAuthority(String),
    /// A client's certificate names no role.
    #[error(
        "the certificate of {name:?} names no role; its Organization must be adit:reader, \
         adit:operator or adit:admin"
    )]
    NoRole {
        /// The common name in it.
        name: String,
    },
}
