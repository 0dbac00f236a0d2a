//! The simulated disks: what of a node's folder a power loss or the death of its process leaves.
//!
//! The files themselves are real; this module keeps the books of what is durable. It is as strict as
//! POSIX allows: a file's bytes are durable as of its last `fsync` or `fdatasync` or when they were
//! written through an `O_DSYNC` descriptor, and a *name* in a
//! folder, new, moved or removed, only as of the last `fsync` of that folder, so a synced file whose
//! folder was never synced is gone. A [`PowerLoss::Torn`] also lets any part of what was written
//! since reach the disk, page by page and in any order.
//!
//! A process that dies leaves all it wrote, durable or not. Dropping a simulated node is not dying:
//! destructors flush and clean up. So the folder is frozen before and put back after.
//!
//! Invariant: files are known by ids of our own. Each has its inode held open, so that the file
//! system does not give the number to another file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::dice::Dice;

/// What reaches a disk in one piece, or not at all.
const PAGE_BYTES: usize = 4096;
/// Held inodes are looked through for dead ones after this many more of them.
const COLLECT_AFTER: usize = 64;

/// How the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerLoss {
    /// Exactly what was flushed is left.
    Clean,
    /// Some pages of what was not flushed are left as well.
    Torn,
}

type Id = u64;
const ROOT: Id = 0;

/// A name in a folder.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: Id,
    is_folder: bool,
}

/// A whole folder as it is seen by a process.
#[derive(Default)]
struct Image {
    folders: Vec<(PathBuf, Option<Id>)>,
    files: Vec<(PathBuf, Option<Id>, Vec<u8>)>,
}

struct Disk {
    root: PathBuf,
    frozen: bool,
    next: Id,
    live: BTreeMap<u64, Id>,
    held: BTreeMap<Id, File>,
    durable_files: BTreeMap<Id, Vec<u8>>,
    durable_folders: BTreeMap<Id, BTreeMap<OsString, Entry>>,
    collect_at: usize,
}

/// The disks of a run; one process runs one simulation.
static DISKS: Mutex<Vec<Disk>> = Mutex::new(Vec::new());

fn disks() -> MutexGuard<'static, Vec<Disk>> {
    DISKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to keep the books of an empty folder.
pub(crate) fn watch(root: &Path) {
    let root = root.canonicalize().expect("the folder exists");
    let mut disk = Disk {
        frozen: false,
        next: ROOT + 1,
        live: BTreeMap::new(),
        held: BTreeMap::new(),
        durable_files: BTreeMap::new(),
        durable_folders: BTreeMap::from([(ROOT, BTreeMap::new())]),
        collect_at: COLLECT_AFTER,
        root,
    };
    disk.know(&disk.root.clone(), Some(ROOT)).expect("the folder can be opened");
    disks().push(disk);
}

/// Notes that a descriptor was flushed; `false` when it belongs to no simulated disk.
pub(crate) fn flushed(file: RawFd) -> bool {
    let mut disks = disks();
    if disks.is_empty() {
        return false;
    }
    let link = PathBuf::from(format!("/proc/self/fd/{file}"));
    let Ok(path) = fs::read_link(&link) else { return false };
    let Some(disk) = disks.iter_mut().find(|disk| path.starts_with(&disk.root)) else { return false };
    if !disk.frozen {
        disk.flush(&link).unwrap_or_else(|error| panic!("the books of {} broke: {error}", path.display()));
    }
    true
}

/// Notes that bytes were written through a descriptor that flushes each write of its own.
pub(crate) fn written_through(file: RawFd, bytes: &[u8], offset: u64) {
    let mut disks = disks();
    let link = PathBuf::from(format!("/proc/self/fd/{file}"));
    let Ok(path) = fs::read_link(&link) else { return };
    let Some(disk) = disks.iter_mut().find(|disk| path.starts_with(&disk.root)) else { return };
    if !disk.frozen {
        let id = disk.know(&link, None);
        let id = id.unwrap_or_else(|error| panic!("the books of {} broke: {error}", path.display()));
        let durable = disk.durable_files.entry(id).or_default();
        let begin = usize::try_from(offset).expect("simulated files are small");
        durable.resize(durable.len().max(begin + bytes.len()), 0);
        durable[begin..begin + bytes.len()].copy_from_slice(bytes);
    }
}

/// The process dies: `stop` drops it, and its folder is as it was before.
pub(crate) fn kill(root: &Path, stop: impl FnOnce()) {
    let image = with(root, |disk| {
        disk.frozen = true;
        disk.image()
    });
    stop();
    with(root, |disk| disk.put_back(image));
}

/// The machine loses power: `stop` drops the process, and its folder is what was durable.
pub(crate) fn lose_power(root: &Path, loss: PowerLoss, dice: &mut Dice, stop: impl FnOnce()) {
    let image = with(root, |disk| {
        disk.frozen = true;
        disk.survivors(loss, dice)
    });
    stop();
    with(root, |disk| {
        disk.put_back(image)?;
        disk.settle()
    });
}

/// Loses one folder, or all of them, for good, as with a replaced drive. The process must be down.
pub(crate) fn lose_folder(root: &Path, folder: Option<&str>) {
    with(root, |disk| {
        let lost =
            |path: &Path| folder.is_none_or(|folder| path == Path::new(folder) || path.starts_with(folder));
        let mut image = disk.image()?;
        image.folders.retain(|(path, _)| !lost(path));
        image.files.retain(|(path, ..)| !lost(path));
        disk.put_back(image)?;
        disk.settle()
    });
}

