//! Whether anything is recorded. In a shipped build everything always is, by a constant that costs nothing. With the feature `switched`, which
//! is there for `cargo xtask bench observability` alone, signals say what is recorded from now on: so one process is measured with and without, and
//! what two processes of the same program differ by, which is more than recording may cost, does not come in.

#[cfg(not(feature = "switched"))]
mod always {
    /// Whether metrics are recorded.
    pub const fn metrics() -> bool {
        true
    }

    /// Whether traces are made, where a collector is named.
    pub const fn traces() -> bool {
        true
    }

    /// Nothing can be switched.
    pub const fn obey_signals() {}
}

#[cfg(feature = "switched")]
mod switched {
    use std::sync::atomic::{AtomicI32, Ordering};

    /// What a signal switches to, as what is added to the first real-time signal.
    const NOTHING: i32 = 0;
    const TRACES: i32 = 2;
    static LEVEL: AtomicI32 = AtomicI32::new(TRACES);

    /// Whether metrics are recorded.
    pub fn metrics() -> bool {
        LEVEL.load(Ordering::Relaxed) > NOTHING
    }

    /// Whether traces are made, where a collector is named.
    pub fn traces() -> bool {
        LEVEL.load(Ordering::Relaxed) == TRACES
    }

    /// From now on `SIGRTMIN` says nothing, the next one metrics, the one behind it metrics and traces.
    pub fn obey_signals() {
        for level in NOTHING..=TRACES {
            // SAFETY: the handler only stores into an atomic, which a signal may interrupt anything for.
            unsafe { libc::signal(libc::SIGRTMIN() + level, heed as *const () as libc::sighandler_t) };
        }
    }

    extern "C" fn heed(signal: libc::c_int) {
        LEVEL.store(signal - libc::SIGRTMIN(), Ordering::Relaxed);
    }
}

#[cfg(not(feature = "switched"))]
pub use always::{metrics, obey_signals, traces};
#[cfg(feature = "switched")]
pub use switched::{metrics, obey_signals, traces};
