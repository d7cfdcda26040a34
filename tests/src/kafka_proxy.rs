//! A proxy of the Kafka protocol between programs and a real broker, to cause faults that a broker cannot be made to
//! cause.
//!
//! It forwards bytes unchanged, except that metadata and coordinators name the proxy instead of the brokers, so that
//! clients connect to the proxy only. Faults are per client id.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
pub use kafka_protocol::ResponseError;
pub use kafka_protocol::messages::ApiKey;
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{
    FetchResponse, FindCoordinatorResponse, ListOffsetsRequest, MetadataResponse, OffsetFetchResponse, RequestHeader,
    ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::runtime;

/// The maximum length of a frame, in bytes.
const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;

/// A proxy in front of the broker at one address. It runs until the test ends.
pub struct KafkaProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    broker: String,
    state: Mutex<State>,
    /// Notifies connections of changed faults.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// The client ids seen so far, and the instants at which they were first seen.
    clients: BTreeMap<String, Instant>,
    /// The client ids that have joined a consumer group.
    members: BTreeSet<String>,
    /// The client ids that have asked for offsets of partitions, with the topics of these.
    listed: BTreeSet<(String, String)>,
    /// The clients whose connections are all cut.
    blocked: BTreeSet<String>,
    /// The clients, and the kinds of requests to which they get no response.
    held: BTreeSet<(String, i16)>,
    /// True if metadata responses have topics and no brokers, like those of a broker that its controller has fenced.
    without_brokers: bool,
    /// The age of a client from which on it gets no ends of partitions.
    lifetime: Option<Duration>,
    /// The faults to cause, each once, in this order for each kind of request.
    faults: Vec<(ApiKey, ProxyFault)>,
    /// The number of further `OffsetFetch` requests to refuse with the error that the broker is not the coordinator.
    offset_fetches_to_refuse: u32,
    /// The number of further responses with records to replace by one that the log ends where they begin.
    ends_to_misreport: u32,
    /// The number of further responses with records, of members of groups, to replace by this error of their partitions.
    fetches_to_refuse: (u32, i16),
}

/// A fault of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyFault {
    /// The request reaches the broker after this time.
    LateRequest(Duration),
    /// The connection is cut before the broker has the request.
    LostRequest,
    /// The broker gets the request twice, and the client two responses.
    Twice,
    /// The response reaches the client after this time.
    LateResponse(Duration),
    /// The broker does what it is asked, and the connection is cut before the client has the response.
    LostResponse,
}

impl ProxyFault {
    fn is_of_the_response(self) -> bool {
        matches!(self, Self::LateResponse(_) | Self::LostResponse)
    }
}

/// A request that awaits its response.
struct Request {
    api: i16,
    version: i16,
    client: String,
    /// The fault of its response.
    fault: Option<ProxyFault>,
}

