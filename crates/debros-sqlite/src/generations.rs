//! Where a database's files live, and how a snapshot takes their place.
//!
//! `<root>/<generation>/database.sqlite`, and `<root>/CURRENT`, which names the generation in use.
//! A snapshot is installed into a folder of its own and `CURRENT` is switched atomically: renaming
//! a file over a database that has a `-wal` beside it makes SQLite serve the old data silently.
//!
//! Invariant: `CURRENT` names a folder whose database is complete and synced, whenever the machine
//! stops. Folders it does not name are leftovers.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::Fault;

const CURRENT: &str = "CURRENT";
const CURRENT_NEXT: &str = "CURRENT.next";
const DATABASE: &str = "database.sqlite";

/// The generations of one database.
#[derive(Debug)]
pub struct Generations {
    root: PathBuf,
    current: u64,
}

/// A snapshot being received into the next generation's folder.
#[derive(Debug)]
pub struct Incoming {
    generation: u64,
    path: PathBuf,
}

impl Incoming {
    /// Where the snapshot's bytes go: one whole SQLite file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Generations {
    /// Opens the folder, creating it with an empty first generation if needed, and removes what
    /// interrupted installations left.
    ///
    /// # Errors
    /// A fault when the folder cannot be used or `CURRENT` is damaged.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Fault> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|error| Fault::file("creating", &root, error))?;
        // A folder whose name is not durable takes all that is in it along when the power goes.
        root.parent().map_or(Ok(()), sync_folder)?;
        let current = match fs::read_to_string(root.join(CURRENT)) {
            Ok(text) => text.trim().parse().map_err(|_| Fault::Unusable {
                path: root.join(CURRENT),
                reason: format!("it should hold a number, not {text:?}"),
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(Fault::file("reading", root.join(CURRENT), error)),
        };
        let mut generations = Self { root, current };
        if generations.current == 0 {
            generations.create_folder(1)?;
            generations.switch(1)?;
        }
        if !generations.folder(generations.current).is_dir() {
            return Err(Fault::Unusable {
                path: generations.folder(generations.current),
                reason: "CURRENT names it, but it is not there".to_owned(),
            });
        }
        generations.remove_others()?;
        Ok(generations)
    }

    /// The database file of the current generation; it may not exist yet.
    #[must_use]
    pub fn database_path(&self) -> PathBuf {
        self.folder(self.current).join(DATABASE)
    }

    /// The current generation's number.
    #[must_use]
    pub fn current(&self) -> u64 {
        self.current
    }

    /// Makes room for a snapshot. An earlier one that was not installed is thrown away.
    ///
    /// # Errors
    /// A fault of the file system.
    pub fn prepare(&self) -> Result<Incoming, Fault> {
        let generation = self.current + 1;
        let folder = self.folder(generation);
        match fs::remove_dir_all(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Fault::file("removing", folder, error)),
        }
        self.create_folder(generation)?;
        Ok(Incoming { generation, path: folder.join(DATABASE) })
    }

    /// Makes a received snapshot the current generation. From here on, and after any crash,
    /// [`Self::database_path`] is the snapshot. Close the old generation's connections, open the
    /// new ones, then call [`Self::remove_others`].
    ///
    /// # Errors
    /// A fault: the generation in use stays.
    pub fn install(&mut self, incoming: Incoming) -> Result<(), Fault> {
        let Incoming { generation, path } = incoming;
        let file = File::open(&path).map_err(|error| Fault::file("opening", &path, error))?;
        file.sync_all().map_err(|error| Fault::file("syncing", &path, error))?;
        sync_folder(&self.folder(generation))?;
        self.switch(generation)
    }

    /// Removes all generations but the current one.
    ///
    /// # Errors
    /// A fault of the file system; calling it again goes on.
    pub fn remove_others(&self) -> Result<(), Fault> {
        let entries = fs::read_dir(&self.root).map_err(|error| Fault::file("listing", &self.root, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| Fault::file("listing", &self.root, error))?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            if number.is_some_and(|number| number != self.current) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(|error| Fault::file("removing", path, error))?;
            }
        }
        Ok(())
    }

    fn folder(&self, generation: u64) -> PathBuf {
        self.root.join(generation.to_string())
    }

    fn create_folder(&self, generation: u64) -> Result<(), Fault> {
        let folder = self.folder(generation);
        fs::create_dir_all(&folder).map_err(|error| Fault::file("creating", &folder, error))?;
        sync_folder(&self.root)
    }

    fn switch(&mut self, generation: u64) -> Result<(), Fault> {
        let next = self.root.join(CURRENT_NEXT);
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&next)?;
            writeln!(file, "{generation}")?;
            file.sync_all()?;
            fs::rename(&next, self.root.join(CURRENT))
        };
        write().map_err(|error| Fault::file("writing", self.root.join(CURRENT), error))?;
        sync_folder(&self.root)?;
        self.current = generation;
        Ok(())
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Fault> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Fault::file("syncing the folder", folder, error))
}
