//! Admission: who may connect at all, decided on a connection's first substream inside the
//! transport, so that the swarm, identify and Kademlia never hear of a connection that fails it.
//!
//! Both sides always speak it. With a cluster secret each proves that it knows it: an HMAC-SHA256
//! over both identities, both parts and both nonces. Without one, both must be without.
//!
//! ```text
//! dialer   -> listener   mark, mode, nonce
//! listener -> dialer     mark, mode, nonce, proof
//! dialer   -> listener   go on?, proof
//! listener -> dialer     welcome?
//! ```
//!
//! Invariants: the dialer gives its proof only after the listener's holds; each proof names the part
//! of its maker, so one that is reflected does not hold; whoever dialed `/p2p/<id>` compares the id
//! here, before the other side counts the connection as made. The muxer is polled beside all I/O of
//! the substream, or yamux moves no byte. Whoever falls silent is dropped after [`ADMISSION_TIMEOUT`].

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use hmac::{Hmac, Mac};
use libp2p::core::connection::ConnectedPoint;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use sha2::Sha256;

use super::failure::TransportFailure;
use super::transport::Output;
use crate::error::AdmissionError;
use crate::secret::ClusterSecret;

/// Four small messages; p50 is half a millisecond.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(2);
/// A refusal gets this long to reach the other side, and a refused connection to close.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(300);

const MARK: &[u8; MARK_BYTES] = b"\0debros/admit/1\n";
const MARK_BYTES: usize = 16;
const NONCE_BYTES: usize = 32;
const PROOF_BYTES: usize = 32;
const MODE_OPEN: u8 = 0;
const MODE_SECRET: u8 = 1;

/// One node's side of every admission.
#[derive(Clone)]
pub(super) struct Admission {
    pub(super) local: PeerId,
    pub(super) secret: Option<ClusterSecret>,
}

/// The two parts in one admission, and the randomness of each.
struct Exchange {
    dialer: PeerId,
    listener: PeerId,
    dialer_nonce: [u8; NONCE_BYTES],
    listener_nonce: [u8; NONCE_BYTES],
}

impl Admission {
    /// Runs on every new connection, dialed or accepted.
    pub(super) async fn run(
        self,
        remote: PeerId,
        mut muxer: StreamMuxerBox,
        point: ConnectedPoint,
    ) -> Result<Output, TransportFailure> {
        let outcome = match unexpected(&point, remote) {
            Some(failure) => Err(failure),
            None => {
                tokio::time::timeout(ADMISSION_TIMEOUT, self.admit(remote, &mut muxer, point.is_dialer()))
                    .await
                    .unwrap_or(Err(AdmissionError::TimedOut(remote)))
                    .map_err(TransportFailure::Admission)
            }
        };
        match outcome {
            Ok(()) => Ok((remote, muxer)),
            Err(failure) => {
                // Best effort: the connection is dropped either way.
                let _ = tokio::time::timeout(FAREWELL_TIMEOUT, muxer.close()).await;
                Err(failure)
            }
        }
    }