impl KafkaProxy {
    /// Starts a proxy in front of `broker`, host:port.
    pub fn start(broker: &str) -> Self {
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (changed, _) = watch::channel(());
        let shared = Arc::new(Shared { address, broker: broker.to_owned(), state: Mutex::default(), changed });
        runtime().spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared }
    }

    /// Returns the address that clients connect to.
    pub fn bootstrap_servers(&self) -> String {
        self.address.to_string()
    }

    /// Returns the ids of all clients that have connected so far.
    pub fn clients(&self) -> BTreeSet<String> {
        self.shared.lock().clients.keys().cloned().collect()
    }

    /// Returns the client ids that have asked for offsets of partitions of `topic`, as those that read it do.
    pub fn readers(&self, topic: &str) -> BTreeSet<String> {
        let state = self.shared.lock();
        state.listed.iter().filter(|(_, listed)| listed == topic).map(|(client, _)| client.clone()).collect()
    }

    /// Returns the ids of the clients that have joined a consumer group.
    pub fn group_members(&self) -> BTreeSet<String> {
        self.shared.lock().members.clone()
    }

    /// Holds back the response to every request of the kind `api` of the client with this id.
    pub fn hold_responses(&self, client: &str, api: ApiKey) {
        self.shared.lock().held.insert((client.to_owned(), api as i16));
    }

    /// Cuts every connection of the client with this id, until the test ends.
    pub fn block(&self, client: &str) {
        self.shared.lock().blocked.insert(client.to_owned());
        self.shared.changed.send_replace(());
    }

    /// From now on, cuts the connection of a client that asks for the ends of partitions later than `lifetime` after its first
    /// request; `None` ends that. Such a client counts as lost, while its owner is not held up by its other requests.
    pub fn set_lifetime(&self, lifetime: Option<Duration>) {
        self.shared.lock().lifetime = lifetime;
    }

    /// Causes `fault` at the next request of the kind `api`, after those that were to be caused before.
    pub fn cause(&self, api: ApiKey, fault: ProxyFault) {
        self.shared.lock().faults.push((api, fault));
    }

    /// Returns the number of faults that are still to be caused at requests of the kind `api`.
    pub fn pending_faults(&self, api: ApiKey) -> usize {
        self.shared.lock().faults.iter().filter(|(key, _)| *key == api).count()
    }

    /// Answers the next `requests` requests for committed offsets as a broker that is not the group's coordinator.
    pub fn refuse_offset_fetches(&self, requests: u32) {
        self.shared.lock().offset_fetches_to_refuse = requests;
    }

    /// Returns the number of requests that are still to be refused.
    pub fn offset_fetches_to_refuse(&self) -> u32 {
        self.shared.lock().offset_fetches_to_refuse
    }

    /// Replaces the records in the next `responses` to fetches by the statement that the log ends where they begin, like a
    /// partition leader that has just started and does not know its high watermark yet.
    pub fn misreport_ends(&self, responses: u32) {
        self.shared.lock().ends_to_misreport = responses;
    }

    /// Returns the number of responses to fetches that are still to be replaced.
    pub fn ends_to_misreport(&self) -> u32 {
        self.shared.lock().ends_to_misreport
    }

    /// Replaces the records in the next `responses` to fetches of groups' members by the error `reason` of their partitions.
    pub fn refuse_fetches(&self, responses: u32, reason: ResponseError) {
        self.shared.lock().fetches_to_refuse = (responses, reason.code());
    }

    /// Returns the number of responses to fetches that are still to be refused.
    pub fn fetches_to_refuse(&self) -> u32 {
        self.shared.lock().fetches_to_refuse.0
    }

    /// Sets whether metadata responses lack their brokers.
    pub fn set_without_brokers(&self, without_brokers: bool) {
        self.shared.lock().without_brokers = without_brokers;
    }
}

impl State {
    fn has_fault_of_fetches(&self, client: &str) -> bool {
        self.ends_to_misreport > 0 || (self.fetches_to_refuse.0 > 0 && self.members.contains(client))
    }

