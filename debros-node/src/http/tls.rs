//! The certificate and key of a listener, read once when it starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Where a listener's certificate chain and private key are, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// `security.certificate_file`: the certificate first, then those that signed it.
    pub certificate: PathBuf,
    /// `security.private_key_file`: PKCS#8, PKCS#1 or SEC1.
    pub private_key: PathBuf,
}

/// Why a listener cannot speak TLS. Nothing is listened on then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The certificate file cannot be read, or is not PEM.
    #[error("{} cannot be read as a PEM certificate chain: check security.certificate_file and the file's permissions", file.display())]
    CertificateUnreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The certificate file holds no certificate.
    #[error("{} holds no certificate: security.certificate_file must name a PEM file with at least one", file.display())]
    NoCertificate {
        /// The file.
        file: PathBuf,
    },
    /// The key file cannot be read, or holds no private key.
    #[error("{} cannot be read as a PEM private key: check security.private_key_file and the file's permissions", file.display())]
    KeyUnreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The key is of another certificate.
    #[error(
        "the private key of {} does not belong to the certificate of {}: set security.private_key_file to the key that the certificate was made for",
        private_key.display(), certificate.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
    },
    /// TLS cannot use them.
    #[error("the certificate of {} cannot be used with its key", certificate.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl TlsFiles {
    /// Reads both files, and checks that they belong together.
    pub(super) fn load(&self) -> Result<TlsAcceptor, TlsError> {
        let Self { certificate, private_key } = self;
        let chain = read_chain(certificate)?;
        let key = PrivateKeyDer::from_pem_file(private_key)
            .map_err(|source| TlsError::KeyUnreadable { file: private_key.clone(), source })?;
        let unusable = |source| match source {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::KeyMismatch { certificate: certificate.clone(), private_key: private_key.clone() }
            }
            source => TlsError::Unusable { certificate: certificate.clone(), source },
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::CertificateUnreadable { file: file.into(), source };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(unreadable)?.collect();
    let chain = chain.map_err(unreadable)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { file: file.into() });
    }
    Ok(chain)
}
