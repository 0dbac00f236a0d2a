//! Keeps a reserve of disk space free: a full disk must not stop every group of a node at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use debros_proto::{ErrorCode, Failure, limits};
use tokio_util::sync::CancellationToken;

use crate::blocking::Blocking;

/// The file system is asked this often: long before a fast disk fills the reserve.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether there is room, here and where the replicas are.
#[derive(Clone, Default)]
pub struct DiskState {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    low_here: AtomicBool,
    low_elsewhere: AtomicBool,
    free_bytes: AtomicU64,
    size_bytes: AtomicU64,
}

impl DiskState {
    /// This node is below its reserve.
    pub fn is_low(&self) -> bool {
        self.inner.low_here.load(Ordering::Relaxed)
    }

    /// Bytes free on the fullest of the node's disks when they were last asked.
    pub fn free_bytes(&self) -> u64 {
        self.inner.free_bytes.load(Ordering::Relaxed)
    }

    /// The size of that disk.
    pub fn size_bytes(&self) -> u64 {
        self.inner.size_bytes.load(Ordering::Relaxed)
    }

    /// Takes what the other nodes say of themselves.
    pub fn set_low_elsewhere(&self, low: bool) {
        self.inner.low_elsewhere.store(low, Ordering::Relaxed);
    }

    /// Refuses writes while a replica has no room for them.
    ///
    /// # Errors
    /// `DISK_FULL`.
    pub fn check(&self) -> Result<(), Failure> {
        let place = match (self.is_low(), self.inner.low_elsewhere.load(Ordering::Relaxed)) {
            (false, false) => return Ok(()),
            (true, _) => "this node",
            (false, true) => "another node of the cluster",
        };
        Err(Failure::new(
            ErrorCode::DiskFull,
            format!(
                "{place} has less than {} MiB of disk space left: free some or grow the volume, reads go on",
                limits::DISK_RESERVE_BYTES >> 20
            ),
        ))
    }

    /// Watches the disks under `folders`, which may be the same one, until the token is cancelled.
    pub async fn watch(self, folders: [PathBuf; 2], blocking: Blocking, stop: CancellationToken) {
        loop {
            let asked = folders.clone();
            match blocking.run(move || fullest(&asked)).await {
                Ok(Space { free, size }) => {
                    self.inner.free_bytes.store(free, Ordering::Relaxed);
                    self.inner.size_bytes.store(size, Ordering::Relaxed);
                    let low = free < limits::DISK_RESERVE_BYTES;
                    if self.inner.low_here.swap(low, Ordering::Relaxed) != low {
                        tracing::warn!(free, low, "disk space crossed the reserve");
                    }
                }
                Err(error) => tracing::warn!(%error, "the free disk space cannot be told"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }
}

/// Of a disk, in bytes.
struct Space {
    free: u64,
    size: u64,
}

fn fullest(folders: &[PathBuf]) -> std::io::Result<Space> {
    let nothing = Space { free: u64::MAX, size: 0 };
    folders.iter().try_fold(nothing, |least, folder| {
        let space = space(folder)?;
        Ok(if space.free < least.free { space } else { least })
    })
}

fn space(folder: &std::path::Path) -> std::io::Result<Space> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a NUL, and the buffer is as large as the call expects.
    let result = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled the buffer.
    let stat = unsafe { stat.assume_init() };
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space { free: bytes(stat.f_bavail), size: bytes(stat.f_blocks) })
}
