//! The dashboard over a leader's death, as looks that are made up, and its frame on the smallest terminal.

use std::collections::BTreeMap;
use std::time::Duration;

use debros_sdk::{
    EngineActivity, GroupInfo, Health, HealthCheck, Member, MemberState, NetworkStatus, NodeAnswer,
    NodeOverview, Overview,
};
use tokio::time::Instant;

use super::dashboard::{Column, Dashboard};
use super::drawn;

/// A look at three nodes `seconds` after the beginning: `leader` leads, `away` does not answer.
fn look(start: Instant, seconds: u64, leader: u64, away: Option<u64>) -> Overview {
    let nodes = (1..=3).map(|id| NodeOverview {
        member: member(id),
        answer: match away == Some(id) {
            true => Err("the connection broke".to_owned()),
            false => Ok(answer(id, seconds, leader, away)),
        },
        last_seen: None,
    });
    let at = start + Duration::from_secs(seconds);
    Overview { cluster_id: "3f2a77c1d0".to_owned(), epoch: 7, nodes: nodes.collect(), at }
}

fn member(node_id: u64) -> Member {
    Member {
        node_id,
        peer_id: format!("12D3KooW{node_id}"),
        addresses: Vec::new(),
        zone: String::new(),
        state: MemberState::Active,
        voter: true,
        leader: false,
        connected: true,
        version: String::new(),
    }
}

fn answer(id: u64, seconds: u64, leader: u64, away: Option<u64>) -> NodeAnswer {
    let group = |group, name: &str| GroupInfo {
        group,
        name: name.to_owned(),
        role: if id == leader { "leader" } else { "follower" }.to_owned(),
        leader,
        term: leader,
        last_log_index: 100,
        applied_index: 100 - id,
        voters: vec![1, 2, 3],
        learners: vec![],
    };
    let latency = vec![(Some(Duration::from_micros(500)), seconds * 40 * id), (None, 0)];
    let database = EngineActivity {
        engine: "database".to_owned(),
        requests: seconds * 40 * id,
        failed: seconds,
        delivered: 0,
        latency,
    };
    let status = NetworkStatus {
        node_id: format!("12D3KooW{id}"),
        connected: true,
        peer_count: 2,
        database_size: 0,
        uptime: Duration::from_secs(60 + seconds),
        member_id: id,
        cluster_id: String::new(),
        version: String::new(),
        zone: String::new(),
        epoch: 7,
        listen_addresses: vec![],
        groups: vec![group(0, "meta"), group(9, "app/default")],
        warnings: vec![],
        storage: None,
        activity: vec![database],
        disk_free: 40 << 30,
        belongs_to: String::new(),
        begins_anew: false,
    };
    let quorum = HealthCheck {
        status: Health::Degraded,
        message: "one node more and these lose their quorum: meta (2 of 3 voters in reach)".to_owned(),
        took: Duration::ZERO,
        next_step: "start node 1 again".to_owned(),
    };
    let checks: BTreeMap<_, _> = away.map(|_| ("quorum".to_owned(), quorum)).into_iter().collect();
    let health = if away.is_some() { Health::Degraded } else { Health::Healthy };
    NodeAnswer { status, health, checks }
}

fn leaders_death() -> Dashboard {
    let (mut dashboard, start) = (Dashboard::default(), Instant::now());
    dashboard.take(Ok(look(start, 0, 1, None)));
    dashboard.take(Ok(look(start, 1, 1, None)));
    dashboard.take(Ok(look(start, 2, 0, Some(1))));
    dashboard.take(Ok(look(start, 3, 2, Some(1))));
    dashboard
}

#[test]
fn a_leaders_death_is_told_on_the_smallest_terminal() {
    let golden = "\
debros top  cluster 3f2a77c1  epoch 7  3 nodes: 0 well  2 not well  1 away
node state     leads sql/s p50   p99   kv/s  p99   msg in/out fail/s disk
1    away                                                            0s ago
2*   degraded  2     80    500us 500us -     -     -          1.0    40 GiB
3    degraded  0     120   500us 500us -     -     -          1.0    40 GiB
 leaders of 2 groups ───────────────────────────────────────────────────────────
meta                            node 2     term 2      lag 3      voters 1 2 3
app/default                     node 2     term 2      lag 3      voters 1 2 3
 wrong: 2 ──────────────────────────────────────────────────────────────────────
answer          at 1: node 1 does not answer: the connection broke
                -> start node 1, or `debros cluster leave 1` if it is gone for
                   good
quorum          at 2 3: one node more and these lose their quorum: meta (2 of 3
                voters in reach)
                -> start node 1 again
 what happened ─────────────────────────────────────────────────────────────────
         now  node 2 leads app/default in term 2
         now  node 2 leads meta in term 2
         now  app/default has no leader; node 1 led it
         now  meta has no leader; node 1 led it
         now  node 3 was healthy and is degraded
         now  node 2 was healthy and is degraded
         now  node 1 does not answer
q quit   s sort (now: node)   r reverse   ? help";
    assert_eq!(drawn(&leaders_death(), 80, 24), golden);
}

#[test]
fn nodes_are_sorted_as_is_asked_and_help_covers_them() {
    let mut dashboard = leaders_death();
    let order = |dashboard: &Dashboard| dashboard.rows().iter().map(|row| row.node).collect::<Vec<_>>();
    assert_eq!(order(&dashboard), [1, 2, 3]);
    dashboard.sort_by_next();
    dashboard.sort_by_next();
    assert_eq!((dashboard.sorted_by(), order(&dashboard)), (Column::Sql, vec![3, 2, 1]));
    dashboard.reverse();
    assert_eq!(order(&dashboard), [1, 2, 3]);
    dashboard.toggle_help();
    assert!(drawn(&dashboard, 80, 24).contains("leads the meta group"));
}

#[test]
fn a_frame_as_json_has_rates_leaders_and_what_is_wrong() {
    let frame = leaders_death().json();
    assert_eq!(frame["nodes"][0]["state"], "away");
    assert!(frame["nodes"][0]["last_seen_unix_ms"].is_u64(), "{frame}");
    assert_eq!(frame["nodes"][1]["database"]["per_second"], 80.0);
    assert_eq!(frame["nodes"][1]["database"]["p99_us"], 500);
    assert_eq!(frame["groups"][1]["leader"], 2);
    assert_eq!(frame["alarms"][1]["nodes"], serde_json::json!([2, 3]));
}

#[test]
fn whatever_the_size_of_the_terminal_something_is_drawn() {
    let mut dashboard = leaders_death();
    for (width, height) in [(1, 1), (20, 5), (80, 10), (300, 100)] {
        assert!(!drawn(&dashboard, width, height).is_empty());
    }
    dashboard.take(Err("no node could be reached".to_owned()));
    assert!(drawn(&dashboard, 120, 24).contains("no node answers now: this is old"));
    assert!(drawn(&Dashboard::default(), 80, 24).starts_with("debros top: asking the cluster"));
}
