//! Admission by cluster secret: who gets in, who does not, and what each side is told.

mod support;

use std::time::{Duration, Instant};

use debros_net::{AdmissionError, ClusterSecret, Host, HostConfig, Network, OpenError};
use support::{QUIC, TCP, config, echo, echoes, eventually, start};

fn with_secret(listen: &[&str], secret: &Option<ClusterSecret>) -> HostConfig {
    HostConfig { secret: secret.clone(), dht: Some("/debros/test/1".into()), ..config(listen) }
}

/// Nothing above admission heard of the other side.
fn untouched(host: &Host) -> bool {
    host.peers().is_empty() && host.stats().connections_total == 0
}

#[tokio::test]
async fn the_right_secret_admits() {
    let secret = Some(ClusterSecret::generate());
    for listen in [TCP, QUIC] {
        let (server, incoming) = start(with_secret(&[listen], &secret)).await;
        let _served = echo(incoming);
        let (client, _) = start(with_secret(&[], &secret)).await;
        assert_eq!(client.connect(&server.listen_addresses()[0]).await.unwrap(), server.local_peer());
        echoes(&*client, server.local_peer(), debros_net::Lane::Raft).await;
    }
}

#[tokio::test]
async fn every_other_case_is_refused_by_name_and_at_once() {
    let (ours, theirs) = (Some(ClusterSecret::generate()), Some(ClusterSecret::generate()));
    for listen in [TCP, QUIC] {
        for (dialer, listener, kind, told) in [
            (&theirs, &ours, "wrong_secret", "wrong_secret"),
            (&None, &ours, "secret_required", "secret_missing"),
            (&ours, &None, "secret_missing", "secret_required"),
        ] {
            let (server, _incoming) = start(with_secret(&[listen], listener)).await;
            let (client, _) = start(with_secret(&[], dialer)).await;
            let started = Instant::now();
            let refusal = client.connect(&server.listen_addresses()[0]).await.unwrap_err();
            let OpenError::Refused(refusal) = refusal else { panic!("{listen}: {refusal}") };
            assert_eq!(refusal.kind(), kind, "{listen}");
            assert!(refusal.to_string().contains("security.cluster_secret_file"), "{refusal}");
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
            eventually("the listener counts it", async || {
                server.stats().admission_refused_total.get(told) == Some(&1)
            })
            .await;
            assert_eq!(client.stats().admission_refused_total[kind], 1);
            assert!(untouched(&server) && untouched(&client));
        }
    }
}

#[tokio::test]
async fn a_refusal_is_not_worth_a_retry() {
    let (server, _incoming) = start(with_secret(&[TCP], &Some(ClusterSecret::generate()))).await;
    let (client, _) = start(with_secret(&[], &None)).await;
    let refusal = client.connect(&server.listen_addresses()[0]).await.unwrap_err();
    assert_eq!(refusal, OpenError::Refused(AdmissionError::SecretRequired(server.local_peer())));
    assert!(!refusal.is_retryable());
}
