//! A node as far as this crate goes: a network, discovery, and its service on the client lane.

use std::sync::Arc;
use std::time::Duration;

use debros_net::discovery::{Discovery, DiscoveryConfig, OwnStatus};
use debros_net::{Host, HostConfig, IncomingStreams, Multiaddr, Network, PeerId, grpc};
use debros_proto::v1;
use tokio::sync::oneshot;

pub(crate) struct Node<N> {
    pub(crate) network: Arc<N>,
    pub(crate) discovery: Discovery,
    stop: Option<oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<()>,
}

pub(crate) fn status(peer: PeerId, cluster: &str) -> OwnStatus {
    let cluster_id = cluster.to_owned();
    Arc::new(move || v1::NodeStatus {
        peer_id: peer.to_base58(),
        cluster_id: cluster_id.clone(),
        version: debros_proto::VERSION.to_owned(),
        services: vec!["database".to_owned()],
        ..Default::default()
    })
}

pub(crate) fn discovery_config(network: &dyn Network, bootstrap: &[Multiaddr]) -> DiscoveryConfig {
    DiscoveryConfig {
        interval: Duration::from_secs(1),
        ..DiscoveryConfig::new(bootstrap.to_vec(), status(network.local_peer(), ""))
    }
}

impl<N: Network> Node<N> {
    pub(crate) fn new(network: Arc<N>, incoming: IncomingStreams, config: DiscoveryConfig) -> Self {
        let discovery = Discovery::start(Arc::clone(&network) as Arc<dyn Network>, config);
        let routes = tonic::service::Routes::new(discovery.service().into_server());
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            grpc::serve(routes, incoming, stopped).await.unwrap();
        });
        Self { network, discovery, stop: Some(stop), server }
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.network.local_peer()
    }

    /// The peers it is connected to.
    pub(crate) fn connected(&self) -> usize {
        self.network.peers().iter().filter(|known| known.connected).count()
    }

    pub(crate) async fn stop(mut self) {
        self.discovery.shutdown().await;
        let _ = self.stop.take().unwrap().send(());
        self.network.shutdown().await;
        self.server.await.unwrap();
    }
}

impl Node<Host> {
    pub(crate) async fn start(config: HostConfig, bootstrap: &[Multiaddr]) -> Self {
        let (host, incoming) = Host::start(config).await.unwrap();
        let config = discovery_config(&*host, bootstrap);
        Self::new(host, incoming, config)
    }
}
