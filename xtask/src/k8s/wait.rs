//! Waiting for a condition of something that runs beside this program.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks until the condition holds; an error of the condition ends the wait, too.
pub(crate) fn until(what: &str, within: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > within {
            bail!("waited {within:?} in vain for {what}");
        }
        pause(LOOK_EVERY);
    }
    Ok(())
}

/// The pause between two looks, or for as long as something lasts.
#[expect(clippy::disallowed_methods, reason = "the one pause of whoever waits for a condition")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
