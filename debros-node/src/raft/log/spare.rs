//! Segments made ahead of time, so that the writer never fills a file with zeros while groups wait.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::error::LogError;
use super::segment;
use crate::blocking::{Blocking, Jobs};

/// Files kept for reuse. More would only hold disk space: one is in use while the next is made.
const SPARES_MAX: usize = 2;

/// A file of zeros, or of a former segment's records.
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

#[derive(Default)]
struct Shelf {
    spares: Vec<Spare>,
    ordered: bool,
    next_number: u64,
}

/// The spare files of a store, all of the same size.
#[derive(Clone)]
pub(super) struct Spares {
    folder: PathBuf,
    bytes: u64,
    shelf: Arc<Mutex<Shelf>>,
}

impl Spares {
    pub(super) fn new(folder: PathBuf, bytes: u64) -> Self {
        Self { folder, bytes, shelf: Arc::default() }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("no panic under this lock")
    }

    /// Whether a file in the folder is a spare, whole or not.
    pub(super) fn is_spare(name: &str) -> bool {
        name.starts_with("spare-")
    }

    /// The size of each.
    pub(super) fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// All of them together.
    pub(super) fn bytes(&self) -> u64 {
        self.shelf().spares.len() as u64 * self.bytes
    }

    pub(super) fn take(&self) -> Option<Spare> {
        self.shelf().spares.pop()
    }

    /// Whether the writer should order one.
    pub(super) fn is_wanted(&self) -> bool {
        let mut shelf = self.shelf();
        let wanted = shelf.spares.is_empty() && !shelf.ordered;
        shelf.ordered |= wanted;
        wanted
    }

    /// Keeps a file that is not needed any more under a spare's name, or removes it.
    pub(super) fn keep(&self, path: &Path, file: Option<File>) -> Result<(), LogError> {
        let fits = |file: &File| file.metadata().is_ok_and(|metadata| metadata.len() == self.bytes);
        match file.filter(fits) {
            Some(file) if self.shelf().spares.len() < SPARES_MAX => {
                let spare = self.next_path();
                std::fs::rename(path, &spare).map_err(LogError::io("rename", path))?;
                self.shelf().spares.push(Spare { path: spare, file });
                Ok(())
            }
            _ => std::fs::remove_file(path).map_err(LogError::io("remove", path)),
        }
    }

    /// Makes a new file of zeros.
    pub(super) fn create(&self) -> Result<Spare, LogError> {
        let path = self.next_path();
        match segment::create_zeroed(&path, self.bytes) {
            Ok(file) => Ok(Spare { path, file }),
            Err(source) => {
                // Half a spare helps nobody, least of all a full disk.
                let _ = std::fs::remove_file(&path);
                Err(LogError::io("create", &path)(source))
            }
        }
    }

    fn next_path(&self) -> PathBuf {
        loop {
            let mut shelf = self.shelf();
            let path = self.folder.join(format!("spare-{}", shelf.next_number));
            shelf.next_number += 1;
            if !path.exists() {
                return path;
            }
        }
    }

    /// Starts the worker that makes what the writer orders.
    pub(super) fn start(&self, blocking: &Blocking) -> Jobs<()> {
        blocking.worker("raft-log-spare", (1, 1), self.clone(), |spares, orders| {
            orders.clear();
            let made = spares.create();
            let mut shelf = spares.shelf();
            shelf.ordered = false;
            match made {
                Ok(spare) => shelf.spares.push(spare),
                // The writer makes its own when it must, and then tells everybody.
                Err(error) => tracing::warn!(%error, "no raft log segment could be made ahead of time"),
            }
            true
        })
    }
}
