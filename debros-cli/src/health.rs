//! Health for people: in short what is not well, in full every check of every node with what to do. Takes the checks
//! apart by their names, which are `database`, `node PEER` and `node PEER: CHECK`.

use std::collections::BTreeMap;
use std::fmt::Write;

use debros_sdk::{Health, HealthCheck, HealthStatus, Member};

use crate::table::{broken, duration, harmless, plural, table};

/// A message is broken into lines of so many characters, so that it fits beside its check.
const LINE_CHARS: usize = 76;
/// The checks of a node stand this far in.
const INDENT: &str = "                    ";

/// What `health` found, by node.
pub(crate) struct Report<'a> {
    status: &'a HealthStatus,
    /// What this client asked itself.
    own: Vec<(&'a str, &'a HealthCheck)>,
    nodes: Vec<Node<'a>>,
}

struct Node<'a> {
    name: String,
    /// Whether it answered, and its own verdict.
    itself: Option<&'a HealthCheck>,
    checks: Vec<(&'a str, &'a HealthCheck)>,
}

impl<'a> Report<'a> {
    /// Takes the checks apart; nodes are named by their ids where these are known.
    pub(crate) fn new(status: &'a HealthStatus, members: &[Member]) -> Self {
        let mut own = Vec::new();
        let mut nodes: BTreeMap<(u64, &str), Node<'a>> = BTreeMap::new();
        for (name, check) in &status.checks {
            let Some(node) = name.strip_prefix("node ") else {
                own.push((name.as_str(), check));
                continue;
            };
            let (peer, checked) =
                node.split_once(": ").map_or((node, None), |(peer, check)| (peer, Some(check)));
            let id = members.iter().find(|member| member.peer_id == peer).map(|member| member.node_id);
            let found = nodes.entry((id.unwrap_or(u64::MAX), peer)).or_insert_with(|| {
                let name = id.map_or_else(|| harmless(peer), |id| id.to_string());
                Node { name, itself: None, checks: Vec::new() }
            });
            match checked {
                Some(checked) => found.checks.push((checked, check)),
                None => found.itself = Some(check),
            }
        }
        Self { status, own, nodes: nodes.into_values().collect() }
    }

    /// What is not well, one line a kind of trouble.
    pub(crate) fn in_short(&self) -> String {
        let mut troubles: BTreeMap<&str, (Health, Vec<String>, &str)> = BTreeMap::new();
        let mut well = 0;
        let mut note = |check: &'a str, node: &str, found: &'a HealthCheck| {
            if found.status == Health::Healthy {
                well += 1;
                return;
            }
            let trouble = troubles.entry(check).or_insert((found.status, Vec::new(), &found.message));
            if found.status > trouble.0 {
                (trouble.0, trouble.2) = (found.status, &found.message);
            }
            trouble.1.push(node.to_owned());
        };
        for &(check, found) in &self.own {
            note(check, "this client", found);
        }
        for node in &self.nodes {
            // One that answers is told by its checks.
            if let Some(itself) = node.itself.filter(|_| node.checks.is_empty()) {
                note("does not answer", &node.name, itself);
            }
            for &(check, found) in &node.checks {
                note(check, &node.name, found);
            }
        }
        let mut told = self.headline();
        if !troubles.is_empty() {
            let mut shown = table(&["check", "status", "at node", "finding"]);
            for (check, (status, nodes, message)) in &troubles {
                let finding = broken(&harmless(message), LINE_CHARS).join("\n");
                shown.add_row([harmless(check), status.to_string(), nodes.join(" "), finding]);
            }
            let _ = write!(told, "\n{shown}");
        }
        let _ = write!(
            told,
            "\n{} well; `debros health --verbose` explains each and the next step",
            plural(well, "check")
        );
        told
    }

    /// Every check of every node, and what to do.
    pub(crate) fn in_full(&self) -> String {
        let mut told = self.headline();
        told.push_str("\n\nas this client sees it");
        for (name, check) in &self.own {
            tell(&mut told, name, check);
        }
        for node in &self.nodes {
            let verdict = match node.itself {
                Some(check) if node.checks.is_empty() => format!("{}: it does not answer", check.status),
                Some(check) => check.status.to_string(),
                None => "not asked".to_owned(),
            };
            let _ = write!(told, "\n\nnode {}: {verdict}", node.name);
            if let Some(check) = node.itself.filter(|_| node.checks.is_empty()) {
                tell(&mut told, "answer", check);
            }
            for (name, check) in &node.checks {
                tell(&mut told, name, check);
            }
        }
        told
    }

