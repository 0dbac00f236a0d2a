//! NATS as a peer: three nats-server processes on loopback, with TLS between servers and to clients, so that what travels is
//! encrypted as it is here. Publishes are core NATS, at most once; nothing is stored.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::{Client, ConnectOptions, Subject, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::time::sleep;

use super::{Member, Messaging, NODES, Receiver};
use crate::bench::{System, empty_folder};
use crate::cluster::free_ports;
use crate::server::Server;

const NAME: &str = "nats";
const READY_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// What a client keeps of a subscription before it drops messages: more than a flow has under way.
const SUBSCRIPTION_CAPACITY: usize = 262_144;

/// Starts a cluster.
pub(super) async fn start(program: &Path) -> Result<Nats> {
    let folder = empty_folder(NAME)?;
    let authority = certify(&folder)?;
    let ports = free_ports(2 * NODES)?;
    let (client_ports, route_ports) = ports.split_at(NODES);
    let routes =
        route_ports.iter().map(|port| format!("\"tls://127.0.0.1:{port}\"")).collect::<Vec<_>>().join(", ");
    let tls = |file: &str| folder.join(file).to_string_lossy().into_owned();
    let (ca, certificate, key) = (tls("ca.pem"), tls("node.pem"), tls("node.key"));
    let mut servers = Vec::new();
    for index in 0..NODES {
        let (name, client, route) = (format!("m{index}"), client_ports[index], route_ports[index]);
        let config = format!(
            "server_name: {name}\nhost: 127.0.0.1\nport: {client}\n\
             tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" }}\n\
             cluster {{\n  name: {NAME}\n  host: 127.0.0.1\n  port: {route}\n  routes: [{routes}]\n  \
             tls {{ cert_file: \"{certificate}\", key_file: \"{key}\", ca_file: \"{ca}\" }}\n}}\n"
        );
        let file = folder.join(format!("{name}.conf"));
        fs::write(&file, config)?;
        let log = folder.join(format!("{name}.log"));
        let mut server =
            Server::new(format!("nats {name}"), program.to_owned(), vec!["-c".into(), file.into()], log);
        server.start()?;
        servers.push(server);
    }
    let urls = client_ports.iter().map(|port| format!("tls://127.0.0.1:{port}")).collect();
    let mut nats = Nats { servers, urls, authority };
    nats.ready().await?;
    Ok(nats)
}

/// Makes an authority and one certificate for all servers; gives the authority's file.
fn certify(folder: &Path) -> Result<PathBuf> {
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_file = folder.join("ca.pem");
    fs::write(&authority_file, authority.self_signed(&authority_key)?.pem())?;
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate()?;
    let mut node = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    // Servers are each other's clients.
    node.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    fs::write(folder.join("node.pem"), node.signed_by(&key, &issuer)?.pem())?;
    fs::write(folder.join("node.key"), key.serialize_pem())?;
    Ok(authority_file)
}

/// A cluster of nats-server processes.
pub(super) struct Nats {
    servers: Vec<Server>,
    urls: Vec<String>,
    authority: PathBuf,
}

impl Nats {
    async fn client(&self, node: usize) -> Result<Client> {
        let options = ConnectOptions::new()
            .require_tls(true)
            .add_root_certificates(self.authority.clone())
            .ignore_discovered_servers()
            .subscription_capacity(SUBSCRIPTION_CAPACITY);
        Ok(options.connect(&self.urls[node]).await?)
    }

    /// Waits until what is published at each server is heard at each other one.
    async fn ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = self.are_joined().await {
            for server in &mut self.servers {
                if let Some(status) = server.ended() {
                    bail!("{} ended with {status}; {}", server.name(), server.log_end());
                }
            }
            if start.elapsed() > READY_WITHIN {
                let log = self.servers[0].log_end();
                return Err(error.context(format!("NATS is not ready after {READY_WITHIN:?}; {log}")));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn are_joined(&self) -> Result<()> {
        for node in 0..NODES {
            let hears = self.client(node).await?;
            let mut heard = hears.subscribe("ready").await?;
            hears.flush().await?;
            for other in (0..NODES).filter(|other| *other != node) {
                let says = self.client(other).await?;
                says.publish("ready", Bytes::new()).await?;
                says.flush().await?;
                let message = tokio::time::timeout(Duration::from_secs(1), heard.next()).await;
                message.context("the servers are not joined yet")?.context("the subscription ended")?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl System for Nats {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pids(&self) -> Vec<u32> {
        self.servers.iter().filter_map(Server::pid).collect()
    }

    async fn stop(mut self: Box<Self>) -> Result<()> {
        self.servers.iter().for_each(Server::terminate);
        for server in &mut self.servers {
            server.stopped().await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Messaging for Nats {
    async fn connect(&mut self, node: usize) -> Result<Arc<dyn Member>> {
        Ok(Arc::new(Connected { client: self.client(node).await? }))
    }
}

/// A client.
struct Connected {
    client: Client,
}

#[async_trait]
impl Member for Connected {
    async fn publish(&self, topics: &[String], payload: &Bytes) -> Result<()> {
        let mut subject = Subject::from("");
        for topic in topics {
            if subject.as_str() != topic {
                subject = Subject::from(topic.as_str());
            }
            self.client.publish(subject.clone(), payload.clone()).await?;
        }
        Ok(())
    }

    async fn subscribe(&self, pattern: &str) -> Result<Box<dyn Receiver>> {
        let subscriber = self.client.subscribe(pattern.to_owned()).await?;
        // What is published elsewhere from now on is heard: an answer of this server comes after the subscription.
        self.client.flush().await?;
        Ok(Box::new(subscriber))
    }

    async fn request(&self, topic: &str) -> Result<()> {
        self.client.request(topic.to_owned(), "?".into()).await?;
        Ok(())
    }

    async fn respond(&self, topic: &str) -> Result<()> {
        let (client, mut requests) = (self.client.clone(), self.client.subscribe(topic.to_owned()).await?);
        self.client.flush().await?;
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                if let Some(reply) = request.reply
                    && client.publish(reply, "!".into()).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(())
    }
}

#[async_trait]
impl Receiver for Subscriber {
    async fn receive(&mut self, each: &mut (dyn for<'p> FnMut(&'p [u8]) + Send)) -> Result<()> {
        let mut next = Some(self.next().await.context("the subscription ended")?);
        while let Some(message) = next {
            each(&message.payload);
            next = self.next().now_or_never().flatten();
        }
        Ok(())
    }
}
