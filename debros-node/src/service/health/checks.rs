//! The checks of single parts: probes, members, storage, clock, disk.

use debros_proto::{NodeId, limits, v1};

use super::{Check, Finding, Health, Verdict};
use crate::service::prober::{Probe, Probed};

/// A probe that has failed so often in a row is no hiccup of an election any more.
const FAILURES_OF_AN_OUTAGE: u32 = 2;
/// How many are named where many are meant.
pub(super) const NAMED_MAX: usize = 3;

impl Health {
    /// What the prober found, one check a probe.
    pub(super) async fn probes(&self) -> Vec<Check> {
        let prober = &self.parts.prober;
        if !prober.is_on() {
            return Vec::new();
        }
        let probed = prober.latest().await;
        let check = |probe: Probe| {
            let found = probed.iter().find(|probed| probed.probe == probe);
            let finding = found.map_or_else(
                || {
                    Finding::warning(
                        "not probed yet",
                        "wait: a node probes once its cluster has been the same for a few seconds",
                    )
                },
                probe_finding,
            );
            let took = found.map(|found| found.took).unwrap_or_default();
            Check { name: format!("probe {}", probe.as_str()), finding, took }
        };
        Probe::ALL.into_iter().map(check).collect()
    }

    pub(super) fn membership(&self) -> Finding {
        let cluster = match self.parts.cluster.get() {
            Err(failure) => {
                let next = "see that a member runs at an address of discovery.bootstrap_peers";
                return Finding::failed(failure.message, next);
            }
            Ok(cluster) => cluster,
        };
        match (cluster.meta().leader().filter(|_| cluster.meta().is_led()), cluster.warnings()) {
            (None, _) => Finding::failed(
                "the meta group has no leader: the cluster's map cannot change, data is served on",
                "start the nodes that are away (`debros cluster members` names them): a majority of its voters \
                 elects one",
            ),
            (Some(_), warnings) if !warnings.is_empty() => Finding::warning(
                warnings.join("; "),
                "start more nodes: replicas are added by themselves; or ask for fewer with \
                 `debros database create --replication-factor`",
            ),
            (Some(leader), _) => Finding::ok(format!("node {} leads the meta group", leader.node)),
        }
    }

    pub(super) fn peers(&self) -> Finding {
        let Ok(cluster) = self.parts.cluster.get() else {
            return Finding::ok("no members are known yet");
        };
        let map = cluster.map();
        let others: Vec<_> = map.members().filter(|node| node.id != cluster.node()).collect();
        let known = self.parts.network.peers();
        let now = self.parts.clock.unix_ms();
        let away: Vec<(NodeId, String)> = others
            .iter()
            .filter(|node| !node.peer_id.parse().is_ok_and(|peer| self.parts.network.is_connected(peer)))
            .map(|node| {
                let heard = known.iter().find(|known| known.peer.to_string() == node.peer_id);
                let seen = heard.and_then(|known| known.last_seen_ms).map_or_else(
                    || "not seen by this node".to_owned(),
                    |seen| format!("last seen {} s ago", now.saturating_sub(seen) / 1000),
                );
                (node.id, format!("node {} ({seen})", node.id))
            })
            .collect();
        let connected = others.len() - away.len();
        let all = format!("connected to {connected} of {} other members", others.len());
        let Some((first, _)) = away.first() else { return Finding::ok(all) };
        Finding::warning(
            format!("{all}; away: {}", named(away.iter().map(|(_, told)| told.clone()))),
            format!(
                "start node {first}, or see that this node reaches it; if it is gone for good: \
                 `debros cluster leave {first}`"
            ),
        )
    }

    /// Whether this node serves its share of the storage, and what it still owes to others.
    pub(super) fn storage(&self) -> Finding {
        let kv = match self.parts.kv.get() {
            Ok(kv) => kv,
            Err(failure) => {
                let next = "see the check `cluster`; a node that was removed needs an empty data folder to join again";
                return Finding::failed(failure.message, next);
            }
        };
        let status = kv.status();
        let v1::StorageStatus { layout_version, partitions, partitions_to_copy, hinted_bytes, .. } = status;
        match (layout_version, hinted_bytes, partitions_to_copy) {
            (0, ..) => Finding::warning(
                "there is no layout yet",
                "wait: the meta group's leader makes one within seconds; see the check `cluster`",
            ),
            (_, hinted, _) if hinted >= limits::HINTS_BYTES_TOLD => Finding::warning(
                format!("{hinted} bytes of writes wait for replicas that are away"),
                "start the nodes that the check `peers` names: what waits is delivered by itself",
            ),
            (version, _, 0) => {
                Finding::ok(format!("answers for {partitions} partitions of layout {version}"))
            }
            (version, _, left) => {
                Finding::ok(format!("layout {version} is being followed: {left} partitions to copy"))
            }
        }
    }

