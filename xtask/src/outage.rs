//! How long writes are away when something is struck down, measured as an application would feel it: one write after
//! the other, and the longest time between two acknowledgements. It does not know what is written or struck.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

/// Writes run undisturbed for so long before the strike, and after the first one that began behind it.
const CALM: Duration = Duration::from_secs(1);

/// What a strike did to the writes.
pub(crate) struct Outage {
    /// The longest time between two acknowledged writes.
    pub(crate) longest: Duration,
    /// Acknowledged writes, before and after the strike.
    pub(crate) writes: u64,
}

/// Writes over and over while `strike` is carried out. A write that fails ends it: a client is expected to retry.
pub(crate) async fn measure<W>(mut write: W, strike: impl Future<Output = Result<()>>) -> Result<Outage>
where
    W: AsyncFnMut() -> Result<()>,
{
    let struck = Cell::new(None);
    let striking = async {
        tokio::time::sleep(CALM).await;
        strike.await?;
        struck.set(Some(Instant::now()));
        anyhow::Ok(())
    };
    let writing = async {
        let mut outage = Outage { longest: Duration::ZERO, writes: 0 };
        // The first write may connect and learn who leads.
        write().await?;
        let mut last = Instant::now();
        let mut end = None;
        while end.is_none_or(|end| last < end) {
            let start = Instant::now();
            write().await?;
            let now = Instant::now();
            outage.longest = outage.longest.max(now - last);
            outage.writes += 1;
            last = now;
            if end.is_none() && struck.get().is_some_and(|struck| struck <= start) {
                end = Some(now + CALM);
            }
        }
        anyhow::Ok(outage)
    };
    let (outage, ()) = tokio::try_join!(writing, striking)?;
    Ok(outage)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use anyhow::{Result, bail};
    use tokio::time::sleep;

    use super::measure;

    #[tokio::test(start_paused = true)]
    async fn the_longest_pause_between_writes_is_the_outage() {
        let away = Cell::new(false);
        let write = async || -> Result<()> {
            let pause = if away.take() { 400 } else { 2 };
            sleep(Duration::from_millis(pause)).await;
            Ok(())
        };
        let strike = async {
            away.set(true);
            Ok(())
        };
        let outage = measure(write, strike).await.unwrap();
        // Writes of 2 ms: one is under way when the strike comes, the next takes 400 ms.
        assert!((400..=404).contains(&outage.longest.as_millis()), "{:?}", outage.longest);
        assert!(outage.writes > 500, "{}", outage.writes);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_strike_and_a_failed_write_end_the_measurement() {
        let write = async || -> Result<()> {
            sleep(Duration::from_millis(1)).await;
            Ok(())
        };
        assert!(measure(write, async { bail!("missed") }).await.is_err());
        assert!(measure(async || bail!("refused"), async { Ok(()) }).await.is_err());
    }
}
