//! The registers of a cluster: rows of the namespace's default database, written through the same sessions as
//! its SQL.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use debros_proto::{DatabaseName, registers, v1};
use v1::register_operation::Kind;

use super::{
    Conflict, Counter, Lease, LeaseId, LeaseListOptions, LeasePage, Register, RegisterListOptions,
    RegisterPage, RegisterPutOptions, RegisterWatch, Registers, from_wire, lease_list_request, lease_page,
    list_request, operation, outcome, page, settled, watch,
};
use crate::call::{Failed, Plan, Target};
use crate::client::Client;
use crate::error::Error;
use crate::rpc;

/// The registers of a client's namespace. Clones share the write sessions.
#[derive(Clone)]
pub struct RemoteRegisters {
    client: Client,
    database: DatabaseName,
}

impl RemoteRegisters {
    pub(crate) fn new(client: Client) -> Self {
        let database = DatabaseName::or_default("").expect("the default name satisfies the grammar");
        Self { client, database }
    }

    async fn write(&self, kind: Kind) -> Result<v1::register_outcome::Kind, Error> {
        let shared = self.client.shared();
        shared.check_open()?;
        let operation = Some(v1::RegisterOperation { kind: Some(kind) });
        registers::check_operation(operation.as_ref())?;
        let request = v1::RegisterWriteRequest { header: None, operation, session: None };
        let writer = shared.writer(&self.database);
        let answer = writer.write(shared, request, shared.deadline(None), rpc::register_write).await?;
        settled(answer.outcome)
    }

    fn plan_read(&self) -> Plan {
        let target = Target::Leader(self.database.to_string());
        Plan { target, deadline: self.client.shared().deadline(None), repeatable: true }
    }

    /// Takes in what an answer says of the leader.
    fn learn(&self, leader: Option<&v1::LeaderHint>, rough: bool) {
        let shared = self.client.shared();
        shared.learn_leader(self.database.as_str(), leader);
        if rough {
            shared.ask_for_refresh();
        }
    }
}

#[async_trait]
impl Registers for RemoteRegisters {
    async fn get(&self, key: &[u8]) -> Result<Option<Register>, Error> {
        let shared = self.client.shared();
        shared.check_open()?;
        registers::check_key(key)?;
        let request = v1::RegisterGetRequest { header: None, key: key.to_vec().into() };
        let answer = shared.call(&self.plan_read(), &request, rpc::register_get).await;
        let answer = answer.map_err(Failed::into_read_error)?;
        self.learn(answer.value.leader.as_ref(), answer.rough);
        Ok(answer.value.register.map(from_wire))
    }

    async fn put_with(&self, key: &[u8], value: &[u8], options: RegisterPutOptions) -> Result<u64, Error> {
        let written = self.write(operation::put(key, value, None, options)).await?;
        outcome::unconditional(outcome::written(written)?)
    }

    async fn compare_and_set_with(
        &self,
        key: &[u8],
        expected: u64,
        value: &[u8],
        options: RegisterPutOptions,
    ) -> Result<Result<u64, Conflict>, Error> {
        outcome::written(self.write(operation::put(key, value, Some(expected), options)).await?)
    }

    async fn delete(&self, key: &[u8]) -> Result<Option<u64>, Error> {
        let deleted = self.write(operation::delete(key, None)).await?;
        let version = outcome::unconditional(outcome::deleted(deleted)?)?;
        Ok((version != 0).then_some(version))
    }

    async fn compare_and_delete(&self, key: &[u8], expected: u64) -> Result<Result<(), Conflict>, Error> {
        let deleted = self.write(operation::delete(key, Some(expected))).await?;
        Ok(outcome::deleted(deleted)?.map(drop))
    }

    async fn increment(&self, key: &[u8], delta: i64) -> Result<Counter, Error> {
        outcome::counter(self.write(operation::increment(key, delta)).await?)
    }

    async fn list(&self, prefix: &[u8], options: RegisterListOptions) -> Result<RegisterPage, Error> {
        let shared = self.client.shared();
        shared.check_open()?;
        let request = list_request(prefix, &options)?;
        let answer = shared.call(&self.plan_read(), &request, rpc::register_list).await;
        let answer = answer.map_err(Failed::into_read_error)?;
        self.learn(answer.value.leader.as_ref(), answer.rough);
        Ok(page(answer.value))
    }

    async fn watch(&self, prefix: &[u8], after: Option<u64>) -> Result<RegisterWatch, Error> {
        self.client.shared().check_open()?;
        registers::check_prefix(prefix)?;
        let request = v1::RegisterWatchRequest { header: None, prefix: prefix.to_vec().into(), after };
        let source = watch::Source::open(Arc::clone(self.client.shared_handle()), request).await?;
        Ok(source.into_watch(&self.client))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, Error> {
        outcome::lease(self.write(operation::grant(ttl)).await?)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Lease, Error> {
        outcome::lease(self.write(operation::keep_alive(lease)).await?)
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, Error> {
        outcome::revoked(self.write(operation::revoke(lease)).await?)
    }

    async fn list_leases(&self, options: LeaseListOptions) -> Result<LeasePage, Error> {
        let shared = self.client.shared();
        shared.check_open()?;
        let request = lease_list_request(options)?;
        let answer = shared.call(&self.plan_read(), &request, rpc::lease_list).await;
        let answer = answer.map_err(Failed::into_read_error)?;
        self.learn(answer.value.leader.as_ref(), answer.rough);
        Ok(lease_page(answer.value))
    }
}
