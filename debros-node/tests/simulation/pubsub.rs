//! Scenario `pubsub`: publishers and subscribers of two namespaces with the same topics, at nodes that join, leave,
//! die and lose packets; wildcards, queue groups, and clients that come, go and do not read.
//!
//! Every third seed is a calm one: no process dies and rings are as large as in production, so that nearly
//! everything must arrive. Every third has rings and queues that are small and overflow.

mod checker;
mod history;
mod publisher;
mod session;
mod subscriber;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use debros_net::Lane;
use debros_net::simulated::SimulatedNetwork;
use debros_node::pubsub::PubSubOptions;
use futures::future::{LocalBoxFuture, join_all};
use tokio::time::sleep;

use crate::dice::Dice;
use crate::faults::Faults;
use crate::hooks;
use crate::kv::Operator;
use crate::machine::{StorageTuning, Tuning, client_keypair, name};
use crate::report::Report;
use crate::sql::Options;
use crate::world::{Action, World};

use checker::Seen;
use history::Notes;
use publisher::Publisher;
use session::Session;
use subscriber::Subscriber;

pub(crate) use checker::known_histories_are_told_apart;

/// Nodes at the beginning, which everybody knows.
const NODES: usize = 3;
/// They share their topics.
const NAMESPACES: [&str; 2] = ["one", "two"];
/// Publishers of a short run and of a long one: at least, and so many more by the seed.
const PUBLISHERS: (usize, u64) = (10, 10);
const PUBLISHERS_LONG: (usize, u64) = (20, 31);
/// A run is a long one from here on.
const LONG: Duration = Duration::from_secs(30);
/// Publishers on one machine.
const PUBLISHERS_PER_MACHINE: usize = 4;
const SUBSCRIBERS: usize = 6;
const CLIENT_DICE: u64 = 430;
const PLAN_DICE: u64 = 440;
/// The cluster forms within this.
const FORMED_WITHIN: Duration = Duration::from_secs(30);
/// Nodes that know each other have links within this.
const LINKED_WITHIN: Duration = Duration::from_secs(2);
/// Publishers have everything acknowledged within this after the last fault.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);
/// After this all that will be reported is: longer than an origin is waited for.
const REPORTED_AFTER: Duration = Duration::from_secs(13);
/// What is published at the end is delivered within this.
const DELIVERED_WITHIN: Duration = Duration::from_secs(3);
/// The operator gives up on nobody within this.
const LEFT_WITHIN: Duration = Duration::from_secs(60);
/// Messages to each topic at the end.
const FINAL_MESSAGES: usize = 3;
/// Violations that are told; the first is the one to look at.
const VIOLATIONS_TOLD: usize = 5;
/// So small that what is behind loses something, and larger than any batch.
const SMALL: PubSubOptions =
    PubSubOptions { ring_bytes: 192 << 10, ring_life: Duration::from_secs(4), queue_bytes: 96 << 10 };
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Where the run is, for its clients.
pub(crate) struct Stage {
    /// Machines that may be attached to.
    nodes: RefCell<Vec<usize>>,
    /// Nothing new is published.
    published: Cell<bool>,
    over: Cell<bool>,
    /// Publishers at work.
    publishing: Cell<usize>,
}

impl Stage {
    fn nodes(&self) -> Vec<usize> {
        self.nodes.borrow().clone()
    }

    fn is_published(&self) -> bool {
        self.published.get()
    }

    fn is_over(&self) -> bool {
        self.over.get()
    }
}

/// Runs one seed; the thread's randomness and the bug are in place.
pub(crate) fn run(options: Options) -> Report {
    let is_calm = options.seed.is_multiple_of(3);
    let pubsub = if options.seed % 3 == 1 { SMALL } else { PubSubOptions::default() };
    let tuning = Tuning {
        bootstrap_nodes: NODES,
        durable_after_entries: 100,
        kept_entries: 20,
        show_interval: Duration::from_millis(50),
        step: Duration::from_millis(1),
        acknowledge_before_fsync: false,
        may_die: true,
        storage: StorageTuning::default(),
        pubsub,
    };
    let started = hooks::wall_clock();
    let world = World::new(options.seed, NODES, tuning);
    let stage = Rc::new(Stage {
        nodes: RefCell::new((0..NODES).collect()),
        published: Cell::new(false),
        over: Cell::new(false),
        publishing: Cell::new(0),
    });
    let notes = Notes::new(world.history().clone());
    let dice = Dice::new(options.seed, PLAN_DICE);
    let converged = Duration::ZERO;
    let mut run = Run { options, is_calm, world, notes, stage, dice, machines: 0, faults: 0, converged };
    let ended = run.through();
    let (published, subscriptions, wrong) = run.notes.all();
    let is_live = is_calm;
    let judged = checker::judge(&Seen { published: &published, subscriptions: &subscriptions, is_live });
    let mut violations: Vec<String> = ended.err().into_iter().chain(wrong).chain(judged.wrong).collect();
    violations.truncate(VIOLATIONS_TOLD);
    let (operations, acknowledged) = run.notes.counts();
    Report {
        seed: options.seed,
        hash: run.world.history().hash(),
        operations,
        acknowledged,
        faults: run.faults,
        beside: ("delivered", judged.delivered as u64),
        simulated: run.world.elapsed(),
        converged: run.converged,
        wall: hooks::wall_clock() - started,
        verdict: if violations.is_empty() { Ok(()) } else { Err(violations) },
        history: run.world.history().to_text(),
    }
}

