//! `cargo xtask observe --faults`: a clock is skewed, a follower stands still, a node is killed, a disk fills, on a real cluster under load. Each
//! must turn exactly its own checks and alerts, none besides at any moment, and all clear when it is over.
//!
//! The alerts are the shipped ones but for their times: days and hours would be waited for, so time in the rules goes ten times as fast
//! ([`TEMPO`]), which the files beside the Prometheus of the run show. Faults heal as fast as they do, so what the shipped alerts let pass is harder to let pass here.

mod history;
mod machines;
mod signs;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::sleep;

use super::load::{Load, Patience};
use super::{CLUSTER, NODES, Run, SCRAPE_SECONDS, fresh};
use crate::cluster::{Cluster, Layout};
use crate::membership;
use crate::prometheus::{Programs, Prometheus, scrape_config_with};
use crate::rules::{self, Tempo};
use crate::slo::Slo;
use machines::{Clock, Filling, on_own_disk};
use signs::Signs;

/// How much faster time goes in the rules. More, and an election would be a group without a leader.
const TEMPO: Tempo = Tempo::times(10);
/// The node whose clock can be set, and the one with a disk of its own: the first is left to what must stay.
const WITH_CLOCK: usize = 1;
const ON_OWN_DISK: usize = 2;
const DISK: &str = "3g";
/// More than what an alert lets pass, and less than what makes a node refuse to stamp writes: users feel nothing yet.
const SKEW: Duration = Duration::from_millis(180);
/// The load goes on so long before its rates are taken for the past.
const CALM: Duration = Duration::from_secs(45);
/// An alert must hold, some of them for a quarter of an hour in the rules; and a cluster heals within a minute.
const SHOWS_WITHIN: Duration = Duration::from_secs(240);
/// Then it goes on so long, and nothing else may show.
const STAYS: Duration = Duration::from_secs(15);
/// A budget's page clears when its short window has passed, the longest of which is half an hour in the rules.
const CLEARS_WITHIN: Duration = Duration::from_secs(420);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Rates of the load must be over what is left of them when a fault ends.
const FADED: Duration = Duration::from_secs(60);

/// Starts everything, and brings about one fault after the other.
pub(super) fn run(programs: &Programs, slo: &Slo, run: &Run) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let folder = fresh(&run.folder.join("prometheus"))?;
        fs::create_dir_all(&folder)?;
        let clock = Clock::set_up(&run.folder.join("clock"))?;
        let mut cluster = start_cluster(run, clock.as_ref()).await?;
        let load = Load::start(&cluster, Patience::Steadfast).await?;
        let prometheus = start_prometheus(programs, slo, &cluster, &folder).await?;
        println!("prometheus at {}; its rules, {TEMPO} as fast: {}", prometheus.url(), folder.display());
        let mut observed = Observed { slo, cluster: &mut cluster, prometheus: &prometheus };
        let outcome = observed.all(clock.as_ref(), &run.folder).await;
        let asked = load.stop().await;
        prometheus.stop().await?;
        cluster.stop().await?;
        outcome?;
        println!("the load meanwhile: {}", asked?);
        Ok(())
    })
}

async fn start_cluster(run: &Run, clock: Option<&Clock>) -> Result<Cluster> {
    let (program, folder) = (run.program.clone(), run.folder.join("cluster"));
    let layout = Layout { program, folder, nodes: NODES, keep_data: false };
    let within = |index: usize, data: &Path| match (index, clock) {
        (WITH_CLOCK, Some(clock)) => clock.around(),
        (ON_OWN_DISK, _) => on_own_disk(data, DISK),
        _ => Vec::new(),
    };
    let mut cluster = Cluster::prepare_within(layout, |_| (), within)?;
    cluster.start_all().await?;
    Ok(cluster)
}

