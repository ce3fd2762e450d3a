//! Taking connections: TLS before anything else, with bounds that one hostile machine cannot use up.
//!
//! At a bound the newest connection is closed at once; the caller comes again. A connection that has
//! not finished its handshake in 10 s is closed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::node::Node;

/// Bounds of connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections, whatever their state.
    pub total: usize,
    /// Of those, from one address.
    pub per_address: usize,
    /// Of those, in their handshake from one address.
    pub handshakes_per_address: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            total: 100,
            per_address: 50,
            handshakes_per_address: 20,
            handshake: Duration::from_secs(10),
        }
    }
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Where from.
    pub address: SocketAddr,
    /// The state of the node in which it came.
    pub epoch: u64,
    /// Its certificate, where it has one.
    pub client: Option<pki::Client>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    connections: usize,
    handshakes: usize,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, Count>,
}

/// A connection's place. Dropping it makes room.
#[derive(Debug)]
struct Place {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
    in_handshake: bool,
}

impl Place {
    fn take(counts: &Arc<Mutex<Counts>>, address: IpAddr, limits: &Limits) -> Option<Place> {
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if all.total >= limits.total {
            return None;
        }
        let own = all.by_address.entry(address).or_default();
        if own.connections >= limits.per_address || own.handshakes >= limits.handshakes_per_address
        {
            return None;
        }
        own.connections += 1;
        own.handshakes += 1;
        all.total += 1;
        Some(Place {
            counts: counts.clone(),
            address,
            in_handshake: true,
        })
    }

    fn shaken(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.by_address.get_mut(&self.address) {
            own.handshakes -= 1;
        }
        self.in_handshake = false;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        all.total -= 1;
        if let Some(own) = all.by_address.get_mut(&self.address) {
            own.connections -= 1;
            own.handshakes -= usize::from(self.in_handshake);
            if own.connections == 0 {
                all.by_address.remove(&self.address);
            }
        }
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Peer {
    stream: TlsStream<TcpStream>,
    info: PeerInfo,
    _place: Place,
}

impl Connected for Peer {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Takes connections of `listener` for as long as the stream is read.
pub fn incoming(
    listener: TcpListener,
    node: Arc<Node>,
    limits: Limits,
) -> ReceiverStream<std::io::Result<Peer>> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(accept(listener, node, limits, sender));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    node: Arc<Node>,
    limits: Limits,
    peers: mpsc::Sender<std::io::Result<Peer>>,
) {
    /// After an error such as too many open files, which goes away by itself.
    const PAUSE: Duration = Duration::from_millis(100);
    let counts = Arc::<Mutex<Counts>>::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = peers.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = Place::take(&counts, address.ip().to_canonical(), &limits) else {
            tracing::debug!(%address, "too many connections: this one was closed");
            continue;
        };
        let (node, peers) = (node.clone(), peers.clone());
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(limits.handshake, handshake(stream, place, &node));
            match shaken.await {
                Ok(Ok(peer)) => {
                    // Nobody takes it when the program ends.
                    let _ = peers.send(Ok(peer)).await;
                }
                Ok(Err(error)) => tracing::info!(%address, %error, "a TLS handshake failed"),
                Err(_) => tracing::info!(%address, "a TLS handshake took too long"),
            }
        });
    }
}

async fn handshake(stream: TcpStream, mut place: Place, node: &Node) -> std::io::Result<Peer> {
    let address = stream.peer_addr()?;
    // An answer is small and somebody waits for it.
    stream.set_nodelay(true)?;
    let current = node.current();
    let stream = TlsAcceptor::from(current.tls.clone())
        .accept(stream)
        .await?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let client = certificate
        .map(|der| pki::Client::read(der))
        .transpose()
        .map_err(std::io::Error::other)?;
    place.shaken();
    Ok(Peer {
        stream,
        info: PeerInfo {
            address,
            epoch: current.epoch,
            client,
        },
        _place: place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place() {
        let counts = Arc::<Mutex<Counts>>::default();
        let limits = Limits {
            total: 6,
            per_address: 4,
            handshakes_per_address: 2,
            ..Limits::default()
        };
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let other: IpAddr = "192.0.2.2".parse().unwrap();
        let take = |address| Place::take(&counts, address, &limits);
        let mut places = vec![take(one).unwrap(), take(one).unwrap()];
        assert!(take(one).is_none(), "two are in their handshake");
        places.iter_mut().for_each(Place::shaken);
        places.extend([take(one).unwrap(), take(one).unwrap()]);
        places.iter_mut().skip(2).for_each(Place::shaken);
        assert!(take(one).is_none(), "four from one address");
        places.extend([take(other).unwrap(), take(other).unwrap()]);
        assert!(take("192.0.2.3".parse().unwrap()).is_none(), "six in all");
        drop(places);
        assert_eq!(counts.lock().unwrap().total, 0);
        assert!(counts.lock().unwrap().by_address.is_empty());
    }
}