struct Run {
    options: Options,
    is_calm: bool,
    world: World,
    notes: Notes,
    stage: Rc<Stage>,
    dice: Dice,
    /// Machines of clients.
    machines: usize,
    faults: usize,
    converged: Duration,
}

impl Run {
    fn through(&mut self) -> Result<(), String> {
        self.form()?;
        let begin = self.world.elapsed();
        let end = begin + self.options.work;
        self.start_publishers();
        self.start_subscribers();
        let left = self.start_operator(begin);
        let leaver = self.work(begin, end, &left)?;
        let mut everyone: Vec<String> = self.world.present().into_iter().map(name).collect();
        everyone.extend((0..self.machines).map(client_name));
        self.world.heal(&everyone);
        let healed = self.world.elapsed();
        self.stage.published.set(true);
        self.wait("publishers do not come to their end", ACKNOWLEDGED_WITHIN, |run| {
            run.stage.publishing.get() == 0
        })?;
        self.wait("the node does not leave", LEFT_WITHIN, |_| {
            left.is_none() || left.as_ref().is_some_and(|left| left.1.get())
        })?;
        if let (Some((leaver, _)), false) = (&left, leaver) {
            self.retire(*leaver);
        }
        self.converged = self.world.elapsed() - healed;
        self.pass(REPORTED_AFTER)?;
        self.start_final_publishers();
        self.wait("the last publishers do not come to their end", ACKNOWLEDGED_WITHIN, |run| {
            run.stage.publishing.get() == 0
        })?;
        self.pass(DELIVERED_WITHIN)?;
        self.stage.over.set(true);
        Ok(())
    }

    fn form(&mut self) -> Result<(), String> {
        self.world.client("founder", async {
            let network = network_of(0).await;
            for node in 0..NODES {
                while Session::attach(&network, node, NAMESPACES[0], 1).await.is_err() {
                    sleep(AGAIN_AFTER).await;
                }
            }
            Ok(())
        });
        let deadline = self.world.elapsed() + FORMED_WITHIN;
        while !self.world.step()? || !self.is_full() {
            if self.world.elapsed() > deadline {
                return Err("the cluster does not form".to_owned());
            }
        }
        self.world.board().formed();
        // What is missed while nodes meet is reported, and would be most of a calm run's losses.
        if self.is_calm { self.pass(LINKED_WITHIN) } else { Ok(()) }
    }

    /// Whether all nodes know each other.
    fn is_full(&self) -> bool {
        (0..NODES).all(|node| {
            self.world.board().shown(node).is_some_and(|shown| {
                let meta = shown.groups.iter().find(|group| group.group == 0);
                let members = meta.map_or(0, |meta| meta.voters.len() + meta.learners.len());
                shown.connected_peers as usize >= NODES - 1 && members >= NODES
            })
        })
    }

    fn start_publishers(&mut self) {
        let (least, more) = if self.options.work >= LONG { PUBLISHERS_LONG } else { PUBLISHERS };
        let publishers = least + self.dice.below(more) as usize;
        let moves = !self.is_calm;
        for first in (0..publishers).step_by(PUBLISHERS_PER_MACHINE) {
            let count = PUBLISHERS_PER_MACHINE.min(publishers - first);
            self.start_machine(count, 0, move |client, at| client.publisher(at, moves, None));
        }
    }

    fn start_final_publishers(&mut self) {
        self.start_machine(NAMESPACES.len(), 0, |client, at| {
            client.publisher(at, false, Some(FINAL_MESSAGES))
        });
    }

    fn start_subscribers(&mut self) {
        for number in 0..SUBSCRIBERS {
            let is_calm = self.is_calm;
            self.start_machine(0, NAMESPACES.len(), move |client, at| client.subscriber(at, number, is_calm));
        }
    }

    /// Starts a machine with clients, publishers and others.
    fn start_machine(
        &mut self,
        publishers: usize,
        others: usize,
        make: impl Fn(Client, usize) -> LocalBoxFuture<'static, ()> + 'static,
    ) {
        let machine = self.machines;
        self.machines += 1;
        self.stage.publishing.set(self.stage.publishing.get() + publishers);
        let (seed, notes, stage) = (self.options.seed, self.notes.clone(), self.stage.clone());
        self.world.client(&client_name(machine), async move {
            let network = network_of(1 + machine).await;
            let clients = (0..publishers + others).map(|at| {
                let purpose = CLIENT_DICE + (machine * 100 + at) as u64 * 1000;
                let dice = Dice::new(seed, purpose);
                let (notes, stage, network) = (notes.clone(), stage.clone(), network.clone());
                make(Client { dice, notes, stage, network }, at)
            });
            join_all(clients.collect::<Vec<_>>()).await;
            Ok(())
        });
    }