    /// If a partition's part of a response to a fetch has records, takes them out and causes a fault instead.
    fn falsify(&mut self, client: &str, partition: &mut PartitionData) {
        let Some(records) = partition.records.as_mut().filter(|records| !records.is_empty()) else { return };
        if !self.has_fault_of_fetches(client) {
            return;
        }
        // An empty list, not null, which librdkafka takes for a response that is cut off.
        let mut records = std::mem::take(records);
        if self.ends_to_misreport > 0 {
            self.ends_to_misreport -= 1;
            // Records begin with the offset of the first one.
            let first = records.get_i64();
            (partition.high_watermark, partition.last_stable_offset) = (first, first);
        } else {
            self.fetches_to_refuse.0 -= 1;
            partition.error_code = self.fetches_to_refuse.1;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Registers a request's client. Returns false if the client is blocked.
    fn admit(&self, client: &str) -> bool {
        let mut state = self.lock();
        if !state.clients.contains_key(client) {
            state.clients.insert(client.to_owned(), Instant::now());
        }
        !state.blocked.contains(client)
    }

    fn record_listed(&self, client: &str, mut frame: Bytes, version: i16) {
        RequestHeader::decode(&mut frame, ApiKey::ListOffsets.request_header_version(version))
            .expect("a client's header");
        let request = ListOffsetsRequest::decode(&mut frame, version).expect("a client's request");
        let topics = request.topics.iter().map(|topic| (client.to_owned(), topic.name.to_string()));
        self.lock().listed.extend(topics);
    }

    /// Returns true if this is a request for the ends of partitions, with which clients are probed, by a client that is older
    /// than its lifetime.
    fn is_probe_of_an_old_client(&self, api: i16, client: &str) -> bool {
        let state = self.lock();
        let is_old = |lifetime| state.clients.get(client).is_some_and(|since| since.elapsed() > lifetime);
        api == ApiKey::ListOffsets as i16 && state.lifetime.is_some_and(is_old)
    }

    /// Returns the response that the client gets instead of the broker's response `frame`.
    fn rewrite(&self, request: &Request, frame: Bytes) -> Bytes {
        match ApiKey::try_from(request.api) {
            Ok(api @ ApiKey::Metadata) => {
                Self::transform::<MetadataResponse>(api, request.version, frame, |response| {
                    if self.lock().without_brokers {
                        response.brokers.clear();
                    }
                    for broker in &mut response.brokers {
                        (broker.host, broker.port) = (self.host(), self.address.port().into());
                    }
                })
            }
            Ok(api @ ApiKey::OffsetFetch) if self.take_refused_offset_fetch() => {
                Self::transform::<OffsetFetchResponse>(api, request.version, frame, |response| {
                    let error = ResponseError::NotCoordinator.code();
                    response.error_code = error;
                    for group in &mut response.groups {
                        group.error_code = error;
                        group.topics.clear();
                    }
                    response.topics.clear();
                })
            }
            Ok(api @ ApiKey::Fetch) if self.lock().has_fault_of_fetches(&request.client) => {
                Self::transform::<FetchResponse>(api, request.version, frame, |response| {
                    let partitions = response.responses.iter_mut().flat_map(|topic| &mut topic.partitions);
                    for partition in partitions {
                        self.lock().falsify(&request.client, partition);
                    }
                })
            }
            Ok(api @ ApiKey::FindCoordinator) => {
                Self::transform::<FindCoordinatorResponse>(api, request.version, frame, |response| {
                    if !response.host.is_empty() {
                        (response.host, response.port) = (self.host(), self.address.port().into());
                    }
                    for coordinator in response.coordinators.iter_mut().filter(|found| !found.host.is_empty()) {
                        (coordinator.host, coordinator.port) = (self.host(), self.address.port().into());
                    }
                })
            }
            _ => frame,
        }
    }

    /// Returns true if the current request for committed offsets is to be refused, and counts it.
    fn take_refused_offset_fetch(&self) -> bool {
        let mut state = self.lock();
        let is_refused = state.offset_fetches_to_refuse > 0;
        state.offset_fetches_to_refuse = state.offset_fetches_to_refuse.saturating_sub(1);
        is_refused
    }

    /// Takes the fault to cause at a request of the kind `api`.
    fn take_fault(&self, api: i16) -> Option<ProxyFault> {
        let mut state = self.lock();
        let position = state.faults.iter().position(|(key, _)| *key as i16 == api)?;
        Some(state.faults.remove(position).1)
    }

    fn is_held(&self, request: &Request) -> bool {
        self.lock().held.contains(&(request.client.clone(), request.api))
    }

    fn host(&self) -> StrBytes {
        StrBytes::from_string(self.address.ip().to_string())
    }

    fn transform<R: Decodable + Encodable>(
        api: ApiKey,
        version: i16,
        mut frame: Bytes,
        change: impl FnOnce(&mut R),
    ) -> Bytes {
        let header_version = api.response_header_version(version);
        let header = ResponseHeader::decode(&mut frame, header_version).expect("a broker's header");
        let mut response = R::decode(&mut frame, version).expect("a broker's response");
        change(&mut response);
        let mut changed = BytesMut::new();
        header.encode(&mut changed, header_version).expect("what was decoded encodes again");
        response.encode(&mut changed, version).expect("what was decoded encodes again");
        changed.freeze()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // If the broker is stopped, the client's connection is closed.
            if let Ok(broker) = TcpStream::connect(&shared.broker).await {
                connection(client, broker, &shared).await;
            }
        });
    }
}

