//! What a node is started within so that its machine can fail it: a disk of its own that fills, and a clock that can be set. Neither takes
//! root; both end with the node.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use debros_proto::limits::DISK_RESERVE_BYTES;
use tokio::time::sleep;

use crate::debian;
use crate::steps::target_folder;

/// What fills a disk grows by so much a second while it fills slowly.
const STEP_BYTES: u64 = 14 << 20;
/// A disk that fills slowly stops short of its reserve by so much.
const SPARED_BYTES: u64 = 300 << 20;
/// What is left on a full disk: less than the reserve.
const LEFT_BYTES: u64 = DISK_RESERVE_BYTES - (96 << 20);

/// Debian's package with the library that tells a process another time.
const CLOCK_PACKAGE: &str = "libfaketime";
const CLOCK_LIBRARY: &str = "libfaketimeMT.so.1";
/// The library looks at its file this often.
const CLOCK_LOOKS_SECONDS: u32 = 1;

/// A command that becomes the node, in a mount namespace in which a file system of so many bytes lies over its data.
pub(super) fn on_own_disk(data: &Path, bytes: &str) -> Vec<OsString> {
    // The namespace makes the system forget that the node is to end with this program; setpriv says it again.
    let script = format!(
        "mkdir -p \"$0\" && mount -t tmpfs -o size={bytes} tmpfs \"$0\" && exec setpriv --pdeathsig KILL \"$@\""
    );
    let mut command: Vec<OsString> =
        ["unshare", "--map-root-user", "--mount", "sh", "-c"].map(OsString::from).into();
    command.extend([script.into(), data.into()]);
    command
}

/// A file that fills the disk of a node.
pub(super) struct Filling {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Filling {
    /// Empty, on the disk over the data folder of the node with this process id.
    pub(super) fn begin(pid: u32, data: &Path) -> Result<Self> {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let path = root.join(data.strip_prefix("/").context("a data folder is absolute")?).join("filling");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, path, bytes: 0 })
    }

    /// Grows step by step, and stays where little is left.
    pub(super) async fn slowly(&mut self) -> Result<()> {
        loop {
            if self.free_bytes()? > DISK_RESERVE_BYTES + SPARED_BYTES + STEP_BYTES {
                self.grow(STEP_BYTES)?;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Grows until the node must count its disk as full.
    pub(super) fn fill(&mut self) -> Result<()> {
        let free = self.free_bytes()?;
        self.grow(free.saturating_sub(LEFT_BYTES))
    }

    /// Gives all of it back.
    pub(super) fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }

    fn free_bytes(&self) -> Result<u64> {
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the descriptor is open, and the buffer is as large as the call expects.
        let told = unsafe { libc::fstatvfs(self.file.as_raw_fd(), stat.as_mut_ptr()) };
        ensure!(told == 0, "cannot ask how much is free: {}", std::io::Error::last_os_error());
        // SAFETY: the call succeeded, so it has filled the buffer.
        let stat = unsafe { stat.assume_init() };
        Ok(stat.f_bavail * stat.f_frsize)
    }

    fn grow(&mut self, bytes: u64) -> Result<()> {
        let (from, length) = (i64::try_from(self.bytes)?, i64::try_from(bytes)?);
        // SAFETY: the descriptor is open for writing.
        let error = unsafe { libc::posix_fallocate(self.file.as_raw_fd(), from, length) };
        ensure!(
            error == 0,
            "the disk does not take {bytes} bytes: {}",
            std::io::Error::from_raw_os_error(error)
        );
        self.bytes += bytes;
        Ok(())
    }
}

/// A clock of the day that can be set while its node runs, by a library that stands before the system's.
pub(super) struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right, told by a file in this folder. `None`, and it is said why, where the library cannot be had.
    pub(super) fn set_up(folder: &Path) -> Result<Option<Self>> {
        let unpacked = target_folder().join("faketime");
        let mut library = found(&unpacked);
        if library.is_none() && debian::available() {
            println!(
                "Debian's package {CLOCK_PACKAGE} goes into {}; nothing is installed",
                unpacked.display()
            );
            fs::create_dir_all(&unpacked)?;
            debian::unpack_packages(&[CLOCK_PACKAGE], &unpacked)?;
            library = found(&unpacked);
        }
        let Some(library) = library else {
            println!("skipped: no clock is skewed, because {CLOCK_LIBRARY} cannot be had");
            return Ok(None);
        };
        fs::create_dir_all(folder)?;
        let clock = Self { library, file: folder.join("clock") };
        clock.ahead(Duration::ZERO)?;
        Ok(Some(clock))
    }

    /// A command that becomes the node, under this clock. Time that only goes by is as it is.
    pub(super) fn around(&self) -> Vec<OsString> {
        let variable = |name: &str, value: &Path| {
            let mut set = OsString::from(format!("{name}="));
            set.push(value);
            set
        };
        vec![
            "env".into(),
            variable("LD_PRELOAD", &self.library),
            variable("FAKETIME_TIMESTAMP_FILE", &self.file),
            format!("FAKETIME_CACHE_DURATION={CLOCK_LOOKS_SECONDS}").into(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
            "NO_FAKE_STAT=1".into(),
        ]
    }

    /// Sets it, ahead of what is right.
    pub(super) fn ahead(&self, by: Duration) -> Result<()> {
        let next = self.file.with_extension("next");
        fs::write(&next, format!("+{:.3}\n", by.as_secs_f64()))?;
        fs::rename(&next, &self.file).with_context(|| format!("cannot set {}", self.file.display()))
    }
}

/// The library below a folder into which the package was unpacked: in one of the machine's kind.
fn found(folder: &Path) -> Option<PathBuf> {
    let kinds = fs::read_dir(folder.join("usr/lib")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    kinds.map(|kind| kind.join("faketime").join(CLOCK_LIBRARY)).find(|library| library.is_file())
}
