//! One node of the cluster, asked itself and nobody in its stead: what whoever runs the nodes needs, who knows
//! them by their addresses. Decides nothing; a node that does not answer is an error at once.

use std::time::Duration;

use debros_net::PeerId;
use debros_proto::v1;
use tokio::time::{Instant, timeout_at};

use super::{Cluster, LogLevel, Members};
use crate::address;
use crate::call::{Failed, Plan, Target, unreachable};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::network_info::NetworkStatus;
use crate::rpc;

/// A node that was found at an address.
#[derive(Clone)]
pub struct ClusterNode {
    client: Client,
    peer: PeerId,
}

impl Cluster {
    /// The node that answers at a multiaddr, within this time. It need not be a member.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no multiaddr, `Unreachable` when nobody answers there.
    pub async fn node_at(&self, address: &str, timeout: Duration) -> Result<ClusterNode, Error> {
        let parsed = address::parse(address)?;
        let connecting = self.client.shared().network().connect(&parsed);
        let connected = timeout_at(Instant::now() + timeout, connecting).await.map_err(|_| {
            Error::new(ErrorKind::Unreachable, format!("nobody answered at {address} within {timeout:?}"))
        })?;
        let peer = connected.map_err(unreachable)?;
        self.client.shared().nodes().learn(peer);
        Ok(ClusterNode { client: self.client.clone(), peer })
    }
}

impl ClusterNode {
    /// Its PeerId in base58.
    pub fn peer_id(&self) -> String {
        self.peer.to_string()
    }

    /// Its status.
    ///
    /// # Errors
    /// When it does not answer within this time.
    pub async fn status(&self, timeout: Duration) -> Result<NetworkStatus, Error> {
        let plan = self.plan(Some(timeout), true);
        let answer = self.client.shared().call(&plan, &v1::StatusRequest::default(), rpc::status).await;
        Ok(answer.map_err(Failed::into_read_error)?.value.into())
    }

    /// The members as this node has them; `connected` is of its own connections.
    ///
    /// # Errors
    /// `NotReady` before it is one itself; when it does not answer within this time.
    pub async fn members(&self, timeout: Duration) -> Result<Members, Error> {
        let plan = self.plan(Some(timeout), true);
        let answer = self.client.shared().call(&plan, &v1::MembersRequest::default(), rpc::members).await;
        Ok(answer.map_err(Failed::into_read_error)?.value.into())
    }

    /// Initialises a cluster there, once. Gives the new cluster's id.
    ///
    /// # Errors
    /// `AlreadyExists` where the node belongs to a cluster, or did.
    pub async fn initialise(&self) -> Result<String, Error> {
        let plan = self.plan(None, false);
        let answer =
            self.client.shared().call(&plan, &v1::InitialiseRequest::default(), rpc::initialise).await;
        Ok(answer.map_err(Failed::into_write_error)?.value.cluster_id)
    }

    /// Has it hand over every leadership that another voter can take. Gives how many groups it still leads.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn hand_over(&self) -> Result<u32, Error> {
        let plan = self.plan(None, true);
        let answer = self.client.shared().call(&plan, &v1::HandOverRequest::default(), rpc::hand_over).await;
        Ok(answer.map_err(Failed::into_read_error)?.value.still_led)
    }

    /// What it logs; with a level, changes it until that node is started again.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no level; nothing was changed then.
    pub async fn log_level(&self, level: Option<&str>) -> Result<LogLevel, Error> {
        let request = v1::LogLevelRequest { header: None, level: level.unwrap_or_default().to_owned() };
        let answer = self.client.shared().call(&self.plan(None, true), &request, rpc::log_level).await;
        let v1::LogLevelResponse { level, before } = answer.map_err(Failed::into_read_error)?.value;
        Ok(LogLevel { level, before })
    }

    fn plan(&self, timeout: Option<Duration>, repeatable: bool) -> Plan {
        let deadline = self.client.shared().deadline(timeout);
        Plan { target: Target::Node(self.peer), deadline, repeatable }
    }
}
