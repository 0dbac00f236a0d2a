//! Connecting for one command: to the nodes that were named, or to one on this machine. An answer
//! is wanted soon, so there is one attempt, and no waiting for nodes that are still to start.

use std::time::Duration;

use debros_sdk::{Client, ConnectedNode, Error};

use crate::arguments::Global;
use crate::failure::Failure;

/// The ports of the example configurations, and of a few nodes more on one machine.
const LOCAL_PORTS: [u16; 5] = [4001, 4002, 4003, 4004, 4005];
/// Loopback answers or refuses within a millisecond; this is for a machine under load.
const LOCAL_DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// A client, and the node that answered it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    node: Option<ConnectedNode>,
}

impl Connection {
    /// The node that answered, for commands that speak of it.
    pub(crate) fn node(&self) -> Result<&ConnectedNode, Failure> {
        self.node.as_ref().ok_or_else(|| Failure::Local {
            message: "the node that was connected is no member of the cluster, or is gone".to_owned(),
        })
    }
}

/// Connects as the command line says.
pub(crate) async fn establish(global: &Global) -> Result<Connection, Failure> {
    // An environment variable may be set and empty.
    let given: Vec<String> =
        global.bootstrap.iter().filter(|address| !address.trim().is_empty()).cloned().collect();
    let named = !given.is_empty();
    let addresses = if named { given } else { local_addresses() };
    let connect_timeout = if named { global.timeout } else { global.timeout.min(LOCAL_DIAL_TIMEOUT) };
    let mut builder = Client::builder(&global.namespace)
        .bootstrap_peers(addresses)
        .connect_timeout(connect_timeout)
        .attempts(1)
        .operation_timeout(global.timeout);
    if let Some(file) = &global.cluster_secret_file {
        builder = builder.cluster_secret_file(file);
    }
    let client = builder.connect().await.map_err(|error| refused(error, named))?;
    let node = client.connected_node();
    if !named {
        let address = node.as_ref().map(|node| node.address.as_str()).filter(|address| !address.is_empty());
        let place = address.unwrap_or("this machine");
        eprintln!("using the node at {place}; name another with -b or DEBROS_BOOTSTRAP");
    }
    Ok(Connection { client, node })
}

fn refused(error: Error, named: bool) -> Failure {
    if !named && error.kind() == debros_sdk::ErrorKind::Unreachable {
        let ports = LOCAL_PORTS.map(|port| port.to_string()).join(", ");
        return Failure::no_local_node(format!("nothing answered on 127.0.0.1 at TCP ports {ports}"), error);
    }
    Failure::connecting(error)
}

fn local_addresses() -> Vec<String> {
    LOCAL_PORTS.map(|port| format!("/ip4/127.0.0.1/tcp/{port}")).to_vec()
}
