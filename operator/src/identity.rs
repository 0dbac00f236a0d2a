//! The operator's identity at the nodes: a key of its own, minted once and kept in a Secret of the operator's namespace,
//! so that every replica of the operator is the same peer. Knows the file only as bytes: its form is the SDK's.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::names::{FIELD_MANAGER, MANAGED_BY};

/// The Secret's name.
pub const SECRET: &str = "debros-operator-identity";
/// The file's name in an identity's folder, and the Secret's key.
const FILE: &str = "identity.key";

/// A key, in the form of its file.
#[derive(Clone)]
pub struct Identity(Vec<u8>);

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The Secret cannot be read or written.
    #[error("the Secret {SECRET} cannot be used: {0}")]
    Secret(#[source] kube::Error),
    /// The Secret is there and holds no key.
    #[error("the Secret {SECRET} has no key `{FILE}`: delete it, and a new identity is made")]
    Empty,
    /// A key could not be made.
    #[error("no identity could be made: {0}")]
    Mint(#[source] io::Error),
}

impl Identity {
    /// The identity in the Secret; a new one where there is none yet.
    ///
    /// # Errors
    /// [`IdentityError`]; of two operators that begin at once, one mints and the other takes that.
    pub async fn load_or_create(secrets: &Api<Secret>) -> Result<Self, IdentityError> {
        if let Some(secret) = secrets.get_opt(SECRET).await.map_err(IdentityError::Secret)? {
            return Self::of(secret);
        }
        let minted = Self::mint().map_err(IdentityError::Mint)?;
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                labels: Some([(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some([(FILE.to_owned(), ByteString(minted.0.clone()))].into()),
            ..Secret::default()
        };
        match secrets
            .create(
                &PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() },
                &secret,
            )
            .await
        {
            Ok(_) => Ok(minted),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Self::of(secrets.get(SECRET).await.map_err(IdentityError::Secret)?)
            }
            Err(error) => Err(IdentityError::Secret(error)),
        }
    }

    /// A new one.
    ///
    /// # Errors
    /// When there is no folder for temporary files.
    pub fn mint() -> io::Result<Self> {
        Ok(Self(debros_sdk::mint_identity()))
    }

    fn of(secret: Secret) -> Result<Self, IdentityError> {
        let key = secret.data.and_then(|mut data| data.remove(FILE)).ok_or(IdentityError::Empty)?;
        Ok(Self(key.0))
    }

    /// Writes the file into a folder that is made for it.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_to(&self, folder: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(FILE);
        if fs::read(&path).is_ok_and(|there| there == self.0) {
            return Ok(());
        }
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        io::Write::write_all(&mut file, &self.0)
    }
}
