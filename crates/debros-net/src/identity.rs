//! A node's identity on disk: one Ed25519 key in `<data_dir>/identity.key`.
//!
//! The file is a mark, the key in libp2p's protobuf encoding and a SHA-256 of both, mode 0600.
//!
//! Invariants: an identity that exists is used or the start fails; a new one is minted only where
//! there is no file at all, because a node with a new identity is another node to everybody else.
//! The file appears whole or not at all, and of two processes that mint at once one wins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use libp2p::identity::Keypair;
use sha2::{Digest, Sha256};

/// The file's name in the data folder.
pub const IDENTITY_FILE: &str = "identity.key";

const MARK: &[u8; 16] = b"debros identity\n";
const CHECKSUM_BYTES: usize = 32;
/// An Ed25519 key takes 68 bytes.
const FILE_BYTES_MAX: u64 = 1024;

/// Why there is no identity to start with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file or its folder cannot be used.
    #[error(
        "cannot {action} the identity file {path}: check that the data folder exists and that this user may write it"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is damaged.
    #[error(
        "the identity file {path} is corrupt ({reason}): restore it from a backup; only to become a different node, move it away and start again"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Others may read the key.
    #[error("the identity file {path} may be read by others (mode {mode:o}): run `chmod 600` on it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// The identity kept in this folder; a new one where there is none yet.
pub fn load_or_create(folder: &Path) -> Result<Keypair, IdentityError> {
    let path = folder.join(IDENTITY_FILE);
    match load(&path) {
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        outcome => return outcome,
    }
    create(folder, &path)?;
    // Another process may have been faster: what counts is what is on disk.
    load(&path)
}

fn load(path: &Path) -> Result<Keypair, IdentityError> {
    let failed = |source| IdentityError::Io { action: "read", path: path.to_owned(), source };
    let corrupt = |reason| IdentityError::Corrupt { path: path.to_owned(), reason };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let key = bytes.strip_prefix(MARK).ok_or_else(|| corrupt("it is not an identity file"))?;
    let (key, checksum) =
        key.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(|| corrupt("it is cut short"))?;
    if digest(key) != *checksum {
        return Err(corrupt("its checksum does not hold"));
    }
    Keypair::from_protobuf_encoding(key).map_err(|_| corrupt("it holds no usable key"))
}

/// The bytes of a new identity's file, for whoever keeps them elsewhere than in a folder.
pub fn mint() -> Vec<u8> {
    let key = Keypair::generate_ed25519().to_protobuf_encoding().expect("an Ed25519 key can be encoded");
    [MARK.as_slice(), &key, &digest(&key)].concat()
}

fn create(folder: &Path, path: &Path) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::Io { action: "create", path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let draft = folder.join(format!("{IDENTITY_FILE}.{:016x}", rand::random::<u64>()));
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
    let written = file
        .write_all(&mint())
        .and_then(|()| file.sync_all())
        // A link fails where the name exists, a rename would replace what another process minted.
        .and_then(|()| match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome,
        });
    let removed = fs::remove_file(&draft);
    written.and(removed).and_then(|()| File::open(folder)?.sync_all()).map_err(failed)
}

fn digest(key: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Sha256::new().chain_update(MARK).chain_update(key).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn an_identity_is_minted_once() {
        let folder = folder();
        let first = load_or_create(&folder.path().join("data")).unwrap();
        let second = load_or_create(&folder.path().join("data")).unwrap();
        assert_eq!(first.public().to_peer_id(), second.public().to_peer_id());
        let path = folder.path().join("data").join(IDENTITY_FILE);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("data")).unwrap().count(), 1, "no draft stays behind");
    }

    #[test]
    fn every_damage_stops_the_start_and_mints_nothing() {
        let folder = folder();
        load_or_create(folder.path()).unwrap();
        let path = folder.path().join(IDENTITY_FILE);
        let good = fs::read(&path).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
        damaged.extend((0..good.len()).map(|index| {
            let mut bytes = good.clone();
            bytes[index] ^= 1;
            bytes
        }));
        damaged.push([good.as_slice(), b"x"].concat());
        for bytes in damaged {
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(load_or_create(folder.path()), Err(IdentityError::Corrupt { .. })));
            assert_eq!(fs::read(&path).unwrap(), bytes, "the file stays as it is");
        }
    }

    #[test]
    fn a_key_that_others_may_read_stops_the_start() {
        let folder = folder();
        load_or_create(folder.path()).unwrap();
        let path = folder.path().join(IDENTITY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refusal = load_or_create(folder.path()).unwrap_err();
        assert!(matches!(refusal, IdentityError::Exposed { mode: 0o644, .. }));
        assert!(refusal.to_string().contains("chmod 600"));
    }

    #[test]
    fn an_unusable_folder_is_named() {
        let folder = folder();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let refusal = load_or_create(&file).unwrap_err();
        assert!(matches!(refusal, IdentityError::Io { .. }));
        assert!(refusal.to_string().contains("file/identity.key"), "{refusal}");
    }

    #[test]
    fn of_two_that_mint_at_once_one_wins() {
        let folder = folder();
        let peers: Vec<_> = std::thread::scope(|scope| {
            let mint = || load_or_create(folder.path()).unwrap().public().to_peer_id();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(mint)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(peers.iter().all(|peer| *peer == peers[0]), "{peers:?}");
    }
}