async fn connection(client: TcpStream, broker: TcpStream, shared: &Shared) {
    let _ = (client.set_nodelay(true), broker.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let (name, requests) = (Mutex::new(None), Mutex::new(HashMap::new()));
    // The first of these to end closes the connection.
    tokio::select! {
        _ = forward_requests(from_client, to_broker, &name, &requests, shared) => {}
        _ = forward_responses(from_broker, to_client, &requests, shared) => {}
        () = until_blocked(&name, shared) => {}
    }
}

async fn until_blocked(name: &Mutex<Option<String>>, shared: &Shared) {
    let mut changed = shared.changed.subscribe();
    while changed.changed().await.is_ok() {
        if lock(name).as_ref().is_some_and(|client| !shared.admit(client)) {
            return;
        }
    }
}

async fn forward_requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    name: &Mutex<Option<String>>,
    requests: &Mutex<HashMap<i32, Request>>,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let frame = read_frame(&mut from).await?;
        let mut header = frame.clone();
        let (api, version, correlation) = (header.get_i16(), header.get_i16(), header.get_i32());
        let length = usize::try_from(header.get_i16()).unwrap_or(0);
        let client = String::from_utf8_lossy(&header[..length]).into_owned();
        if !shared.admit(&client) || shared.is_probe_of_an_old_client(api, &client) {
            return Ok(());
        }
        if api == ApiKey::JoinGroup as i16 {
            shared.lock().members.insert(client.clone());
        }
        if api == ApiKey::ListOffsets as i16 {
            shared.record_listed(&client, frame.clone(), version);
        }
        *lock(name) = Some(client.clone());
        let fault = shared.take_fault(api);
        let of_response = fault.filter(|fault| fault.is_of_the_response());
        lock(requests).insert(correlation, Request { api, version, client, fault: of_response });
        match fault {
            Some(ProxyFault::LostRequest) => return Ok(()),
            Some(ProxyFault::LateRequest(time)) => sleep(time).await,
            Some(ProxyFault::Twice) => write_frame(&mut to, &frame).await?,
            Some(ProxyFault::LateResponse(_) | ProxyFault::LostResponse) | None => {}
        }
        write_frame(&mut to, &frame).await?;
    }
}

async fn forward_responses(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    requests: &Mutex<HashMap<i32, Request>>,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let frame = read_frame(&mut from).await?;
        let correlation = frame.clone().get_i32();
        let request = lock(requests).remove(&correlation);
        match request.as_ref().and_then(|request| request.fault) {
            Some(ProxyFault::LostResponse) => return Ok(()),
            Some(ProxyFault::LateResponse(time)) => sleep(time).await,
            _ => {}
        }
        let frame = match request {
            Some(request) if shared.is_held(&request) => continue,
            Some(request) => shared.rewrite(&request, frame),
            None => frame,
        };
        write_frame(&mut to, &frame).await?;
    }
}

async fn read_frame(from: &mut OwnedReadHalf) -> io::Result<Bytes> {
    let length = usize::try_from(from.read_i32().await?).map_err(io::Error::other)?;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut frame = vec![0; length];
    from.read_exact(&mut frame).await?;
    Ok(frame.into())
}

async fn write_frame(to: &mut OwnedWriteHalf, frame: &Bytes) -> io::Result<()> {
    let mut bytes = BytesMut::with_capacity(frame.len() + 4);
    bytes.put_i32(i32::try_from(frame.len()).map_err(io::Error::other)?);
    bytes.put_slice(frame);
    to.write_all(&bytes).await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
