//! A cluster of debros on Kubernetes with the load in a pod beside it: steps are done one after the other, and each has its line in a table: how long it
//! took, the longest time without an acknowledged write, and whether that is within what was promised. It does not know what a step does.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::load::{End, Line, Second, now_ms};
use crate::image::USER;
use crate::k8s::{Access, wait_until};

/// The image and the pod of the load.
pub(super) const LOAD_IMAGE: &str = "debros.local/e2e-load:1";
const POD: &str = "e2e-load";
const UNTIL: &str = "/tmp/until";
const SECRET_FOLDER: &str = "/secret";
/// The pod connects, makes a table and fills the storage first.
const STARTED_WITHIN: Duration = Duration::from_secs(120);
/// Writes come back on their own after anything; longer is a failure in itself.
const RESUMED_WITHIN: Duration = Duration::from_secs(120);
/// Every row is read again.
const ENDED_WITHIN: Duration = Duration::from_secs(180);
const LOG_LINES_SHOWN: usize = 10;

/// Where the nodes are, and by which secret they admit.
pub(super) struct Target<'a> {
    pub(super) namespace: &'a str,
    /// A multiaddress.
    pub(super) address: &'a str,
    /// The Secret with the key `secret`, where admission is closed.
    pub(super) secret: Option<&'a str>,
    /// The Kubernetes node that no step disturbs, where the load is.
    pub(super) node: &'a str,
}

/// What a step promises.
#[derive(Clone, Copy)]
pub(super) enum Promise {
    /// Writes are away for so long at most.
    GapBelow(Duration),
    /// More than the cluster is built to survive: writes come back, and nothing is lost.
    OnlyNothingLost,
}

struct StepRow {
    name: String,
    took: Duration,
    row_gap_ms: u64,
    put_gap_ms: u64,
    promise: Promise,
}

impl StepRow {
    fn kept(&self) -> bool {
        match self.promise {
            Promise::GapBelow(most) => u128::from(self.row_gap_ms.max(self.put_gap_ms)) < most.as_millis(),
            Promise::OnlyNothingLost => true,
        }
    }
}

/// The load, and what was done under it.
pub(super) struct Stage {
    access: Access,
    namespace: String,
    rows: Vec<StepRow>,
    /// Other steps are left out.
    only: Option<String>,
}

impl Stage {
    /// Leaves out the steps whose names do not contain this.
    pub(super) fn only(self, only: Option<&str>) -> Self {
        Self { only: only.map(str::to_owned), ..self }
    }

    /// Starts the load and waits until it writes.
    pub(super) fn start(access: Access, target: &Target<'_>) -> Result<Self> {
        let stage = Self { access, namespace: target.namespace.to_owned(), rows: Vec::new(), only: None };
        apply(&stage.access, &pod(target).to_string())?;
        wait_until("the load to write", STARTED_WITHIN, || Ok(stage.seconds()?.len() > 1))
            .with_context(|| stage.log_end())?;
        Ok(stage)
    }

    /// Does something to the cluster, waits until writes are acknowledged again, and takes down what it cost.
    pub(super) fn step(
        &mut self,
        name: &str,
        promise: Promise,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if self.only.as_ref().is_some_and(|only| !name.contains(only)) {
            return Ok(());
        }
        println!("\n--- {name}");
        let (began, start) = (now_ms()?, Instant::now());
        act().with_context(|| format!("step `{name}` failed"))?;
        let (ended, took) = (now_ms()?, start.elapsed());
        let mut during = Vec::new();
        wait_until("writes to be acknowledged again", RESUMED_WITHIN, || {
            during = self.seconds()?;
            during.retain(|second| second.at_ms >= began);
            Ok(is_resumed(&during, ended))
        })
        .with_context(|| format!("after step `{name}`; {}", self.log_end()))?;
        let longest = |of: fn(&Second) -> u64| during.iter().map(of).max().unwrap_or(0);
        let row = StepRow {
            name: name.to_owned(),
            took,
            row_gap_ms: longest(|second| second.rows.longest_pause_ms),
            put_gap_ms: longest(|second| second.puts.longest_pause_ms),
            promise,
        };
        println!(
            "    {:.1} s; writes away: SQL {} ms, storage {} ms",
            took.as_secs_f64(),
            row.row_gap_ms,
            row.put_gap_ms
        );
        self.rows.push(row);
        Ok(())
    }

    /// Ends the load, has it read back all it wrote, and prints the table. An error when anything was lost or a promise was not kept.
    pub(super) fn finish(self) -> Result<()> {
        self.kubectl(&["exec", POD, "--", "sh", "-c", &format!(": > {UNTIL}")])?;
        let mut end = None;
        wait_until("the load to read back what it wrote", ENDED_WITHIN, || {
            end = self.lines()?.into_iter().find_map(|line| match line {
                Line::End(end) => Some(end),
                Line::Second(_) => None,
            });
            Ok(end.is_some())
        })
        .with_context(|| self.log_end())?;
        let end = end.context("the load has ended without a word")?;
        println!("\n{}", table(&self.rows, &end));
        let End { rows, puts, unknown, lost, problem } = &end;
        println!(
            "{rows} rows and {puts} puts were acknowledged, {lost} are lost; {unknown} rows are of unknown outcome"
        );
        self.kubectl(&["delete", "pod", POD, "--wait=false"])?;
        ensure!(*lost == 0, "{lost} acknowledged writes are lost");
        if let Some(problem) = problem {
            bail!("the books do not balance: {problem}");
        }
        let broken =
            self.rows.iter().filter(|row| !row.kept()).map(|row| row.name.as_str()).collect::<Vec<_>>();
        ensure!(broken.is_empty(), "writes were away for longer than promised: {}", broken.join(", "));
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.access.answer(&[&["--namespace", self.namespace.as_str()], arguments].concat())
    }