/// A Prometheus with the hurried rules, and with a past.
async fn start_prometheus(
    programs: &Programs,
    slo: &Slo,
    cluster: &Cluster,
    folder: &Path,
) -> Result<Prometheus> {
    let files: [(PathBuf, String); 2] = [
        (folder.join("rules.yaml"), rules::rules_file(slo, TEMPO)?),
        (folder.join("alerts.yaml"), rules::alerts_file(slo, TEMPO)?),
    ];
    for (path, text) in &files {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let configuration = scrape_config_with(cluster, CLUSTER, SCRAPE_SECONDS, &files.map(|(path, _)| path))?;
    let prometheus = Prometheus::start(programs, folder, &configuration).await?;
    println!("a mixed load for {CALM:?}, to know what is usual");
    sleep(CALM).await;
    let usual = history::now(&prometheus).await?;
    prometheus.stop().await?;
    let longest = slo.burns.iter().map(|burn| burn.long.minutes() * 60).max().unwrap_or_default();
    history::write(programs, folder, &usual, Duration::from_secs(TEMPO.seconds(longest)))?;
    Prometheus::start(programs, folder, &configuration).await
}

/// What is watched while faults come and go.
struct Observed<'a> {
    slo: &'a Slo,
    cluster: &'a mut Cluster,
    prometheus: &'a Prometheus,
}

