//! What `debros top` knows: the last two looks at the cluster, rates between them, what is wrong, and what happened
//! since it began. Plain data; asks nobody and draws nothing.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use debros_sdk::{EngineActivity, Health, NodeAnswer, NodeOverview, Overview};
use serde_json::{Value as Json, json};

/// What happened is remembered so far back.
const HAPPENED_MAX: usize = 50;

/// See the module.
#[derive(Default)]
pub(crate) struct Dashboard {
    last: Option<Overview>,
    before: Option<Overview>,
    /// When each node last answered this client, by node id.
    answered: BTreeMap<u64, SystemTime>,
    happened: VecDeque<(SystemTime, String)>,
    /// Why the last look failed, if it did.
    trouble: Option<String>,
    sort: Column,
    reversed: bool,
    help: bool,
}

/// What nodes are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Column {
    #[default]
    Node,
    State,
    Sql,
    Storage,
    Messages,
    Latency,
}

impl Column {
    const ALL: [Self; 6] = [Self::Node, Self::State, Self::Sql, Self::Storage, Self::Messages, Self::Latency];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::State => "state",
            Self::Sql => "sql/s",
            Self::Storage => "kv/s",
            Self::Messages => "msg/s",
            Self::Latency => "p99",
        }
    }

    fn next(self) -> Self {
        let place = Self::ALL.iter().position(|column| *column == self).unwrap_or_default();
        Self::ALL[(place + 1) % Self::ALL.len()]
    }
}

/// One node as a line.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) node: u64,
    /// Leads the meta group.
    pub(crate) leads_meta: bool,
    /// `None` when it does not answer.
    pub(crate) health: Option<Health>,
    /// Groups that it leads.
    pub(crate) leads: usize,
    pub(crate) sql: Rates,
    pub(crate) storage: Rates,
    pub(crate) messages: Rates,
    pub(crate) failed_per_second: f64,
    pub(crate) disk_free: Option<u64>,
    /// Since when it does not answer.
    pub(crate) last_seen: Option<SystemTime>,
}

/// What an engine did between two looks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    /// `None` before there are two looks, and where the node does not answer.
    pub(crate) per_second: Option<f64>,
    pub(crate) delivered_per_second: f64,
    /// The outer `None` is for no request, the inner one for longer than can be told.
    pub(crate) p50: Option<Option<Duration>>,
    pub(crate) p99: Option<Option<Duration>>,
}

/// A Raft group of the cluster, told by who leads it, or by who would know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// 0 when nobody says that it leads.
    pub(crate) leader: u64,
    pub(crate) term: u64,
    pub(crate) voters: Vec<u64>,
    /// How many entries the slowest replica that answers lacks of the leader's log.
    pub(crate) lag: u64,
}

/// A check that is not well.
#[derive(Clone, Debug)]
pub(crate) struct Alarm {
    pub(crate) nodes: Vec<u64>,
    pub(crate) check: String,
    pub(crate) status: Health,
    pub(crate) message: String,
    pub(crate) next_step: String,
}

impl Dashboard {
    /// Takes in a look, or why there was none.
    pub(crate) fn take(&mut self, look: Result<Overview, String>) {
        self.take_at(look, SystemTime::now());
    }

    fn take_at(&mut self, look: Result<Overview, String>, now: SystemTime) {
        let look = match look {
            Ok(look) => look,
            Err(reason) => {
                if self.trouble.is_none() {
                    self.note(now, format!("no node answers: {reason}"));
                }
                self.trouble = Some(reason);
                return;
            }
        };
        self.trouble = None;
        if let Some(before) = self.last.take() {
            for told in changes(&before, &look) {
                self.note(now, told);
            }
            self.before = Some(before);
        }
        let answering = look.nodes.iter().filter(|node| node.answer.is_ok());
        self.answered.extend(answering.map(|node| (node.member.node_id, now)));
        self.last = Some(look);
    }

    fn note(&mut self, at: SystemTime, told: String) {
        self.happened.push_front((at, told));
        self.happened.truncate(HAPPENED_MAX);
    }

    pub(crate) fn sort_by_next(&mut self) {
        self.sort = self.sort.next();
    }

    pub(crate) fn reverse(&mut self) {
        self.reversed = !self.reversed;
    }

    pub(crate) fn toggle_help(&mut self) {
        self.help = !self.help;
    }

    pub(crate) fn shows_help(&self) -> bool {
        self.help
    }

    pub(crate) fn sorted_by(&self) -> Column {
        self.sort
    }

    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(crate) fn cluster(&self) -> Option<(&str, u64)> {
        self.last.as_ref().map(|last| (last.cluster_id.as_str(), last.epoch))
    }

    pub(crate) fn happened(&self) -> impl Iterator<Item = &(SystemTime, String)> {
        self.happened.iter()
    }

