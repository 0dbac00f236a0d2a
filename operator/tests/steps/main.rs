//! The decision of the next step, over clusters in memory that fail, change and are changed: no step ever costs a
//! quorum, a cluster is initialised once, and what is asked for is always reached.

#[allow(dead_code, reason = "each test program uses its part of it")]
#[path = "../support/mod.rs"]
mod support;
mod world;

use operator::decide::Step;
use operator::names::{BySet, Role};
use operator::observed::PodId;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
use world::{Event, World};

/// Longer than everything that the events can ask for, one pod after the other.
const TICKS_MAX: usize = 600;

fn peers(replicas: i32) -> Event {
    Event::Scale(Role::Peer, replicas)
}

fn event() -> impl Strategy<Value = Event> {
    let role = prop_oneof![Just(Role::Bootstrap), Just(Role::Peer)];
    let pod = (role, 0..5i32).prop_map(|(role, ordinal)| PodId { role, ordinal });
    prop_oneof![
        3 => (0..5i32).prop_map(peers),
        1 => prop_oneof![Just(3), Just(5)].prop_map(|replicas| Event::Scale(Role::Bootstrap, replicas)),
        3 => Just(Event::Roll { works: true }),
        1 => Just(Event::Roll { works: false }),
        3 => pod.clone().prop_map(Event::End),
        2 => pod.prop_map(Event::LoseVolume),
        1 => Just(Event::LoseStatus),
        1 => (0..3i32).prop_map(|replicas| Event::EditSet(Role::Peer, replicas)),
        1 => Just(Event::DeleteSet(Role::Bootstrap)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn whatever_happens_no_step_costs_a_quorum_and_all_is_reached(
        events in proptest::collection::vec((event(), 0..40usize), 0..12),
    ) {
        let mut world = World::new(BySet { bootstrap: 3, peer: 1 }, &[3, 3]);
        for (event, ticks) in events {
            world.happen(event);
            for _ in 0..ticks {
                world.tick();
            }
        }
        world.happen(Event::Roll { works: true });
        let reached = (0..TICKS_MAX).any(|_| {
            world.tick();
            world.is_reached()
        });
        prop_assert!(reached, "not reached: {}", world.tell());
        prop_assert_eq!(world.cluster.initialised, 1);
    }
}

/// A cluster that has started.
fn started(bootstrap: i32, peer: i32) -> World {
    let mut world = World::new(BySet { bootstrap, peer }, &[3]);
    world.settle();
    world
}

#[test]
fn a_cluster_is_initialised_once_and_found_again_when_everything_written_down_is_lost() {
    let mut world = started(3, 0);
    world.happen(Event::LoseStatus);
    world.recorded = None;
    world.settle();
    assert_eq!(world.cluster.initialised, 1);
    assert_eq!(world.recorded, world.cluster.id);
}

#[test]
fn a_cluster_on_earlier_volumes_is_not_initialised_anew() {
    let mut world = World::new(BySet { bootstrap: 3, peer: 0 }, &[3]);
    world.earlier_claims = true;
    for _ in 0..50 {
        world.tick();
    }
    assert_eq!(world.cluster.initialised, 0);
    let told = world.tell();
    assert!(told.contains("older than this resource") && told.contains("delete the claim"), "{told}");
}

#[test]
fn a_volume_behind_a_claim_without_a_pod_may_hold_a_cluster() {
    let mut world = World::new(BySet { bootstrap: 1, peer: 0 }, &[]);
    world.spare = Some(PodId { role: Role::Bootstrap, ordinal: 2 });
    for _ in 0..50 {
        world.tick();
    }
    assert_eq!(world.cluster.initialised, 0);
    assert!(world.tell().contains("may hold an earlier cluster"), "{}", world.tell());
}

#[test]
fn leaders_are_rolled_last_and_one_at_a_time() {
    let mut world = started(3, 2);
    world.happen(Event::Roll { works: true });
    let leader = world.meta_leader().expect("a leader");
    world.settle();
    let restarted: Vec<PodId> = world
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Restart { pod, hand_over: true, .. } => Some(*pod),
            _ => None,
        })
        .collect();
    assert_eq!(restarted.len(), 5, "{restarted:?}");
    assert_eq!(restarted.last(), Some(&leader), "{restarted:?}");
}

#[test]
fn a_bad_image_stops_at_the_first_pod_and_the_next_one_gets_past_it() {
    let mut world = started(3, 0);
    world.happen(Event::Roll { works: false });
    for _ in 0..100 {
        world.tick();
    }
    let down = world.pods_down();
    assert_eq!(down, 1, "{}", world.tell());
    assert_eq!(world.cluster.without_quorum(), [""; 0]);
    assert!(world.tell().contains("the roll waits for"), "{}", world.tell());
    world.happen(Event::Roll { works: true });
    world.settle();
    assert_eq!(world.pods_down(), 0);
}

#[test]
fn fewer_nodes_than_replicas_are_refused() {
    let mut world = started(3, 1);
    world.happen(Event::Scale(Role::Peer, 0));
    world.settle();
    world.happen(Event::Scale(Role::Bootstrap, 1));
    for _ in 0..50 {
        world.tick();
    }
    assert_eq!(world.cluster.active(), 3);
    assert!(world.tell().contains("it stays: 2 nodes would be left for 3 replicas"), "{}", world.tell());
}

#[test]
fn a_lost_volume_is_replaced_by_a_new_member_and_the_old_one_is_taken_out() {
    let mut world = started(3, 0);
    let lost = PodId { role: Role::Bootstrap, ordinal: 1 };
    let before = world.cluster.volumes[&lost].peer_id.clone();
    world.happen(Event::LoseVolume(lost));
    world.settle();
    assert_ne!(world.cluster.volumes[&lost].peer_id, before);
    assert_eq!(world.cluster.active(), 3);
}

#[test]
fn one_node_alone_is_rolled_too() {
    let mut world = World::new(BySet { bootstrap: 1, peer: 0 }, &[1]);
    world.replication_factor = 1;
    world.settle();
    world.happen(Event::Roll { works: true });
    world.settle();
    assert_eq!(world.cluster.initialised, 1);
}

#[test]
fn a_paused_cluster_is_left_alone() {
    let mut world = started(3, 0);
    world.paused = true;
    world.happen(Event::Roll { works: true });
    world.happen(Event::Scale(Role::Peer, 3));
    let before = world.steps.len();
    for _ in 0..50 {
        world.tick();
    }
    assert_eq!(world.steps.len(), before);
    assert_eq!(world.cluster.active(), 3);
    assert!(world.tell().contains("set spec.paused to false"), "{}", world.tell());
}