impl Observed<'_> {
    async fn all(&mut self, clock: Option<&Clock>, folder: &Path) -> Result<()> {
        self.clear("before any fault", &Signs::default()).await?;
        if let Some(clock) = clock {
            self.skewed_clock(clock).await?;
        }
        self.still_follower().await?;
        self.killed_node().await?;
        self.full_disk(folder).await
    }

    fn name(&self, index: usize) -> &str {
        self.cluster.nodes()[index].name()
    }

    async fn skewed_clock(&mut self, clock: &Clock) -> Result<()> {
        let node = self.name(WITH_CLOCK).to_owned();
        println!("\na clock: {node}'s is set {SKEW:?} ahead");
        let expected = Signs::of([format!("clock {node}")], [format!("DebrosClockSkew {node}")]);
        clock.ahead(SKEW)?;
        self.shows("the clock", &expected, &[0, 1, 2]).await?;
        clock.ahead(Duration::ZERO)?;
        self.clear("the clock is right again", &expected).await
    }

    async fn still_follower(&mut self) -> Result<()> {
        let leader = self.leader().await?;
        let still = if leader == WITH_CLOCK { ON_OWN_DISK } else { WITH_CLOCK };
        println!("\na follower: {} stands still (SIGSTOP)", self.name(still));
        let expected = self.absent(still);
        self.cluster.signal(still, libc::SIGSTOP);
        let shown = self.shows("the follower", &expected, &others(still)).await;
        self.cluster.signal(still, libc::SIGCONT);
        shown?;
        self.clear("the follower goes on", &expected).await
    }

    async fn killed_node(&mut self) -> Result<()> {
        // The one that leads, but not the one whose disk would go with it.
        let leader = self.leader().await?;
        let killed = if leader == ON_OWN_DISK { 0 } else { leader };
        println!("\na node: {} is killed (SIGKILL)", self.name(killed));
        let expected = self.absent(killed);
        self.cluster.kill(killed).await?;
        self.shows("the node", &expected, &others(killed)).await?;
        self.cluster.start(killed)?;
        self.cluster.ready(killed).await?;
        self.clear("the node is back", &expected).await
    }

    async fn full_disk(&mut self, folder: &Path) -> Result<()> {
        let node = &self.cluster.nodes()[ON_OWN_DISK];
        let (name, pid) = (node.name().to_owned(), node.pid().context("the node runs")?);
        println!("\na disk: {name}'s, of {DISK}, fills slowly");
        let mut filling = Filling::begin(pid, &folder.join("cluster").join(&name).join("data"))?;
        let soon = Signs::of([""; 0], [format!("DebrosDiskFullSoon {name}")]);
        tokio::select! {
            shown = self.shows("the disk", &soon, &[0, 1, 2]) => shown?,
            filled = filling.slowly() => filled?,
        }
        println!("\nthe same disk: it is full");
        filling.fill()?;
        // Users' writes are refused, so the probes' are: at every node, whichever has no room.
        let refused = (0..NODES).flat_map(|index| {
            ["disk", "probe database", "probe storage"].map(|check| format!("{check} {}", self.name(index)))
        });
        let burnt = ["DebrosAvailabilityBudgetBurns", "DebrosProbesBudgetBurns"].map(str::to_owned);
        let disk = ["DebrosDiskFull", "DebrosDiskFullSoon"].map(|alert| format!("{alert} {name}"));
        let full = Signs::of(refused, burnt.into_iter().chain(disk));
        self.shows("the full disk", &full, &[0, 1, 2]).await?;
        filling.remove()?;
        self.clear("the disk has room again", &full).await
    }

    /// The process that leads the application's database.
    async fn leader(&self) -> Result<usize> {
        let client = membership::client(self.cluster, super::load::APPLICATION).await?;
        let leader = membership::leader(self.cluster, &client).await;
        client.close().await;
        leader
    }

    /// What shows of a node that is away.
    fn absent(&self, index: usize) -> Signs {
        let checks = others(index)
            .into_iter()
            .flat_map(|other| ["peers", "quorum"].map(|check| format!("{check} {}", self.name(other))));
        let down = format!("DebrosNodeDown {}", self.name(index));
        Signs::of(checks, [down, "DebrosQuorumSlackZero".to_owned()])
    }

    /// Waits until exactly these checks and alerts show, and sees that it stays so. An alert that is not among them fails at once; a
    /// check may turn for the moment of an election.
    async fn shows(&self, what: &str, expected: &Signs, asked: &[usize]) -> Result<()> {
        let began = Instant::now();
        let mut since: Option<Instant> = None;
        let mut told = BTreeSet::new();
        loop {
            let now = self.signs(expected, asked).await?;
            for alert in now.alerts.difference(&told.clone()) {
                println!("{:>6.1} s  {alert} fires", began.elapsed().as_secs_f64());
                told.insert(alert.clone());
            }
            if now == *expected {
                let since = *since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STAYS {
                    println!("{:>6.1} s  {now}", began.elapsed().as_secs_f64());
                    return Ok(());
                }
            } else if since.is_some() && now.alerts != expected.alerts {
                bail!("{what}: {now} show, having been {expected}");
            } else if began.elapsed() > SHOWS_WITHIN {
                bail!("{what}: {now} show after {SHOWS_WITHIN:?} instead of {expected}");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn signs(&self, expected: &Signs, asked: &[usize]) -> Result<Signs> {
        let alerts = signs::firing(self.prometheus).await?;
        let unexpected: Vec<_> = alerts.difference(&expected.alerts).cloned().collect();
        ensure!(unexpected.is_empty(), "{} fires, and should not", unexpected.join(", "));
        Ok(Signs { checks: signs::not_well(self.cluster, asked).await?, alerts })
    }

    /// Waits until nothing shows any more; what was expected may show until then. A ticket for a budget lasts as long as its short window, the longest
    /// of all: of that one it is shown when it clears if all stays well.
    async fn clear(&self, what: &str, before: &Signs) -> Result<()> {
        let began = Instant::now();
        loop {
            let now = self.signs(before, &[0, 1, 2]).await?;
            let burning = signs::burning(self.prometheus).await?;
            let tickets: BTreeSet<_> = burning.iter().filter(|(.., window)| self.is_slow(window)).collect();
            let pages = burning.len() > tickets.len();
            let causes = now.alerts.iter().any(|alert| burning.iter().all(|(name, ..)| name != alert));
            if now.checks.is_empty() && !pages && !causes && (tickets.is_empty() || began.elapsed() > FADED) {
                println!("{:>6.1} s  {what}: nothing shows any more", began.elapsed().as_secs_f64());
                for (name, level, _) in tickets {
                    self.clears_later(name, level).await?;
                }
                return Ok(());
            }
            if began.elapsed() > CLEARS_WITHIN {
                bail!("{what}: {now} still show after {CLEARS_WITHIN:?}");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether the alert of this long window is the slowest to clear.
    fn is_slow(&self, window: &str) -> bool {
        self.slo.burns.last().is_some_and(|burn| burn.long.as_str() == window)
    }

    /// The ticket of a budget: as its rule sees it when the short window has passed, with what there is until now.
    async fn clears_later(&self, alert: &str, level: &str) -> Result<()> {
        let burn = self.slo.burns.last().context("there is no burn")?;
        let level = self.slo.level(level).with_context(|| format!("there is no level {level}"))?;
        let later = Duration::from_secs(TEMPO.seconds(burn.short.minutes() * 60)).saturating_sub(FADED / 2);
        let at = (SystemTime::now() + later).duration_since(UNIX_EPOCH)?.as_secs();
        let still = self.prometheus.evaluate_at(&rules::burns_still(level, burn, TEMPO), at).await?;
        ensure!(still.is_empty(), "{alert} would go on after {later:?}, though all is well");
        println!("          {alert} ends as a ticket in {} min, if all stays well", later.as_secs() / 60);
        Ok(())
    }
}

/// All nodes but this one.
fn others(index: usize) -> Vec<usize> {
    (0..NODES).filter(|other| *other != index).collect()
}
