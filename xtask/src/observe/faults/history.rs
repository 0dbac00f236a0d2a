//! A past for a cluster that is minutes old. Budgets burn over hours and days; without a past the few requests that a killed node takes
//! with it would be all there ever was. So what the cluster did in its first minute, with nothing bad, is given to Prometheus as what it always did.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::prometheus::{Programs, Prometheus, Sample};
use crate::rules::{SLO_BAD, SLO_TOTAL};

/// Between two values of the past.
const STEP: Duration = Duration::from_secs(15);
/// The past ends so long before now: Prometheus goes on from there.
const ENDS_BEFORE: Duration = Duration::from_secs(60);

/// What happens per second, by service level, now.
pub(super) async fn now(prometheus: &Prometheus) -> Result<Vec<Sample>> {
    let totals = prometheus.evaluate(SLO_TOTAL).await?;
    ensure!(!totals.is_empty(), "nothing is counted yet");
    Ok(totals)
}

/// Writes a past of this length into the folder of a Prometheus that does not run.
pub(super) fn write(programs: &Programs, folder: &Path, totals: &[Sample], length: Duration) -> Result<()> {
    let file = folder.join("history.txt");
    fs::write(&file, text(totals, SystemTime::now().duration_since(UNIX_EPOCH)?, length)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let (file, data) = (file.to_string_lossy(), folder.join("data"));
    programs.promtool(&[
        "tsdb",
        "create-blocks-from",
        "--quiet",
        "openmetrics",
        &file,
        &data.to_string_lossy(),
    ])
}

/// In OpenMetrics: all there was, and nothing bad.
fn text(totals: &[Sample], now: Duration, length: Duration) -> Result<String> {
    let end = now.saturating_sub(ENDS_BEFORE).as_secs();
    let begin = end.saturating_sub(length.as_secs());
    let mut text = String::new();
    for name in [SLO_TOTAL, SLO_BAD] {
        writeln!(text, "# TYPE {name} gauge")?;
        for total in totals {
            let labels = total.labels.iter().filter(|(label, _)| *label != "__name__");
            let labels =
                labels.map(|(label, value)| format!("{label}=\"{value}\"")).collect::<Vec<_>>().join(",");
            let value = if name == SLO_TOTAL { total.value } else { 0.0 };
            for at in (begin..end).step_by(usize::try_from(STEP.as_secs())?) {
                writeln!(text, "{name}{{{labels}}} {value} {at}")?;
            }
        }
    }
    text.push_str("# EOF\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::text;
    use crate::prometheus::Sample;

    #[test]
    fn the_past_is_as_the_present_and_nothing_in_it_is_bad() {
        let labels = [("__name__", "x"), ("cluster", "c"), ("slo", "delivery")];
        let labels: BTreeMap<_, _> = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let total = Sample { labels, value: 2.5 };
        let text = text(&[total], Duration::from_secs(1000), Duration::from_secs(30)).unwrap();
        let expected = "# TYPE debros:slo_total:rate5m gauge\n\
                        debros:slo_total:rate5m{cluster=\"c\",slo=\"delivery\"} 2.5 910\n\
                        debros:slo_total:rate5m{cluster=\"c\",slo=\"delivery\"} 2.5 925\n\
                        # TYPE debros:slo_bad:rate5m gauge\n\
                        debros:slo_bad:rate5m{cluster=\"c\",slo=\"delivery\"} 0 910\n\
                        debros:slo_bad:rate5m{cluster=\"c\",slo=\"delivery\"} 0 925\n\
                        # EOF\n";
        assert_eq!(text, expected);
    }
}
