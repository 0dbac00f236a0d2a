//! That this node was removed from its cluster, noted in its data folder: the next start knows it then without asking
//! anybody, and may set aside what the node held and begin anew as somebody else.
//!
//! Nothing is deleted here. What was held lies in the same folder under the number of the node that it was, as long as
//! somebody leaves it there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use debros_proto::NodeId;
use tokio::sync::watch;

use super::engine::write_atomically;
use crate::blocking::Blocking;

/// The note, with the number of the node that was removed.
const FILE: &str = "removed";
/// What stays where it is: it is held while the node starts.
const LOCK: &str = "lock";
/// Folders of nodes that this one was before.
const FORMER: &str = "left-";

/// Whether this node was removed, as far as it knows. Cheap to clone.
#[derive(Clone)]
pub struct Removal {
    folder: PathBuf,
    blocking: Blocking,
    noted: Arc<watch::Sender<bool>>,
}

impl Removal {
    /// Of the node with this data folder.
    pub fn new(folder: PathBuf, blocking: Blocking) -> Self {
        let noted = Arc::new(watch::Sender::new(folder.join(FILE).exists()));
        Self { folder, blocking, noted }
    }

    /// Whether it is noted durably.
    pub fn is_noted(&self) -> bool {
        *self.noted.borrow()
    }

    /// Notes that the node was removed; that it is a member after all, takes the note back.
    pub async fn note(&self, node: NodeId, removed: bool) {
        if self.is_noted() == removed {
            return;
        }
        let path = self.folder.join(FILE);
        let written = self.blocking.run(move || match removed {
            true => write_atomically(&path, node.to_string().as_bytes()),
            false => fs::remove_file(&path),
        });
        match written.await {
            Ok(()) => drop(self.noted.send_replace(removed)),
            // It is found again at the next look.
            Err(error) => tracing::warn!(%error, removed, "a note in the data folder was not written"),
        }
    }
}

/// The number of the node that was removed, when the folder is one's.
///
/// # Errors
/// When it cannot be read.
pub fn former(folder: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(folder.join(FILE)) {
        Ok(node) => Ok(Some(node.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Moves all that a folder holds into one below it that names the former node. The note goes last, so that a start
/// that was cut short goes on where it ended. Gives where it is.
///
/// # Errors
/// When something cannot be moved.
pub fn set_aside(folder: &Path, former: &str) -> io::Result<PathBuf> {
    let aside = folder.join(format!("{FORMER}{former}"));
    fs::create_dir_all(&aside)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name());
    }
    let stays = |name: &str| name == LOCK || name.starts_with(FORMER) || name == FILE;
    for name in names.iter().filter(|name| !name.to_str().is_some_and(stays)) {
        fs::rename(folder.join(name), aside.join(name))?;
    }
    File::open(&aside)?.sync_all()?;
    File::open(folder)?.sync_all()?;
    if folder.join(FILE).exists() {
        fs::rename(folder.join(FILE), aside.join(FILE))?;
        File::open(folder)?.sync_all()?;
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{former, set_aside};

    #[test]
    fn what_was_held_is_set_aside_once_and_a_move_that_was_cut_short_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["lock", "member.json", "removed"] {
            fs::write(path(name), "4").expect("a file");
        }
        fs::create_dir_all(path("left-4")).expect("a folder");
        fs::write(path("left-4/identity.key"), "moved before").expect("a file");
        assert_eq!(former(folder.path()).expect("it is read").as_deref(), Some("4"));
        set_aside(folder.path(), "4").expect("it is moved");
        assert_eq!(former(folder.path()).expect("it is read"), None);
        for name in ["lock", "left-4/member.json", "left-4/removed", "left-4/identity.key"] {
            assert!(path(name).exists(), "{name}");
        }
        assert!(!path("member.json").exists());
    }
}
