//! What every implementation of [`Registers`] does alike. Keys begin with `conformance/`.

use std::time::Duration;

use debros_proto::limits;
use tokio::time::timeout;

use crate::error::ErrorKind;
use crate::registers::{
    Conflict, LeaseInfo, LeaseListOptions, Register, RegisterEvent, RegisterListOptions, RegisterPutOptions,
    RegisterWatch, Registers,
};

/// What is to come comes within this time, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(10);

/// Holds [`Registers`] to its contract. Run it where no key begins with `conformance/`; it leaves some behind.
///
/// # Panics
/// Where the contract is broken.
pub async fn registers(registers: &dyn Registers) {
    versions(registers).await;
    conditions(registers).await;
    numbers(registers).await;
    listing(registers).await;
    leases(registers).await;
    watching(registers).await;
    mistakes(registers).await;
}

async fn versions(registers: &dyn Registers) {
    let key = b"conformance/\0\xff version";
    assert_eq!(registers.get(key).await.expect("a read"), None);
    let first = registers.put(key, b"").await.expect("a write");
    let second = registers.put(key, b"two").await.expect("a write");
    assert!(second > first && first > 0);
    let found = registers.get(key).await.expect("a read").expect("the key");
    assert_eq!(
        (&*found.key, &*found.value, found.version, found.lease),
        (&key[..], &b"two"[..], second, None)
    );
    assert_eq!(registers.delete(key).await.expect("a deletion"), Some(second));
    assert_eq!(registers.delete(key).await.expect("a deletion"), None);
    assert_eq!(registers.get(key).await.expect("a read"), None);
    assert!(registers.put(key, b"three").await.expect("a write") > second);
}

async fn conditions(registers: &dyn Registers) {
    let key = b"conformance/condition";
    let version = registers.compare_and_set(key, 0, b"a").await.expect("a write").expect("no conflict");
    let conflict = Conflict { version, value: Some("a".into()) };
    assert_eq!(registers.compare_and_set(key, 0, b"b").await.expect("an answer"), Err(conflict.clone()));
    assert_eq!(registers.compare_and_delete(key, version + 1).await.expect("an answer"), Err(conflict));
    let next = registers.compare_and_set(key, version, b"b").await.expect("a write").expect("no conflict");
    assert!(next > version);
    assert_eq!(registers.compare_and_delete(key, next).await.expect("a deletion"), Ok(()));
    let nothing = Conflict { version: 0, value: None };
    assert_eq!(registers.compare_and_set(key, next, b"c").await.expect("an answer"), Err(nothing.clone()));
    assert_eq!(registers.compare_and_delete(key, next).await.expect("an answer"), Err(nothing));
    // A large value is left out of the conflict, not out of the register.
    let large = vec![7; limits::REGISTER_VALUE_BYTES_MAX];
    let version = registers.put(key, &large).await.expect("a large value");
    let conflict = Conflict { version, value: None };
    assert_eq!(registers.compare_and_set(key, 1, b"d").await.expect("an answer"), Err(conflict));
    assert_eq!(*registers.get(key).await.expect("a read").expect("the key").value, large[..]);
}

async fn numbers(registers: &dyn Registers) {
    let key = b"conformance/number";
    let first = registers.increment(key, 5).await.expect("a sum");
    let second = registers.increment(key, -7).await.expect("a sum");
    assert_eq!((first.value, second.value), (5, -2));
    assert!(second.version > first.version);
    let found = registers.get(key).await.expect("a read").expect("the key");
    assert_eq!((&*found.value, found.version), (&b"-2"[..], second.version));
    let error = registers.increment(key, i64::MIN).await.expect_err("too small");
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::InvalidArgument, false), "{error}");
    registers.put(key, b"many").await.expect("a write");
    let error = registers.increment(key, 1).await.expect_err("no number");
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::InvalidArgument, false), "{error}");
}