    fn lines(&self) -> Result<Vec<Line>> {
        // The pod's container may not have begun; then there is nothing yet.
        let log = self.kubectl(&["logs", POD]).unwrap_or_default();
        Ok(log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    fn seconds(&self) -> Result<Vec<Second>> {
        let phase = self.kubectl(&["get", "pod", POD, "--output=jsonpath={.status.phase}"])?;
        if phase == "Failed" {
            bail!("the load has failed");
        }
        let seconds = self.lines()?.into_iter().filter_map(|line| match line {
            Line::Second(second) => Some(second),
            Line::End(_) => None,
        });
        Ok(seconds.collect())
    }

    fn log_end(&self) -> String {
        let log = self.kubectl(&["logs", POD]).unwrap_or_else(|error| format!("{error:#}"));
        let lines = log.lines().collect::<Vec<_>>();
        let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n  ");
        format!("the end of the load's log:\n  {shown}")
    }
}

/// True when both kinds of writes were acknowledged in two lines behind the end of a step: what was away until then has ended in one of them.
fn is_resumed(seconds: &[Second], ended_ms: u64) -> bool {
    let after = seconds.iter().filter(|second| second.at_ms > ended_ms).collect::<Vec<_>>();
    let rises =
        |of: fn(&Second) -> u64| after.windows(2).filter(|pair| of(pair[1]) > of(pair[0])).count() >= 2;
    rises(|second| second.rows.acknowledged) && rises(|second| second.puts.acknowledged)
}

fn pod(target: &Target<'_>) -> Value {
    let mut environment = vec![json!({"name": "DEBROS_BOOTSTRAP", "value": target.address})];
    let mut mounts = vec![json!({"name": "tmp", "mountPath": "/tmp"})];
    let mut volumes = vec![json!({"name": "tmp", "emptyDir": {}})];
    if let Some(secret) = target.secret {
        let file = format!("{SECRET_FOLDER}/secret");
        environment.push(json!({"name": "DEBROS_CLUSTER_SECRET_FILE", "value": file}));
        mounts.push(json!({"name": "secret", "mountPath": SECRET_FOLDER, "readOnly": true}));
        volumes.push(json!({"name": "secret", "secret": {"secretName": secret}}));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": target.namespace},
        "spec": {
            "restartPolicy": "Never",
            "nodeName": target.node,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "load",
                "image": LOAD_IMAGE,
                "args": ["e2e", "load", "--until", UNTIL],
                "env": environment,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
        },
    })
}

/// Applies objects in YAML or JSON.
pub(super) fn apply(access: &Access, objects: &str) -> Result<()> {
    let mut command = access.kubectl()?;
    command.args(["apply", "--filename=-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut input = child.stdin.take().context("kubectl has no input")?;
    input.write_all(objects.as_bytes())?;
    drop(input);
    ensure!(child.wait()?.success(), "`kubectl apply` failed; what it printed above says why");
    Ok(())
}

fn table(rows: &[StepRow], end: &End) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["step", "took s", "SQL away ms", "storage away ms", "promised", "lost writes"]);
    for row in rows {
        let mut promised = String::new();
        match row.promise {
            Promise::GapBelow(most) => {
                let word = if row.kept() { "kept" } else { "BROKEN" };
                let _ = write!(promised, "< {} ms, {word}", most.as_millis());
            }
            Promise::OnlyNothingLost => promised.push_str("nothing lost"),
        }
        table.add_row([
            row.name.clone(),
            format!("{:.1}", row.took.as_secs_f64()),
            row.row_gap_ms.to_string(),
            row.put_gap_ms.to_string(),
            promised,
            end.lost.to_string(),
        ]);
    }
    for column in [1, 2, 3, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::load::{End, Progress, Second};
    use super::{Promise, StepRow, is_resumed, table};

    fn second(at_ms: u64, acknowledged: u64) -> Second {
        let progress = || Progress { acknowledged, longest_pause_ms: 5 };
        Second { at_ms, rows: progress(), puts: progress() }
    }

    #[test]
    fn writes_are_back_when_they_rise_twice_behind_the_end_of_a_step() {
        let stuck = [second(1, 5), second(1001, 5), second(2001, 5), second(3001, 5)];
        assert!(!is_resumed(&stuck, 1000));
        let back = [second(1, 5), second(1001, 5), second(2001, 6), second(3001, 7)];
        assert!(is_resumed(&back, 1000));
        assert!(!is_resumed(&back, 2000), "one rise may be of a write that began before");
    }

    #[test]
    fn a_broken_promise_shows() {
        let row = |gap, promise| StepRow {
            name: "step".into(),
            took: Duration::from_secs(1),
            row_gap_ms: gap,
            put_gap_ms: 1,
            promise,
        };
        let end = End { rows: 1, puts: 1, unknown: 0, lost: 0, problem: None };
        let most = Promise::GapBelow(Duration::from_secs(5));
        assert!(table(&[row(4_999, most)], &end).contains("kept"));
        assert!(table(&[row(5_000, most)], &end).contains("BROKEN"));
        assert!(table(&[row(50_000, Promise::OnlyNothingLost)], &end).contains("nothing lost"));
    }
}
