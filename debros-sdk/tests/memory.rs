//! What is in memory keeps the contracts that every implementation keeps.
#![cfg(all(feature = "memory", feature = "conformance"))]

use debros_sdk::memory::{MemoryDatabase, MemoryNetwork, MemoryStorage};
use debros_sdk::{ErrorKind, Health, NetworkInfo, conformance};

#[tokio::test]
async fn a_database_in_memory_conforms() {
    conformance::database(&MemoryDatabase::new().unwrap()).await;
}

#[tokio::test]
async fn a_storage_in_memory_conforms() {
    conformance::storage(&MemoryStorage::new()).await;
}

#[tokio::test]
async fn a_network_of_nobody_is_well() {
    let network = MemoryNetwork::new();
    assert_eq!(network.health().await.unwrap().status, Health::Healthy);
    assert!(network.get_peers().await.unwrap().is_empty());
    let error = network.connect_to_peer("/ip4/127.0.0.1/tcp/1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}