    /// In some runs a node leaves: which one, and whether it has.
    fn start_operator(&mut self, begin: Duration) -> Option<(usize, Rc<Cell<bool>>)> {
        if self.is_calm || !self.dice.once_in(2) {
            return None;
        }
        let leaver = self.dice.below(NODES as u64) as usize;
        let work = self.options.work.as_millis() as u64;
        let left = Rc::new(Cell::new(false));
        let operator = Operator {
            client: 10_000,
            nodes: NODES,
            leaver,
            at: begin + self.dice.milliseconds(work * 3 / 10, work * 8 / 10),
            board: self.world.board().clone(),
            history: self.world.history().clone(),
            left: left.clone(),
        };
        self.world.client("operator", operator.run());
        Some((leaver, left))
    }

    /// Gives whether the node that was to leave has left.
    fn work(
        &mut self,
        begin: Duration,
        end: Duration,
        left: &Option<(usize, Rc<Cell<bool>>)>,
    ) -> Result<bool, String> {
        let clients: Vec<String> = (0..self.machines).map(client_name).collect();
        if self.dice.once_in(2) {
            self.lose_packets(&clients);
        }
        let mut faults = Faults::new(self.options.seed, NODES, clients, begin + Duration::from_secs(1));
        faults = faults.of_messages(self.is_calm);
        let work = self.options.work.as_millis() as u64;
        let mut joins_at = Some(begin + self.dice.milliseconds(work / 10, work * 7 / 10));
        let mut retired = false;
        while self.world.elapsed() < end {
            let now = self.world.elapsed();
            if joins_at.is_some_and(|at| now >= at) {
                joins_at = None;
                let node = self.world.add_machine();
                faults.node_joins();
                self.stage.nodes.borrow_mut().push(node);
            }
            for action in faults.due(now, self.world.board()) {
                self.world.act(&action);
            }
            if let Some((leaver, left)) = left
                && left.get()
                && !std::mem::replace(&mut retired, true)
            {
                faults.node_leaves(*leaver);
                self.retire(*leaver);
            }
            self.faults = faults.count();
            self.world.step()?;
        }
        Ok(retired)
    }

    fn retire(&mut self, node: usize) {
        self.stage.nodes.borrow_mut().retain(|known| *known != node);
        self.world.act(&Action::Retire(node));
    }

    /// All links lose packets from now on.
    fn lose_packets(&mut self, clients: &[String]) {
        let nodes: Vec<String> = (0..NODES).map(name).collect();
        for (at, one) in nodes.iter().enumerate() {
            for other in nodes[at + 1..].iter().chain(clients) {
                self.world.act(&Action::Lose(one.clone(), other.clone(), true));
            }
        }
    }

    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let until = self.world.elapsed() + time;
        while self.world.elapsed() < until {
            self.world.step()?;
        }
        Ok(())
    }

    fn wait(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = self.world.elapsed() + limit;
        while !done(self) {
            self.world.step()?;
            if self.world.elapsed() > deadline {
                return Err(format!("{what} within {limit:?}"));
            }
        }
        Ok(())
    }
}

/// What every client is made of.
struct Client {
    dice: Dice,
    notes: Notes,
    stage: Rc<Stage>,
    network: Arc<SimulatedNetwork>,
}

impl Client {
    fn number(&mut self) -> u64 {
        1 + self.dice.below(u64::MAX - 1)
    }

    fn publisher(mut self, at: usize, moves: bool, only: Option<usize>) -> LocalBoxFuture<'static, ()> {
        let (number, namespace) = (self.number(), NAMESPACES[at % NAMESPACES.len()].to_owned());
        let Self { dice, notes, stage, network } = self;
        let publisher =
            Publisher { number, namespace, network, dice, notes, stage: stage.clone(), moves, only };
        Box::pin(async move {
            publisher.run().await;
            stage.publishing.set(stage.publishing.get() - 1);
        })
    }

    /// The first ones read on and change little; one is slow; in the others everything happens.
    fn subscriber(mut self, at: usize, kind: usize, is_calm: bool) -> LocalBoxFuture<'static, ()> {
        let (number, namespace) = (self.number(), NAMESPACES[at % NAMESPACES.len()].to_owned());
        let Self { dice, notes, stage, network } = self;
        let subscriber = Subscriber {
            number,
            namespace,
            network,
            dice,
            notes,
            stage,
            is_slow: kind == 1,
            is_calm: is_calm || kind < 2,
            plain: if kind == 0 { 3 } else { 2 },
            in_group: kind.is_multiple_of(2),
        };
        Box::pin(subscriber.run())
    }
}

fn client_name(machine: usize) -> String {
    format!("client-{machine}")
}

async fn network_of(client: usize) -> Arc<SimulatedNetwork> {
    let started = SimulatedNetwork::start(client_keypair(client), None, &[] as &[Lane]).await;
    started.expect("a network that listens nowhere always starts").0
}
