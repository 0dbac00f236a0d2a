//! What is in memory keeps the contracts that every implementation keeps.
#![cfg(all(feature = "memory", feature = "conformance"))]

use std::sync::Arc;

use debros_sdk::memory::{MemoryDatabase, MemoryNetwork, MemoryPubSub, MemoryRegisters, MemoryStorage};
use debros_sdk::{
    Database, ErrorKind, Health, NetworkInfo, PubSub, Registers, SubscriptionEvent, conformance, params,
};

#[tokio::test]
async fn a_database_in_memory_conforms() {
    conformance::database(&MemoryDatabase::new().unwrap()).await;
}

#[tokio::test]
async fn a_storage_in_memory_conforms() {
    conformance::storage(&MemoryStorage::new()).await;
}

#[tokio::test]
async fn pubsub_in_memory_conforms() {
    conformance::pubsub(Arc::new(MemoryPubSub::new())).await;
}

#[tokio::test]
async fn a_subscription_in_memory_ends_with_what_it_belongs_to() {
    let pubsub = MemoryPubSub::new();
    let mut subscription = pubsub.subscribe("a").await.unwrap();
    pubsub.publish("a", b"last").await.unwrap();
    drop(pubsub);
    let last = subscription.next().await.unwrap().unwrap();
    assert!(matches!(last, SubscriptionEvent::Message(message) if message.payload() == b"last"));
    assert!(subscription.next().await.is_none());
}

#[tokio::test]
async fn registers_in_memory_conform() {
    conformance::registers(&MemoryRegisters::new().unwrap()).await;
}

#[tokio::test]
async fn locks_over_registers_in_memory_conform() {
    conformance::locks(Arc::new(MemoryRegisters::new().unwrap())).await;
}

#[tokio::test]
async fn registers_live_in_their_database_out_of_reach_of_its_statements() {
    let database = MemoryDatabase::new().unwrap();
    database.registers().put(b"key", b"value").await.unwrap();
    let error = database.query("SELECT * FROM _debros_register", params![]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(database.get_schema().await.unwrap().tables.is_empty());
}

#[tokio::test]
async fn a_network_of_nobody_is_well() {
    let network = MemoryNetwork::new();
    assert_eq!(network.health().await.unwrap().status, Health::Healthy);
    assert!(network.get_peers().await.unwrap().is_empty());
    let error = network.connect_to_peer("/ip4/127.0.0.1/tcp/1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}
