//! The network of a client that was given none: a libp2p host that dials and never listens. The one
//! place in the SDK that knows how a network is made; all else sees the seam.

use std::path::PathBuf;
use std::sync::Arc;

use debros_net::{ClusterSecret, Host, HostConfig, Keypair, Network, identity};

use crate::error::{Error, ErrorKind};

/// What the builder knows of secret and identity.
#[derive(Default)]
pub(crate) struct HostSettings {
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) secret: Option<Vec<u8>>,
    pub(crate) identity_folder: Option<PathBuf>,
}

/// A new identity, as the bytes of the file `identity.key` of an identity's folder: for whoever keeps the identity of
/// a client elsewhere, and puts the file there, mode 0600, before [`ClientBuilder::identity_folder`] names the folder.
///
/// [`ClientBuilder::identity_folder`]: crate::ClientBuilder::identity_folder
pub fn mint_identity() -> Vec<u8> {
    identity::mint()
}

/// Starts the host.
pub(crate) async fn start(settings: &HostSettings) -> Result<Arc<dyn Network>, Error> {
    let keypair = match &settings.identity_folder {
        Some(folder) => identity::load_or_create(folder).map_err(unusable)?,
        None => Keypair::generate_ed25519(),
    };
    let secret = match (&settings.secret, &settings.secret_file) {
        (Some(bytes), _) => Some(ClusterSecret::from_bytes(bytes).map_err(unusable)?),
        (None, Some(path)) => Some(ClusterSecret::from_file(path).map_err(unusable)?),
        (None, None) => None,
    };
    let config = HostConfig { secret, ..HostConfig::client(keypair) };
    // A client serves no lane, so nothing ever comes in.
    let (host, _incoming) = Host::start(config).await.map_err(|error| {
        Error::new(ErrorKind::Internal, format!("cannot start the network: {error}")).with_source(error)
    })?;
    Ok(host)
}

/// A secret or an identity that cannot be used: its own message says what to do.
fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let cause = std::error::Error::source(&error).map(|source| format!(" ({source})")).unwrap_or_default();
    Error::invalid(format!("{error}{cause}")).with_source(error)
}