async fn listing(registers: &dyn Registers) {
    for key in ["a", "b%", "b%1", "b%2", "bb", "c"] {
        registers.put(format!("conformance/list/{key}").as_bytes(), key.as_bytes()).await.expect("a write");
    }
    let keys = |page: &[Register]| -> Vec<String> {
        page.iter().map(|register| String::from_utf8_lossy(&register.value).into_owned()).collect()
    };
    let options = RegisterListOptions::default();
    let page = registers.list(b"conformance/list/b%", options).await.expect("a page");
    assert_eq!((keys(&page.registers), page.next), (vec!["b%".into(), "b%1".into(), "b%2".into()], None));
    let (mut seen, mut options) = (Vec::new(), RegisterListOptions { limit: Some(4), after: None });
    loop {
        let page = registers.list(b"conformance/list/", options.clone()).await.expect("a page");
        assert!(page.registers.len() <= 4);
        seen.extend(keys(&page.registers));
        options.after = page.next;
        if options.after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "b%", "b%1", "b%2", "bb", "c"]);
}

async fn leases(registers: &dyn Registers) {
    let lease = registers.grant_lease(TTL).await.expect("a lease");
    assert_eq!(lease.ttl, TTL);
    let options = RegisterPutOptions::lease(lease.id);
    registers.put_with(b"conformance/lease/a", b"1", options).await.expect("a write");
    let taken = registers.compare_and_set_with(b"conformance/lease/b", 0, b"1", options).await;
    taken.expect("a write").expect("no conflict");
    let found = registers.get(b"conformance/lease/a").await.expect("a read").expect("the key");
    assert_eq!(found.lease, Some(lease.id));
    assert_eq!(registers.keep_alive(lease.id).await.expect("it lives"), lease);
    // A sum stays with the lease, a value put without it does not.
    registers.increment(b"conformance/lease/a", 1).await.expect("a sum");
    registers.put(b"conformance/lease/b", b"2").await.expect("a write");
    assert_eq!(registers.revoke_lease(lease.id).await.expect("an end"), 1);
    assert_eq!(registers.get(b"conformance/lease/a").await.expect("a read"), None);
    assert!(registers.get(b"conformance/lease/b").await.expect("a read").is_some());
    let ended = [
        registers.keep_alive(lease.id).await.map(drop),
        registers.revoke_lease(lease.id).await.map(drop),
        registers.put_with(b"conformance/lease/c", b"1", options).await.map(drop),
    ];
    for result in ended {
        let error = result.expect_err("the lease has ended");
        assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::NotFound, false), "{error}");
    }
    listed(registers).await;
    expiring(registers).await;
}

/// Leases are listed with what is left of them and the keys that go with them, page by page.
async fn listed(registers: &dyn Registers) {
    let mut held = Vec::new();
    for keys in [&["b", "a"][..], &[], &["c"]] {
        let lease = registers.grant_lease(TTL).await.expect("a lease").id;
        for key in keys {
            let key = format!("conformance/listed/{key}");
            let put = registers.put_with(key.as_bytes(), b"", RegisterPutOptions::lease(lease)).await;
            put.expect("a write");
        }
        held.push(lease);
    }
    let (mut found, mut options) = (Vec::new(), LeaseListOptions { limit: Some(2), after: None });
    loop {
        let page = registers.list_leases(options).await.expect("a page");
        assert!(page.leases.len() <= 2);
        found.extend(page.leases);
        options.after = page.next;
        if options.after.is_none() {
            break;
        }
    }
    assert!(found.is_sorted_by_key(|lease| lease.id), "{found:?}");
    let mine: Vec<&LeaseInfo> = found.iter().filter(|lease| held.contains(&lease.id)).collect();
    let keys: Vec<Vec<&[u8]>> =
        mine.iter().map(|lease| lease.keys.iter().map(|key| &**key).collect()).collect();
    let expected: [&[&[u8]]; 3] =
        [&[b"conformance/listed/a", b"conformance/listed/b"], &[], &[b"conformance/listed/c"]];
    assert_eq!(keys, expected);
    assert!(
        mine.iter().all(|lease| lease.ttl == TTL && lease.left <= TTL && !lease.left.is_zero()),
        "{mine:?}"
    );
    for lease in &held {
        registers.revoke_lease(*lease).await.expect("an end");
    }
    let left = registers.list_leases(LeaseListOptions::default()).await.expect("a page");
    assert!(left.leases.iter().all(|lease| !held.contains(&lease.id)), "{left:?}");
}

