//! What a run came to, as one line, which a parent process reads back.

use std::fmt;
use std::time::Duration;

/// The end of one run.
pub(crate) struct Report {
    /// The seed.
    pub(crate) seed: u64,
    /// Of everything that was seen.
    pub(crate) hash: u64,
    /// Answers.
    pub(crate) operations: usize,
    /// Those that were acknowledged.
    pub(crate) acknowledged: usize,
    /// Faults.
    pub(crate) faults: usize,
    /// What else shows that much has happened, and its name.
    pub(crate) beside: (&'static str, u64),
    /// Simulated time in all.
    pub(crate) simulated: Duration,
    /// From the end of the last fault until everything was equal.
    pub(crate) converged: Duration,
    /// Real time.
    pub(crate) wall: Duration,
    /// What was wrong.
    pub(crate) verdict: Result<(), Vec<String>>,
    /// Everything that was seen.
    pub(crate) history: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} history {:016x} operations {} acknowledged {} faults {} {} {} simulated {:.1}s whole after {:.1}s wall {:.1}s: {}",
            self.seed,
            self.hash,
            self.operations,
            self.acknowledged,
            self.faults,
            self.beside.0,
            self.beside.1,
            self.simulated.as_secs_f64(),
            self.converged.as_secs_f64(),
            self.wall.as_secs_f64(),
            match &self.verdict {
                Ok(()) => "ok".to_owned(),
                Err(violations) => format!("FAILED: {}", violations.join("; ")),
            }
        )
    }
}