    async fn admit(
        &self,
        remote: PeerId,
        muxer: &mut StreamMuxerBox,
        dialer: bool,
    ) -> Result<(), AdmissionError> {
        let broken = |_: io::Error| AdmissionError::BrokenOff(remote);
        let mut stream = first_substream(muxer, dialer).await.map_err(broken)?;
        let outcome = if dialer {
            drive(muxer, self.dial(remote, &mut stream)).await
        } else {
            drive(muxer, self.listen(remote, &mut stream)).await
        };
        let outcome = outcome.map_err(broken).and_then(|outcome| outcome);
        let farewell = async {
            // A refusal must reach the other side before the connection is torn down under it.
            let _ = stream.close().await;
            if outcome.is_err() {
                let _ = stream.read(&mut [0]).await;
            }
        };
        if outcome.is_err() {
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, drive(muxer, farewell)).await;
        } else {
            // Started here, finished by whoever polls the connection from now on.
            let _ = drive(
                muxer,
                poll_fn(|context| {
                    let _ = Pin::new(&mut stream).poll_close(context);
                    Poll::Ready(())
                }),
            )
            .await;
        }
        outcome
    }

    async fn dial(&self, remote: PeerId, stream: &mut SubstreamBox) -> Result<(), AdmissionError> {
        let broken = |_: io::Error| AdmissionError::BrokenOff(remote);
        let dialer_nonce: [u8; NONCE_BYTES] = rand::random();
        send(stream, &[MARK, &[self.mode()], &dialer_nonce]).await.map_err(broken)?;
        let (mode, listener_nonce) = greeting(remote, stream).await?;
        let mut proof = [0; PROOF_BYTES];
        stream.read_exact(&mut proof).await.map_err(broken)?;
        let exchange = Exchange { dialer: self.local, listener: remote, dialer_nonce, listener_nonce };
        if let Err(refusal) =
            self.same_mode(remote, mode).and_then(|()| self.check(remote, b"listener", &exchange, &proof))
        {
            send(stream, &[&[0], &[0; PROOF_BYTES]]).await.map_err(broken)?;
            return Err(refusal);
        }
        send(stream, &[&[1], &self.proof(b"dialer", &exchange)]).await.map_err(broken)?;
        let mut welcome = [0];
        stream.read_exact(&mut welcome).await.map_err(broken)?;
        if welcome == [1] { Ok(()) } else { Err(AdmissionError::WrongSecret(remote)) }
    }

    async fn listen(&self, remote: PeerId, stream: &mut SubstreamBox) -> Result<(), AdmissionError> {
        let broken = |_: io::Error| AdmissionError::BrokenOff(remote);
        let (mode, dialer_nonce) = greeting(remote, stream).await?;
        let listener_nonce: [u8; NONCE_BYTES] = rand::random();
        let exchange = Exchange { dialer: remote, listener: self.local, dialer_nonce, listener_nonce };
        let same_mode = self.same_mode(remote, mode);
        let proof = if same_mode.is_ok() { self.proof(b"listener", &exchange) } else { [0; PROOF_BYTES] };
        send(stream, &[MARK, &[self.mode()], &listener_nonce, &proof]).await.map_err(broken)?;
        same_mode?;
        let mut answer = [0; 1 + PROOF_BYTES];
        stream.read_exact(&mut answer).await.map_err(broken)?;
        let outcome = match answer[0] {
            1 => self.check(remote, b"dialer", &exchange, &answer[1..]),
            _ => Err(AdmissionError::WrongSecret(remote)),
        };
        send(stream, &[&[u8::from(outcome.is_ok())]]).await.map_err(broken)?;
        outcome
    }

    fn mode(&self) -> u8 {
        if self.secret.is_some() { MODE_SECRET } else { MODE_OPEN }
    }

    fn same_mode(&self, remote: PeerId, theirs: u8) -> Result<(), AdmissionError> {
        match (self.mode(), theirs) {
            (MODE_SECRET, MODE_SECRET) | (MODE_OPEN, MODE_OPEN) => Ok(()),
            (MODE_OPEN, MODE_SECRET) => Err(AdmissionError::SecretRequired(remote)),
            (MODE_SECRET, MODE_OPEN) => Err(AdmissionError::SecretMissing(remote)),
            _ => Err(AdmissionError::NotDebros(remote)),
        }
    }

    fn proof(&self, part: &[u8], exchange: &Exchange) -> [u8; PROOF_BYTES] {
        match &self.secret {
            Some(secret) => exchange.mac(secret, part).finalize().into_bytes().into(),
            None => [0; PROOF_BYTES],
        }
    }

    fn check(
        &self,
        remote: PeerId,
        part: &[u8],
        exchange: &Exchange,
        proof: &[u8],
    ) -> Result<(), AdmissionError> {
        match &self.secret {
            // Compares in constant time.
            Some(secret) => exchange
                .mac(secret, part)
                .verify_slice(proof)
                .map_err(|_| AdmissionError::WrongSecret(remote)),
            None => Ok(()),
        }
    }
}

impl Exchange {
    fn mac(&self, secret: &ClusterSecret, part: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.reveal()).expect("HMAC takes keys of any length");
        let (dialer, listener) = (self.dialer.to_bytes(), self.listener.to_bytes());
        for field in [MARK, part, &dialer, &listener, &self.dialer_nonce, &self.listener_nonce] {
            // Lengths in between, so that no two different exchanges read the same.
            mac.update(&(field.len() as u64).to_be_bytes());
            mac.update(field);
        }
        mac
    }
}

fn unexpected(point: &ConnectedPoint, obtained: PeerId) -> Option<TransportFailure> {
    let ConnectedPoint::Dialer { address, .. } = point else { return None };
    let expected = peer_of(address)?;
    (expected != obtained).then_some(TransportFailure::WrongPeer { expected, obtained })
}

fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

async fn send(stream: &mut SubstreamBox, parts: &[&[u8]]) -> io::Result<()> {
    stream.write_all(&parts.concat()).await?;
    stream.flush().await
}

/// Mark, mode and nonce of the other side.
async fn greeting(
    remote: PeerId,
    stream: &mut SubstreamBox,
) -> Result<(u8, [u8; NONCE_BYTES]), AdmissionError> {
    let mut mark = [0; MARK_BYTES];
    stream.read_exact(&mut mark).await.map_err(|_| AdmissionError::NotDebros(remote))?;
    if mark != *MARK {
        return Err(AdmissionError::NotDebros(remote));
    }
    let mut rest = [0; 1 + NONCE_BYTES];
    stream.read_exact(&mut rest).await.map_err(|_| AdmissionError::BrokenOff(remote))?;
    let mut nonce = [0; NONCE_BYTES];
    nonce.copy_from_slice(&rest[1..]);
    Ok((rest[0], nonce))
}

async fn first_substream(muxer: &mut StreamMuxerBox, dialer: bool) -> io::Result<SubstreamBox> {
    poll_fn(|context| {
        if let Poll::Ready(Err(error)) = muxer.poll_unpin(context) {
            return Poll::Ready(Err(error));
        }
        if dialer { muxer.poll_outbound_unpin(context) } else { muxer.poll_inbound_unpin(context) }
    })
    .await
}