    fn headline(&self) -> String {
        format!("{}; a linearizable read took {}", self.status.status, duration(self.status.response_time))
    }
}

fn tell(told: &mut String, name: &str, check: &HealthCheck) {
    let word = match check.status {
        Health::Healthy => "ok",
        Health::Degraded => "warning",
        Health::Unhealthy => "FAILED",
    };
    let mut lines = broken(&harmless(&check.message), LINE_CHARS).into_iter();
    let _ = write!(told, "\n  {:<15}{word:<8}{}", harmless(name), lines.next().unwrap_or_default());
    for line in lines {
        let _ = write!(told, "\n  {INDENT}   {line}");
    }
    for (index, line) in broken(&harmless(&check.next_step), LINE_CHARS).into_iter().enumerate() {
        let lead = if index == 0 { "->" } else { "  " };
        let _ = write!(told, "\n  {INDENT}{lead} {line}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, SystemTime};

    use debros_sdk::{Health, HealthCheck, HealthStatus, Member, MemberState};

    use super::Report;

    fn check(status: Health, message: &str, next_step: &str) -> HealthCheck {
        let (message, next_step) = (message.to_owned(), next_step.to_owned());
        HealthCheck { status, message, took: Duration::from_millis(1), next_step }
    }

    fn member(node_id: u64, peer_id: &str) -> Member {
        Member {
            node_id,
            peer_id: peer_id.to_owned(),
            addresses: Vec::new(),
            zone: String::new(),
            state: MemberState::Active,
            voter: true,
            leader: false,
            connected: true,
            version: String::new(),
        }
    }

    fn one_node_gone() -> HealthStatus {
        let checks = [
            ("database", check(Health::Healthy, "a linearizable read was answered", "")),
            ("node AA", check(Health::Degraded, "the node says degraded", "")),
            ("node AA: disk", check(Health::Healthy, "900 MiB free\u{1b}", "")),
            ("node AA: quorum", check(Health::Degraded, "one node more and it is over", "start node 2")),
            ("node BB", check(Health::Unhealthy, "no connection", "see that it runs")),
        ];
        HealthStatus {
            status: Health::Degraded,
            checks: checks
                .into_iter()
                .map(|(name, check)| (name.to_owned(), check))
                .collect::<BTreeMap<_, _>>(),
            last_updated: SystemTime::UNIX_EPOCH,
            response_time: Duration::from_millis(2),
        }
    }

    #[test]
    fn in_short_only_what_is_not_well_is_told() {
        let status = one_node_gone();
        let golden = "\
degraded; a linearizable read took 2.0 ms
┌─────────────────┬───────────┬─────────┬──────────────────────────────┐
│ check           ┆ status    ┆ at node ┆ finding                      │
╞═════════════════╪═══════════╪═════════╪══════════════════════════════╡
│ does not answer ┆ unhealthy ┆ 2       ┆ no connection                │
│ quorum          ┆ degraded  ┆ 1       ┆ one node more and it is over │
└─────────────────┴───────────┴─────────┴──────────────────────────────┘
2 checks well; `debros health --verbose` explains each and the next step";
        assert_eq!(Report::new(&status, &[member(1, "AA"), member(2, "BB")]).in_short(), golden);
    }

    #[test]
    fn in_full_every_check_is_told_with_its_next_step() {
        let status = one_node_gone();
        let golden = "\
degraded; a linearizable read took 2.0 ms

as this client sees it
  database       ok      a linearizable read was answered

node 1: degraded
  disk           ok      900 MiB free\\u{1b}
  quorum         warning one node more and it is over
                      -> start node 2

node BB: unhealthy: it does not answer
  answer         FAILED  no connection
                      -> see that it runs";
        assert_eq!(Report::new(&status, &[member(1, "AA")]).in_full(), golden);
    }
}
