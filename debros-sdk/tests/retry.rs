//! The client against nodes that die, freeze, forget and lie about nothing: what it retries, where,
//! and what it says when nobody can know. Time is simulated; the servers are real gRPC.

mod storage;
mod support;

use std::time::Duration;

use debros_net::Network;
use debros_sdk::{Client, Database, ErrorKind, Health, NetworkInfo, Parameters};
use support::{Fault, World};
use tokio::time::Instant;

async fn client(world: &World, first: usize) -> Client {
    let builder = Client::builder("test").network(world.network()).bootstrap_peers([world.address(first)]);
    builder.connect().await.unwrap()
}

async fn write(client: &Client, name: &str) -> Result<(), debros_sdk::Error> {
    client.database().execute(&format!("INSERT {name}"), Parameters::default()).await.map(drop)
}

/// Lets background work go on until something holds.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await; // simulated time: between two looks
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_learns_the_leader_and_goes_straight_to_it() {
    let world = World::new(3);
    world.state().leader = Some(2);
    let client = client(&world, 0).await;
    for number in 0..10 {
        write(&client, &number.to_string()).await.unwrap();
    }
    let state = world.state();
    assert_eq!(state.log.len(), 10);
    assert_eq!(state.executes.get(&2), Some(&10));
    assert_eq!(state.executes.len(), 1, "{:?}", state.executes);
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_leader_died_before_answering_is_applied_once() {
    let world = World::new(3);
    let client = client(&world, 0).await;
    world.state().after_apply = vec![Fault::Kill];
    let started = Instant::now();
    write(&client, "a").await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
    let state = world.state();
    assert_eq!(state.applied("INSERT a"), 1);
    // The second node that is asked leads, or knows who does.
    assert!(state.executes.values().sum::<usize>() <= 3, "{:?}", state.executes);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_leader_costs_patience_and_not_the_deadline() {
    let world = World::new(3);
    let client = client(&world, 1).await;
    world.state().after_apply = vec![Fault::Freeze];
    let started = Instant::now();
    write(&client, "a").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(world.state().applied("INSERT a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_nobody_answers_is_unknown_and_ends_its_session() {
    let world = World::new(1);
    let client = client(&world, 0).await;
    write(&client, "before").await.unwrap();
    world.state().after_apply = vec![Fault::Mute];
    let error = write(&client, "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownOutcome);
    assert!(error.maybe_applied());
    assert_eq!(world.state().applied("INSERT a"), 1);
    write(&client, "after").await.unwrap();
    let state = world.state();
    assert_eq!(state.sessions_opened(), 2);
    assert!(state.violations.is_empty(), "{:?}", state.violations);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_write_ends_its_session() {
    let world = World::new(1);
    let client = client(&world, 0).await;
    world.state().after_apply = vec![Fault::Mute];
    let dropped = tokio::time::timeout(Duration::from_millis(10), write(&client, "a")).await;
    assert!(dropped.is_err());
    write(&client, "b").await.unwrap();
    assert_eq!(world.state().sessions_opened(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_a_write_fails_for_certain() {
    let world = World::new(3);
    let client = client(&world, 0).await;
    write(&client, "a").await.unwrap();
    world.state().leader = None;
    let started = Instant::now();
    let error = write(&client, "b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable() && !error.maybe_applied());
    assert_eq!(started.elapsed().as_secs(), 10);
    assert_eq!(world.state().applied("INSERT b"), 0);
    world.state().leader = Some(1);
    write(&client, "c").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_write_waits_out_an_election() {
    let world = World::new(3);
    let client = client(&world, 0).await;
    write(&client, "a").await.unwrap();
    world.kill(0);
    world.state().leader = None;
    let election = {
        let world = world.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(600)).await; // simulated time: the outage that the client must outlast
            world.state().leader = Some(1);
        })
    };
    let started = Instant::now();
    write(&client, "b").await.unwrap();
    election.await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_session_is_replaced_unless_the_write_may_be_applied() {
    let world = World::new(2);
    let client = client(&world, 0).await;
    write(&client, "a").await.unwrap();
    world.state().forget_sessions();
    write(&client, "b").await.unwrap();
    assert_eq!(world.state().applied("INSERT b"), 1);

    // Applied, not answered, and then forgotten: nobody can tell any more.
    world.state().after_apply = vec![Fault::KillAndForget];
    let error = write(&client, "c").await.unwrap_err();
    assert!(error.maybe_applied(), "{error}");
    assert_eq!(world.state().applied("INSERT c"), 1);
    write(&client, "d").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_client_survives_the_node_it_met_first() {
    let world = World::new(3);
    world.state().leader = Some(1);
    let client = client(&world, 0).await;
    world.kill(0);
    write(&client, "b").await.unwrap();
    let health = client.network().health().await.unwrap();
    assert_eq!(health.status, Health::Degraded, "{health:?}");
    world.restart(0);
    let health = client.network().health().await.unwrap();
    assert_eq!(health.status, Health::Healthy, "{health:?}");
}

#[tokio::test(start_paused = true)]
async fn with_all_nodes_gone_a_write_is_unreachable_and_not_applied() {
    let world = World::new(2);
    let client = client(&world, 0).await;
    write(&client, "a").await.unwrap();
    world.kill(0);
    world.kill(1);
    let error = write(&client, "b").await.unwrap_err();
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::Unreachable, false), "{error}");
    let health = client.network().health().await.unwrap();
    assert_eq!(health.status, Health::Unhealthy);
    world.restart(1);
    world.state().leader = Some(1);
    write(&client, "c").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_writers_under_faults_apply_each_write_once_and_never_acknowledge_too_much() {
    let world = World::new(5);
    let client = client(&world, 0).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let client = client.clone();
        writers.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0..20 {
                let name = format!("{writer}/{number}");
                match write(&client, &name).await {
                    Ok(()) => acknowledged.push(format!("INSERT {name}")),
                    Err(error) => assert!(error.maybe_applied(), "{error}"),
                }
            }
            acknowledged
        });
    }
    let faults = [Fault::Kill, Fault::Mute, Fault::Freeze, Fault::Kill, Fault::Mute];
    let chaos = {
        let world = world.clone();
        tokio::spawn(async move {
            for fault in faults {
                world.state().after_apply.push(fault);
                eventually("the fault strikes", || world.state().after_apply.is_empty()).await;
            }
        })
    };
    let mut acknowledged = Vec::new();
    while let Some(writer) = writers.join_next().await {
        acknowledged.extend(writer.unwrap());
    }
    chaos.abort();
    let state = world.state();
    assert!(state.violations.is_empty(), "{:?}", state.violations);
    assert!(state.applied_once_each());
    assert!(acknowledged.len() > 1000, "{}", acknowledged.len());
    for sql in &acknowledged {
        assert_eq!(state.applied(sql), 1, "{sql}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_says_so() {
    let world = World::new(1);
    let client = client(&world, 0).await;
    client.clone().close().await;
    assert_eq!(write(&client, "a").await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn leaving_names_the_connected_node_by_its_number() {
    let world = World::new(3);
    let client = client(&world, 1).await;
    assert_eq!(client.cluster().leave(None).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_other_node_answers_or_leaves_for_the_connected_one() {
    let world = World::new(3);
    let (reader, leaver) = (client(&world, 1).await, client(&world, 1).await);
    assert_eq!(reader.network().get_status().await.unwrap().member_id, 2);
    world.freeze(1);
    let (network, cluster) = (reader.network(), leaver.cluster());
    let (status, left) = tokio::join!(network.get_status(), cluster.leave(None));
    assert!(status.as_ref().unwrap_err().is_retryable(), "{status:?}");
    assert!(left.as_ref().unwrap_err().is_retryable(), "{left:?}");
    assert_eq!(cluster.leave(Some(2)).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_not_joined_stays_the_connected_one() {
    let world = World::new(1);
    world.state().forming = true;
    let client = client(&world, 0).await;
    assert_eq!(client.connected_node().unwrap().address, world.address(0));
    assert_eq!(client.cluster().members().await.unwrap_err().kind(), ErrorKind::NotReady);
    assert_eq!(client.connected_node().unwrap().address, world.address(0));
    world.state().forming = false;
    assert_eq!(client.cluster().members().await.unwrap().members.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn mistakes_are_found_before_anything_is_dialed() {
    let world = World::new(1);
    let wrong_name = Client::builder("My App").network(world.network()).bootstrap_peers(["/memory/1"]);
    assert_eq!(wrong_name.connect().await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let no_peer = Client::builder("app").network(world.network());
    assert_eq!(no_peer.connect().await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let started = Instant::now();
    let nobody = Client::builder("app").network(world.network()).bootstrap_peers(["/memory/99"]);
    assert_eq!(nobody.connect().await.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(started.elapsed().as_secs(), 10, "three attempts, five seconds apart");
}

/// Over libp2p on loopback, on the machine's own time.
#[tokio::test]
async fn the_client_works_over_libp2p_and_outlives_a_closed_host() {
    let (world, hosts) = World::over_libp2p(3, None).await;
    let client = Client::builder("test").bootstrap_peers([world.address(0)]).connect().await.unwrap();
    assert_eq!(client.connected_node().unwrap().address, world.address(0));
    write(&client, "a").await.unwrap();
    world.state().leader = Some(1);
    hosts[0].shutdown().await;
    write(&client, "b").await.unwrap();
    let result = client.database().query("SELECT count(*) FROM log", Parameters::default()).await.unwrap();
    assert_eq!(result.first_as::<i64>().unwrap(), Some(2));
    client.close().await;
}

#[tokio::test]
async fn a_cluster_with_a_secret_lets_in_who_has_it() {
    let secret = "correct horse battery staple 0123456789";
    let cluster_secret = debros_net::ClusterSecret::from_bytes(secret.as_bytes()).unwrap();
    let (world, _hosts) = World::over_libp2p(1, Some(cluster_secret)).await;
    let builder = || Client::builder("test").bootstrap_peers([world.address(0)]).attempts(1);
    let without = builder().connect().await.unwrap_err();
    assert_eq!(without.kind(), ErrorKind::WrongCluster, "{without}");
    let other =
        builder().cluster_secret("another secret that is long enough 42").connect().await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::WrongCluster, "{other}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, secret).unwrap();
    let client = builder().cluster_secret_file(&file).identity_folder(folder.path()).connect().await.unwrap();
    write(&client, "a").await.unwrap();
    let identity = client.peer_id();
    client.close().await;
    let again = builder().cluster_secret(secret).identity_folder(folder.path()).connect().await.unwrap();
    assert_eq!(again.peer_id(), identity);
}

#[tokio::test(start_paused = true)]
async fn an_application_sees_retries_and_how_operations_ended() {
    let world = World::new(3);
    let client = client(&world, 0).await;
    world.state().after_apply = vec![Fault::Kill];
    write(&client, "a").await.unwrap();
    let mut registry = prometheus_client::registry::Registry::default();
    client.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let value = |series: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{series} is missing in {text}"))
    };
    assert_eq!(value("debros_sdk_requests_total{operation=\"Execute\",code=\"ok\"}"), 1.0);
    assert!(value("debros_sdk_retries_total{operation=\"Execute\"}") >= 1.0);
    assert_eq!(value("debros_sdk_duration_seconds_count{operation=\"Execute\"}"), 1.0);
}