    /// How many nodes are well, how many are not, and how many do not answer.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let rows = self.rows();
        let count = |holds: fn(&Row) -> bool| rows.iter().filter(|row| holds(row)).count();
        (
            count(|row| row.health == Some(Health::Healthy)),
            count(|row| row.health.is_some_and(|health| health != Health::Healthy)),
            count(|row| row.health.is_none()),
        )
    }

    /// The nodes, sorted as is asked for.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let nodes = self.last.iter().flat_map(|last| &last.nodes);
        let mut rows: Vec<Row> = nodes.map(|node| self.row(node)).collect();
        rows.sort_by(|a, b| {
            let order = compare(self.sort, a, b);
            if self.reversed { order.reverse() } else { order }
        });
        rows
    }

    fn row(&self, node: &NodeOverview) -> Row {
        let id = node.member.node_id;
        let answer = node.answer.as_ref().ok();
        let led = answer
            .into_iter()
            .flat_map(|answer| &answer.status.groups)
            .filter(|group| group.role == "leader");
        let [sql, storage, messages] =
            ["database", "storage", "pubsub"].map(|engine| self.rates(node, engine));
        let failed =
            |engine| self.between(node, engine).map_or(0.0, |(done, seconds)| done.failed as f64 / seconds);
        Row {
            node: id,
            leads_meta: answer.is_some_and(|answer| {
                answer.status.groups.iter().any(|group| group.group == 0 && group.role == "leader")
            }),
            health: answer.map(|answer| answer.health),
            leads: led.count(),
            sql,
            storage,
            messages,
            failed_per_second: failed("database") + failed("storage"),
            disk_free: answer.map(|answer| answer.status.disk_free),
            last_seen: if answer.is_some() { None } else { self.last_seen(node) },
        }
    }

    /// When a node that does not answer last did: to this client, or to the node that it asks.
    fn last_seen(&self, node: &NodeOverview) -> Option<SystemTime> {
        self.answered.get(&node.member.node_id).copied().max(node.last_seen)
    }

    fn rates(&self, node: &NodeOverview, engine: &str) -> Rates {
        let Some((done, seconds)) = self.between(node, engine) else { return Rates::default() };
        Rates {
            per_second: Some(done.requests as f64 / seconds),
            delivered_per_second: done.delivered as f64 / seconds,
            p50: done.within(0.5),
            p99: done.within(0.99),
        }
    }

    /// What an engine of a node did between the last two looks, and in how many seconds.
    fn between(&self, node: &NodeOverview, engine: &str) -> Option<(EngineActivity, f64)> {
        let (last, before) = (self.last.as_ref()?, self.before.as_ref()?);
        let earlier = before.nodes.iter().find(|earlier| earlier.member.node_id == node.member.node_id)?;
        let now = activity(node.answer.as_ref().ok()?, engine)?;
        let then = activity(earlier.answer.as_ref().ok()?, engine)?;
        let seconds = last.at.saturating_duration_since(before.at).as_secs_f64();
        (seconds > 0.0).then(|| (now.since(then), seconds))
    }

    /// The groups of the cluster: the meta group, then databases by name.
    pub(crate) fn groups(&self) -> Vec<Group> {
        self.last.as_ref().map(groups).unwrap_or_default()
    }

    /// What is not well, the worst first; what several nodes find is told once.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        let mut alarms: Vec<Alarm> = Vec::new();
        for node in self.last.iter().flat_map(|last| &last.nodes) {
            let id = node.member.node_id;
            let answer = match &node.answer {
                Ok(answer) => answer,
                Err(reason) => {
                    let alarm = Alarm {
                        nodes: vec![id],
                        check: "answer".to_owned(),
                        status: Health::Unhealthy,
                        message: format!("node {id} does not answer: {reason}"),
                        next_step: format!(
                            "start node {id}, or `debros cluster leave {id}` if it is gone for good"
                        ),
                    };
                    alarms.push(alarm);
                    continue;
                }
            };
            for (name, check) in answer.checks.iter().filter(|(_, check)| check.status != Health::Healthy) {
                match alarms.iter_mut().find(|alarm| alarm.check == *name && alarm.status == check.status) {
                    Some(alarm) => alarm.nodes.push(id),
                    None => alarms.push(Alarm {
                        nodes: vec![id],
                        check: name.clone(),
                        status: check.status,
                        message: check.message.clone(),
                        next_step: check.next_step.clone(),
                    }),
                }
            }
        }
        alarms.sort_by_key(|alarm| std::cmp::Reverse(alarm.status));
        alarms
    }

    /// Everything as one object.
    pub(crate) fn json(&self) -> Json {
        let rows = self.rows();
        let (cluster, epoch) = self.cluster().unwrap_or_default();
        let groups = self.groups().into_iter().map(|Group { name, leader, term, voters, lag }| {
            json!({"name": name, "leader": leader, "term": term, "voters": voters, "lag_entries": lag})
        });
        let alarms = self.alarms().into_iter().map(|Alarm { nodes, check, status, message, next_step }| {
            json!({"check": check, "status": status.as_str(), "nodes": nodes, "message": message,
                "next_step": next_step})
        });
        json!({
            "cluster_id": cluster,
            "epoch": epoch,
            "nodes": rows.iter().map(row_json).collect::<Vec<_>>(),
            "groups": groups.collect::<Vec<_>>(),
            "alarms": alarms.collect::<Vec<_>>(),
        })
    }
}