/// Polls the muxer beside a future that uses one of its substreams.
async fn drive<T>(muxer: &mut StreamMuxerBox, future: impl Future<Output = T>) -> io::Result<T> {
    let mut future = pin!(future);
    poll_fn(|context: &mut Context<'_>| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        match muxer.poll_unpin(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(_)) => {
                // An address changed: nothing to do with it, but the muxer has to be polled again.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            // What has arrived already may still decide.
            Poll::Ready(Err(error)) => match future.as_mut().poll(context) {
                Poll::Ready(value) => Poll::Ready(Ok(value)),
                Poll::Pending => Poll::Ready(Err(error)),
            },
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use libp2p::core::transport::{DialOpts, PortUse};
    use libp2p::core::{Endpoint, Transport};
    use libp2p::identity::Keypair;

    use super::*;
    use crate::host::{Host, HostConfig, transport};
    use crate::network::Network;

    const LISTEN: [&str; 2] = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"];

    async fn closed_host(listen: &str) -> std::sync::Arc<Host> {
        let config = HostConfig {
            secret: Some(ClusterSecret::generate()),
            ..HostConfig::node(Keypair::generate_ed25519(), vec![listen.parse().unwrap()])
        };
        Host::start(config).await.unwrap().0
    }

    /// Somebody who has no secret and speaks the protocol by hand.
    async fn intruder(host: &Host) -> StreamMuxerBox {
        let mut transport = transport::unadmitted(&Keypair::generate_ed25519()).unwrap();
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (_, muxer) = transport.dial(host.listen_addresses()[0].clone(), options).unwrap().await.unwrap();
        muxer
    }

    async fn counted(host: &Host, reason: &str) {
        let told = async {
            while host.stats().admission_refused_total.get(reason) != Some(&1) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(10), told).await.is_ok(), "{:?}", host.stats());
        assert_eq!(host.stats().connections_total, 0);
    }

    #[tokio::test]
    async fn a_reflected_proof_is_refused() {
        for listen in LISTEN {
            let host = closed_host(listen).await;
            let mut muxer = intruder(&host).await;
            let mut stream = first_substream(&mut muxer, true).await.unwrap();
            let talk = async {
                send(&mut stream, &[MARK, &[MODE_SECRET], &[5; NONCE_BYTES]]).await.unwrap();
                let mut answer = [0; MARK_BYTES + 1 + NONCE_BYTES + PROOF_BYTES];
                stream.read_exact(&mut answer).await.unwrap();
                send(&mut stream, &[&[1], &answer[answer.len() - PROOF_BYTES..]]).await.unwrap();
                let mut welcome = [9];
                stream.read_exact(&mut welcome).await.unwrap();
                welcome[0]
            };
            assert_eq!(drive(&mut muxer, talk).await.unwrap(), 0);
            counted(&host, "wrong_secret").await;
        }
    }

    #[tokio::test]
    async fn whoever_falls_silent_or_speaks_something_else_is_dropped() {
        for listen in LISTEN {
            for (said, reason) in
                [(&b""[..], "timed_out"), (&MARK[..7], "timed_out"), (&[b'x'; 49], "not_debros")]
            {
                let host = closed_host(listen).await;
                let mut muxer = intruder(&host).await;
                let mut stream = first_substream(&mut muxer, true).await.unwrap();
                let talk = async {
                    send(&mut stream, &[said]).await.unwrap();
                    // Until the other side closes.
                    let _ = stream.read(&mut [0; 1]).await;
                };
                let _ = tokio::time::timeout(Duration::from_secs(5), drive(&mut muxer, talk)).await;
                counted(&host, reason).await;
            }
        }
    }

    #[test]
    fn a_proof_depends_on_everything_in_the_exchange() {
        let (dialer, listener) = (PeerId::random(), PeerId::random());
        let secret = ClusterSecret::generate();
        let exchange = |dialer, listener, first, second| Exchange {
            dialer,
            listener,
            dialer_nonce: [first; NONCE_BYTES],
            listener_nonce: [second; NONCE_BYTES],
        };
        let proof = |exchange: Exchange, secret: &ClusterSecret, part: &[u8]| {
            exchange.mac(secret, part).finalize().into_bytes().to_vec()
        };
        let proofs = [
            proof(exchange(dialer, listener, 1, 2), &secret, b"dialer"),
            proof(exchange(dialer, listener, 1, 2), &secret, b"listener"),
            proof(exchange(listener, dialer, 1, 2), &secret, b"dialer"),
            proof(exchange(dialer, PeerId::random(), 1, 2), &secret, b"dialer"),
            proof(exchange(dialer, listener, 2, 1), &secret, b"dialer"),
            proof(exchange(dialer, listener, 1, 2), &ClusterSecret::generate(), b"dialer"),
        ];
        let different: std::collections::BTreeSet<_> = proofs.iter().collect();
        assert_eq!(different.len(), proofs.len());
    }
}