/// A lease that is not kept alive ends by itself, and those who watch are told.
async fn expiring(registers: &dyn Registers) {
    let key = b"conformance/lease/short";
    let mut watch = registers.watch(key, None).await.expect("a watch");
    let lease = registers.grant_lease(limits::LEASE_TTL_MIN).await.expect("a lease");
    let version = registers.put_with(key, b"1", RegisterPutOptions::lease(lease.id)).await.expect("a write");
    let put = next(&mut watch).await;
    assert!(matches!(&put, RegisterEvent::Put(register) if register.version == version), "{put:?}");
    let gone = next(&mut watch).await;
    assert!(matches!(&gone, RegisterEvent::Deleted { version: end, .. } if *end > version), "{gone:?}");
    assert_eq!(registers.get(key).await.expect("a read"), None);
}

async fn watching(registers: &dyn Registers) {
    let before =
        registers.list(b"conformance/watch/", RegisterListOptions::default()).await.expect("a page").revision;
    let mut watch = registers.watch(b"conformance/watch/", None).await.expect("a watch");
    let mut versions = Vec::new();
    for round in 0..3 {
        versions.push(registers.put(b"conformance/watch/a", &[round]).await.expect("a write"));
        registers.put(b"conformance/elsewhere", b"x").await.expect("a write");
    }
    registers.delete(b"conformance/watch/a").await.expect("a deletion");
    let expect = async |watch: &mut RegisterWatch, versions: &[u64]| {
        for version in versions {
            let event = next(watch).await;
            assert!(
                matches!(&event, RegisterEvent::Put(register) if register.version == *version),
                "{event:?}"
            );
        }
        let event = next(watch).await;
        assert!(
            matches!(&event, RegisterEvent::Deleted { key, .. } if &**key == b"conformance/watch/a"),
            "{event:?}"
        );
    };
    expect(&mut watch, &versions).await;
    // What was missed is told to whoever says up to where it knows.
    let mut late = registers.watch(b"conformance/watch/", Some(before)).await.expect("a watch");
    expect(&mut late, &versions).await;
    let mut later = registers.watch(b"conformance/watch/", Some(versions[0])).await.expect("a watch");
    expect(&mut later, &versions[1..]).await;
    assert!(later.revision() > versions[2]);
}

async fn next(watch: &mut RegisterWatch) -> RegisterEvent {
    let event = timeout(PATIENCE, watch.next()).await.expect("an event in time");
    event.expect("the watch goes on").expect("no error")
}

async fn mistakes(registers: &dyn Registers) {
    let long = vec![b'k'; limits::REGISTER_KEY_BYTES_MAX + 1];
    let large = vec![0; limits::REGISTER_VALUE_BYTES_MAX + 1];
    let too_many = RegisterListOptions { limit: Some(limits::REGISTERS_PER_PAGE_MAX + 1), after: None };
    let many_leases = LeaseListOptions { limit: Some(limits::LEASES_PER_PAGE_MAX + 1), after: None };
    let no_leases = LeaseListOptions { limit: Some(0), after: None };
    let none = RegisterListOptions { limit: Some(0), after: None };
    let cases = [
        (registers.get(b"").await.map(drop), ErrorKind::InvalidArgument),
        (registers.put(b"", b"v").await.map(drop), ErrorKind::InvalidArgument),
        (registers.get(&long).await.map(drop), ErrorKind::LimitExceeded),
        (registers.put(&long, b"v").await.map(drop), ErrorKind::LimitExceeded),
        (registers.put(b"conformance/large", &large).await.map(drop), ErrorKind::LimitExceeded),
        (registers.list(&long, RegisterListOptions::default()).await.map(drop), ErrorKind::LimitExceeded),
        (registers.list(b"", too_many).await.map(drop), ErrorKind::LimitExceeded),
        (registers.list_leases(many_leases).await.map(drop), ErrorKind::LimitExceeded),
        (registers.list_leases(no_leases).await.map(drop), ErrorKind::InvalidArgument),
        (registers.list(b"", none).await.map(drop), ErrorKind::InvalidArgument),
        (registers.watch(&long, None).await.map(drop), ErrorKind::LimitExceeded),
        (registers.grant_lease(Duration::ZERO).await.map(drop), ErrorKind::InvalidArgument),
        (registers.grant_lease(Duration::MAX).await.map(drop), ErrorKind::InvalidArgument),
    ];
    for (result, kind) in cases {
        let error = result.expect_err("a mistake");
        assert_eq!((error.kind(), error.maybe_applied()), (kind, false), "{error}");
    }
}
