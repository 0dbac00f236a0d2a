//! The calls into libc that this test binary answers itself, so that a run depends on its seed alone.
//!
//! `getrandom` is seeded per thread: it feeds `rand`, the keys of hash maps and tokio's `select!`.
//! `clock_gettime` gives simulated time. `fsync`, `fdatasync` and `pwrite` keep the books of [`disk`]:
//! they are what decides which bytes a power loss leaves. `pwrite` counts where the descriptor was opened
//! with `O_DSYNC`, as that of LMDB's meta pages is. Nothing else has to be watched: nobody writes through
//! memory, and LMDB's other pages are flushed before its meta page is written.
//!
//! A thread that was not seeded gets the operating system's answers.
//!
//! [`disk`]: crate::disk

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::os::fd::RawFd;
use std::time::Duration;

use crate::dice::next;
use crate::disk;

thread_local! {
    /// The state of this thread's generator; `None` asks the operating system.
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
    /// What both clocks show, in nanoseconds since the epoch; 0 asks the operating system.
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// From now on this thread's randomness follows from `seed`.
pub(crate) fn seed_randomness(seed: u64) {
    RANDOM.set(Some(seed));
}

/// From now on this thread's clocks show that time since the epoch.
pub(crate) fn set_clocks(since_epoch: Duration) {
    NOW.set(since_epoch.as_nanos() as u64);
}

/// Real time, on a simulated thread too.
pub(crate) fn wall_clock() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time that this thread has used.
pub(crate) fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// # Safety
/// As libc's: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(mut state) = RANDOM.get() else {
        // SAFETY: the caller's promise is passed on.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    // SAFETY: the caller promises that many writable bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&next(&mut state).to_le_bytes()[..chunk.len()]);
    }
    RANDOM.set(Some(state));
    length as isize
}

/// # Safety
/// As libc's: `time` is a valid place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut libc::timespec) -> c_int {
    let now = NOW.get();
    let simulated =
        matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME) && now != 0;
    if !simulated {
        // SAFETY: the caller's promise is passed on.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    }
    let now = Duration::from_nanos(now);
    let answer = libc::timespec { tv_sec: now.as_secs() as i64, tv_nsec: i64::from(now.subsec_nanos()) };
    // SAFETY: the caller promises a valid place.
    unsafe { time.write(answer) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn fsync(file: RawFd) -> c_int {
    flush(file, libc::SYS_fsync)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: RawFd) -> c_int {
    flush(file, libc::SYS_fdatasync)
}

/// The real call is not made for a simulated disk: its books are its durability.
fn flush(file: RawFd, call: c_long) -> c_int {
    if disk::flushed(file) {
        return 0;
    }
    // SAFETY: the call takes any number for a descriptor.
    unsafe { libc::syscall(call, file) as c_int }
}

/// # Safety
/// As libc's: `bytes` has `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(file: RawFd, bytes: *const c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise is passed on.
    unsafe { write_at(file, bytes, length, offset) }
}

/// # Safety
/// As libc's: `bytes` has `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(file: RawFd, bytes: *const c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise is passed on.
    unsafe { write_at(file, bytes, length, offset) }
}

/// # Safety
/// `bytes` has `length` bytes.
unsafe fn write_at(file: RawFd, bytes: *const c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise is passed on.
    let written = unsafe { libc::syscall(libc::SYS_pwrite64, file, bytes, length, offset) as isize };
    if NOW.get() == 0 || written <= 0 {
        return written;
    }
    // SAFETY: the call takes any number for a descriptor.
    let flags = unsafe { libc::syscall(libc::SYS_fcntl, file, libc::F_GETFL) };
    if flags & c_long::from(libc::O_DSYNC) != 0 {
        // SAFETY: so many bytes were read from there just now.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), written as usize) };
        disk::written_through(file, bytes, offset as u64);
    }
    written
}