fn activity<'a>(answer: &'a NodeAnswer, engine: &str) -> Option<&'a EngineActivity> {
    answer.status.activity.iter().find(|activity| activity.engine == engine)
}

fn compare(column: Column, a: &Row, b: &Row) -> Ordering {
    let rate = |rates: &Rates| rates.per_second.unwrap_or(-1.0);
    // Busy and slow ones first; those that do not answer before all others.
    let order = match column {
        Column::Node => Ordering::Equal,
        Column::State => {
            let badness = |row: &Row| row.health.map_or(u8::MAX, |health| health as u8);
            badness(b).cmp(&badness(a))
        }
        Column::Sql => rate(&b.sql).total_cmp(&rate(&a.sql)),
        Column::Storage => rate(&b.storage).total_cmp(&rate(&a.storage)),
        Column::Messages => rate(&b.messages).total_cmp(&rate(&a.messages)),
        Column::Latency => slowest(b).cmp(&slowest(a)),
    };
    order.then(a.node.cmp(&b.node))
}

fn slowest(row: &Row) -> Duration {
    let p99 = |rates: &Rates| rates.p99.map_or(Duration::ZERO, |p99| p99.unwrap_or(Duration::MAX));
    p99(&row.sql).max(p99(&row.storage))
}

fn groups(look: &Overview) -> Vec<Group> {
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    let mut applied: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for answer in look.nodes.iter().filter_map(|node| node.answer.as_ref().ok()) {
        for told in &answer.status.groups {
            let group = groups.entry(told.group).or_insert_with(|| Group {
                name: told.name.clone(),
                leader: 0,
                term: told.term,
                voters: told.voters.clone(),
                lag: 0,
            });
            let (most, least) =
                applied.entry(told.group).or_insert((told.last_log_index, told.applied_index));
            (*most, *least) = ((*most).max(told.last_log_index), (*least).min(told.applied_index));
            // Of two that say so the one with the later term is right.
            if told.role == "leader" && (group.leader == 0 || told.term >= group.term) {
                (group.leader, group.voters) = (answer.status.member_id, told.voters.clone());
            }
            group.term = group.term.max(told.term);
        }
    }
    for (id, (most, least)) in applied {
        if let Some(group) = groups.get_mut(&id) {
            group.lag = most.saturating_sub(least);
        }
    }
    groups.into_values().collect()
}

/// What is different between two looks, as sentences.
fn changes(before: &Overview, now: &Overview) -> Vec<String> {
    let mut told = Vec::new();
    for node in &now.nodes {
        let id = node.member.node_id;
        let earlier = before.nodes.iter().find(|earlier| earlier.member.node_id == id);
        match (earlier.map(|earlier| &earlier.answer), &node.answer) {
            (None, _) => told.push(format!("node {id} is a new member")),
            // Why, the alarm tells for as long as it lasts.
            (Some(Ok(_)), Err(_)) => told.push(format!("node {id} does not answer")),
            (Some(Err(_)), Ok(_)) => told.push(format!("node {id} answers again")),
            (Some(Ok(before)), Ok(now)) if before.status.uptime > now.status.uptime => {
                told.push(format!("node {id} has started anew"));
            }
            (Some(Ok(before)), Ok(now)) if before.health != now.health => {
                told.push(format!("node {id} was {} and is {}", before.health, now.health));
            }
            (Some(_), _) => {}
        }
    }
    let left = before.nodes.iter().map(|node| node.member.node_id);
    let gone = left.filter(|id| now.nodes.iter().all(|node| node.member.node_id != *id));
    told.extend(gone.map(|id| format!("node {id} is no member any more")));
    let earlier = groups(before);
    for group in groups(now) {
        let Some(earlier) = earlier.iter().find(|earlier| earlier.name == group.name) else { continue };
        if earlier.leader != group.leader {
            told.push(match group.leader {
                0 => format!("{} has no leader; node {} led it", group.name, earlier.leader),
                leader => format!("node {leader} leads {} in term {}", group.name, group.term),
            });
        }
    }
    told
}

fn row_json(row: &Row) -> Json {
    let unix_ms =
        |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let rates = |rates: &Rates| {
        let told = |share: Option<Option<Duration>>| share.flatten().map(|bound| bound.as_micros() as u64);
        json!({"per_second": rates.per_second, "p50_us": told(rates.p50), "p99_us": told(rates.p99)})
    };
    json!({
        "node_id": row.node,
        "state": row.health.map_or("away", Health::as_str),
        "last_seen_unix_ms": row.last_seen.map(unix_ms),
        "leads_meta": row.leads_meta,
        "groups_led": row.leads,
        "database": rates(&row.sql),
        "storage": rates(&row.storage),
        "pubsub": {"published_per_second": row.messages.per_second,
            "delivered_per_second": row.messages.delivered_per_second},
        "failed_per_second": row.failed_per_second,
        "disk_free_bytes": row.disk_free,
    })
}