fn with<T>(root: &Path, work: impl FnOnce(&mut Disk) -> io::Result<T>) -> T {
    let root = root.canonicalize().expect("the folder exists");
    let mut disks = disks();
    let disk = disks.iter_mut().find(|disk| disk.root == root).expect("the folder is watched");
    work(disk).unwrap_or_else(|error| panic!("the simulated disk {}: {error}", root.display()))
}

impl Disk {
    /// The id of a file or folder, from now on held.
    fn know(&mut self, path: &Path, id: Option<Id>) -> io::Result<Id> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        if let Some(known) = self.live.get(&inode) {
            return Ok(*known);
        }
        let id = id.unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.live.insert(inode, id);
        self.held.insert(id, file);
        Ok(id)
    }

    fn flush(&mut self, descriptor: &Path) -> io::Result<()> {
        let id = self.know(descriptor, None)?;
        let file = &self.held[&id];
        if !file.metadata()?.is_dir() {
            let bytes = self.durable_files.entry(id).or_default();
            return read_whole(file, bytes);
        }
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(descriptor)? {
            let entry = entry?;
            let is_folder = entry.file_type()?.is_dir();
            names.insert(entry.file_name(), Entry { id: self.know(&entry.path(), None)?, is_folder });
        }
        self.durable_folders.insert(id, names);
        self.collect()
    }

    /// Lets go of files that neither a process nor a power loss can bring back.
    fn collect(&mut self) -> io::Result<()> {
        if self.held.len() < self.collect_at {
            return Ok(());
        }
        let named: Vec<Id> =
            self.durable_folders.values().flat_map(BTreeMap::values).map(|entry| entry.id).collect();
        let mut dead = Vec::new();
        for (id, file) in &self.held {
            let metadata = file.metadata()?;
            if metadata.nlink() == 0 && !named.contains(id) {
                dead.push((*id, metadata.ino()));
            }
        }
        for (id, inode) in dead {
            self.live.remove(&inode);
            self.held.remove(&id);
            self.durable_files.remove(&id);
            self.durable_folders.remove(&id);
        }
        self.collect_at = self.held.len() + COLLECT_AFTER;
        Ok(())
    }

    /// All there is now.
    fn image(&self) -> io::Result<Image> {
        let mut image = Image::default();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let mut entries = fs::read_dir(self.root.join(&folder))?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let path = folder.join(entry.file_name());
                let metadata = entry.metadata()?;
                let id = self.live.get(&metadata.ino()).copied();
                if metadata.is_dir() {
                    image.folders.push((path.clone(), id));
                    folders.push(path);
                } else {
                    image.files.push((path, id, fs::read(entry.path())?));
                }
            }
        }
        Ok(image)
    }

    /// All that a power loss leaves.
    fn survivors(&self, loss: PowerLoss, dice: &mut Dice) -> io::Result<Image> {
        let mut image = Image::default();
        let mut folders = vec![(PathBuf::new(), ROOT)];
        while let Some((folder, id)) = folders.pop() {
            for (name, Entry { id, is_folder }) in self.durable_folders.get(&id).into_iter().flatten() {
                let path = folder.join(name);
                if *is_folder {
                    image.folders.push((path.clone(), Some(*id)));
                    folders.push((path, *id));
                    continue;
                }
                let mut bytes = self.durable_files.get(id).cloned().unwrap_or_default();
                if loss == PowerLoss::Torn {
                    let mut written = Vec::new();
                    read_whole(&self.held[id], &mut written)?;
                    tear(&mut bytes, &written, dice);
                }
                image.files.push((path, Some(*id), bytes));
            }
        }
        Ok(image)
    }

    fn put_back(&mut self, image: Image) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        self.live.clear();
        self.know(&self.root.clone(), Some(ROOT))?;
        let mut placed = vec![];
        for (path, id) in image.folders {
            let path = self.root.join(path);
            fs::create_dir(&path)?;
            placed.push((path, id));
        }
        for (path, id, bytes) in image.files {
            let path = self.root.join(path);
            fs::write(&path, bytes)?;
            placed.push((path, id));
        }
        for (path, id) in placed {
            if id.is_some() {
                self.know(&path, id)?;
            }
        }
        self.frozen = false;
        Ok(())
    }

    /// After a power loss all there is is durable.
    fn settle(&mut self) -> io::Result<()> {
        self.durable_files.clear();
        self.durable_folders.clear();
        let mut folders = vec![(self.root.clone(), ROOT)];
        while let Some((folder, id)) = folders.pop() {
            let mut names = BTreeMap::new();
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let (path, is_folder) = (entry.path(), entry.file_type()?.is_dir());
                let id = self.know(&path, None)?;
                names.insert(entry.file_name(), Entry { id, is_folder });
                if is_folder {
                    folders.push((path, id));
                } else {
                    self.durable_files.insert(id, fs::read(path)?);
                }
            }
            self.durable_folders.insert(id, names);
        }
        Ok(())
    }
}

fn read_whole(file: &File, bytes: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::try_from(file.metadata()?.len()).expect("simulated files are small");
    bytes.resize(length, 0);
    file.read_exact_at(bytes, 0)
}

/// Lets some pages of what was written reach what was flushed.
fn tear(durable: &mut Vec<u8>, written: &[u8], dice: &mut Dice) {
    if durable.as_slice() == written {
        return;
    }
    if dice.once_in(2) {
        durable.resize(written.len(), 0);
    }
    let length = durable.len().min(written.len());
    for at in (0..length).step_by(PAGE_BYTES) {
        let page = at..length.min(at + PAGE_BYTES);
        if dice.once_in(2) {
            durable[page.clone()].copy_from_slice(&written[page]);
        }
    }
}