    pub(super) fn clock(&self) -> Finding {
        let Ok(kv) = self.parts.kv.get() else {
            return Finding::ok("not compared before the storage serves");
        };
        let connected = self.parts.cluster.get().is_ok_and(|cluster| {
            let map = cluster.map();
            let mut others = map.members().filter(|node| node.id != cluster.node());
            others.any(|node| node.peer_id.parse().is_ok_and(|peer| self.parts.network.is_connected(peer)))
        });
        let max = limits::CLOCK_OFFSET_MAX.as_millis() as u64;
        let next = "synchronise this machine's clock: `chronyc makestep`, or `timedatectl set-ntp true`";
        match kv.clock_offset_ms() {
            None if connected => Finding::warning(
                "not compared with another member yet",
                "wait a few seconds; if it stays, see that nodes reach each other (`debros peers`)",
            ),
            None => Finding::ok("there is no other member in reach to compare with"),
            Some(offset) if offset.unsigned_abs() > max => {
                let told =
                    format!("{}: beyond {max} ms this node stamps no writes of the storage", off(offset));
                Finding::failed(told, next)
            }
            Some(offset) if offset.unsigned_abs() > max / 2 => {
                let told = format!("{}: beyond {max} ms this node would stamp no writes", off(offset));
                Finding::warning(told, next)
            }
            Some(offset) => Finding::ok(off(offset)),
        }
    }

    pub(super) fn disk(&self) -> Finding {
        let free = self.parts.disk.free_bytes() >> 20;
        match self.parts.disk.check() {
            Ok(()) => Finding::ok(format!("{free} MiB free, above the reserve")),
            Err(failure) if self.parts.disk.is_low() => Finding::failed(
                format!("{} ({free} MiB free)", failure.message),
                "`df -h` on database.data_dir and storage.data_dir; delete, or grow the volume: writes go on by themselves",
            ),
            Err(failure) => Finding::failed(
                failure.message,
                "`debros health --verbose` names the node: the one whose check `disk` tells its free space",
            ),
        }
    }
}

/// Where this node's clock stands, by how far the others are ahead of it.
fn off(offset_ms: i64) -> String {
    let (distance, side) = (offset_ms.unsigned_abs(), if offset_ms > 0 { "behind" } else { "ahead of" });
    match distance {
        0 => "at the median of the members".to_owned(),
        _ => format!("{distance} ms {side} the median of the members"),
    }
}

fn probe_finding(probed: &Probed) -> Finding {
    let through =
        probed.through.map_or_else(|| "on this node alone".to_owned(), |node| format!("through node {node}"));
    let done = match probed.probe {
        Probe::Storage => "a key was written and read",
        Probe::Database => "a row was written and read",
        Probe::PubSub => "a message was published and received",
    };
    let Some(reason) = &probed.failure else { return Finding::ok(format!("{done} {through}")) };
    let verdict =
        if probed.failed_in_a_row < FAILURES_OF_AN_OUTAGE { Verdict::Warning } else { Verdict::Failed };
    let times = match probed.failed_in_a_row {
        1 => "once".to_owned(),
        times => format!("{times} times in a row"),
    };
    let next = match probed.probe {
        Probe::Storage => {
            "see the checks `storage`, `clock`, `disk` and `peers` here and on the node it names"
        }
        Probe::Database => {
            "see the checks `leaders`, `quorum`, `disk` and `peers`; `debros status` shows the groups"
        }
        Probe::PubSub => "see the check `peers`; `debros peers` shows whether nodes reach each other",
    };
    Finding { verdict, message: format!("failed {times}: {reason}"), next_step: next.to_owned() }
}

/// The first few of these, and how many more there are.
pub(super) fn named(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    let more = all.len().saturating_sub(NAMED_MAX);
    let shown = all[..all.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
