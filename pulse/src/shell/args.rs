//! Pulse's command line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use backbeat_broker::KafkaArgs;
use backbeat_schemas::{BeatIndex, Tempo};
use backbeat_service::{Environment, HttpArgs, LogArgs, SecretFile};

use super::control::WriteAuthorization;
use super::raft::{NodeInfo, NodeName, is_host_and_port};
use crate::core::{InitialConfig, MAX_BAR_LENGTH, RaftTimeouts, TempoBounds};

/// The cluster's metronome: publishes one `BeatFrame` per beat.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "pulse", version)]
pub struct Args {
    /// The cluster's name.
    #[arg(long, env = "BACKBEAT_CLUSTER", default_value = "backbeat")]
    pub cluster: String,

    /// This node's name, unique in the cluster.
    #[arg(long, env = "BACKBEAT_NODE", default_value = "pulse-1")]
    node: NodeName,

    /// All nodes of a new cluster, this one included, the same list on each: name=host:port,... A node without peers
    /// is a cluster by itself.
    #[arg(long, env = "BACKBEAT_PEERS", value_parser = peer, value_delimiter = ',')]
    peers: Vec<(NodeName, String)>,

    /// Waits to be added to a running cluster (POST /api/v1/members) instead of bootstrapping one.
    #[arg(long, conflicts_with = "peers", requires = "raft_bind")]
    pub join: bool,

    /// The address that Raft listens on; by default this node's in --peers. Without --peers it is also the address that
    /// other nodes connect to, and by default there is none.
    #[arg(long, env = "BACKBEAT_RAFT_BIND")]
    raft_bind: Option<SocketAddr>,

    /// The interval of Raft's heartbeats in milliseconds, the same on all nodes.
    #[arg(long, default_value_t = RaftTimeouts::DEFAULT.heartbeat.as_millis() as u64, value_name = "MS")]
    raft_heartbeat: u64,

    /// The longest time without a heartbeat before a node starts an election, in milliseconds, the same on all nodes: at
    /// least four heartbeats, and several times what a call between nodes takes.
    #[arg(long, default_value_t = RaftTimeouts::DEFAULT.election.as_millis() as u64, value_name = "MS")]
    raft_election_timeout: u64,

    /// A file with the secret that all nodes share and sign their calls with; Raft refuses other callers. It may have
    /// several, one a line: the first is used, all are accepted. A change takes effect within a second.
    #[arg(long, env = "BACKBEAT_RAFT_SECRET_FILE", value_name = "FILE")]
    raft_secret_file: Option<PathBuf>,

    /// A file with the bearer token that write requests must carry, or with several, one a line. A change takes effect
    /// within a second.
    #[arg(long, env = "BACKBEAT_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,

    /// The directory of Raft's store, which is in a subdirectory named for the node.
    #[arg(long, env = "BACKBEAT_DATA_DIR", default_value = "data")]
    data_dir: PathBuf,

    /// The tempo of a new cluster, in beats per minute.
    #[arg(long, default_value_t = Tempo::DEFAULT.bpm())]
    pub bpm: f64,

    /// Beats in a bar of a new cluster.
    #[arg(long, alias = "bar-length", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_BAR_LENGTH)))]
    pub bar: u16,

    /// Beats after a window's end in which its claims still count, for a new cluster; at most a bar.
    #[arg(long, default_value_t = 0)]
    pub grace: u16,

    /// The first beat's index in new topics, for a cluster that continues one whose topics were lost: above every beat that
    /// was published.
    #[arg(long, default_value_t = 0, value_name = "BEAT", value_parser = clap::value_parser!(u32))]
    pub first_beat: u32,

    /// The slowest tempo allowed, in beats per minute.
    #[arg(long, default_value_t = DEFAULT_MIN_BPM)]
    pub min_bpm: f64,

    /// The fastest tempo allowed, in beats per minute.
    #[arg(long, default_value_t = DEFAULT_MAX_BPM)]
    pub max_bpm: f64,

    /// Port of the HTTP server, 0 for a free one.
    #[arg(long, env = "BACKBEAT_ADMIN_PORT", default_value_t = 8080)]
    pub admin_port: u16,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub http: HttpArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub kafka: KafkaArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// The default tempo bounds.
const DEFAULT_MIN_BPM: f64 = 1.0;
const DEFAULT_MAX_BPM: f64 = 24.0;

/// The lowest possible bound: 10 % of a slower tempo would be less than the smallest tempo step.
const SLOWEST_BPM: f64 = 0.01;

/// A flag with an invalid value.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FlagError {
    /// The tempo is out of bounds.
    #[error("--bpm {bpm} is out of bounds; must be {min} to {max} BPM (--min-bpm, --max-bpm)")]
    Tempo {
        /// The requested tempo.
        bpm: f64,
        /// The slowest.
        min: f64,
        /// The fastest.
        max: f64,
    },
    /// The tempo bounds are invalid.
    #[error(
        "--min-bpm {min} and --max-bpm {max} are not valid bounds; must be 0.01 to 60000, the first at most the second"
    )]
    Bounds {
        /// The requested slowest tempo.
        min: f64,
        /// The requested fastest tempo.
        max: f64,
    },
    /// The grace is longer than a bar.
    #[error("--grace {grace} is longer than a bar; must be 0 to {bar} beats")]
    Grace {
        /// The requested grace, in beats.
        grace: u16,
        /// The bar length, in beats.
        bar: u16,
    },
    /// The cluster's name is invalid.
    #[error("--cluster {0:?} is not a cluster name; must be 1 to 100 printable ASCII characters")]
    Cluster(String),
    /// The peers do not include this node.
    #[error("--peers names {peers}, but not this node, {node:?} (--node)")]
    NotAmongPeers {
        /// The names of the peers.
        peers: String,
        /// This node's name.
        node: String,
    },
    /// The Raft address is unspecified (such as 0.0.0.0), so other nodes cannot connect to it.
    #[error(
        "--raft-bind {0} is not an address at which other nodes can reach this one; name this node in --peers, or bind to \
         such an address"
    )]
    Unspecified(SocketAddr),
    /// A peer is listed twice.
    #[error("--peers names {0:?} twice")]
    PeerTwice(String),
    /// One late heartbeat would start an election.
    #[error(
        "--raft-election-timeout {election} is too short; must be at least four times --raft-heartbeat, {heartbeat} ms"
    )]
    RaftTimeouts {
        /// The longest time without a heartbeat, in milliseconds.
        election: u64,
        /// The interval of heartbeats, in milliseconds.
        heartbeat: u64,
    },
    /// The Raft port would accept callers without a secret, in production.
    #[error(
        "raft would listen on {0} without authentication: with BACKBEAT_ENV=production that needs a --raft-secret-file"
    )]
    OpenRaft(SocketAddr),
}

impl Args {
    /// The configuration that a new cluster starts with.
    pub fn initial_config(&self) -> Result<InitialConfig, FlagError> {
        let TempoBounds { min, max } = self.bounds()?;
        let tempo = Tempo::try_from(self.bpm).ok().filter(|tempo| (min..=max).contains(tempo));
        let out_of_bounds = FlagError::Tempo { bpm: self.bpm, min: self.min_bpm, max: self.max_bpm };
        let Some(tempo) = tempo else { return Err(out_of_bounds) };
        if self.grace > self.bar {
            return Err(FlagError::Grace { grace: self.grace, bar: self.bar });
        }
        let printable = self.cluster.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if self.cluster.is_empty() || self.cluster.len() > 100 || !printable {
            return Err(FlagError::Cluster(self.cluster.clone()));
        }
        Ok(InitialConfig {
            cluster_id: self.cluster.clone(),
            tempo,
            bar_length: self.bar,
            grace_beats: self.grace,
            first_beat: BeatIndex::ZERO.plus(self.first_beat),
        })
    }

    /// The allowed tempos.
    pub fn bounds(&self) -> Result<TempoBounds, FlagError> {
        let (min, max) = (self.min_bpm, self.max_bpm);
        let tempo = |bpm| Tempo::try_from(bpm).ok().filter(|tempo| tempo.bpm() >= SLOWEST_BPM);
        let bounds = tempo(min).zip(tempo(max)).filter(|(min, max)| min <= max);
        bounds.map(|(min, max)| TempoBounds { min, max }).ok_or(FlagError::Bounds { min, max })
    }

    /// Raft's timeouts.
    pub fn raft_timeouts(&self) -> Result<RaftTimeouts, FlagError> {
        let (heartbeat, election) = (self.raft_heartbeat, self.raft_election_timeout);
        let timeouts =
            RaftTimeouts { heartbeat: Duration::from_millis(heartbeat), election: Duration::from_millis(election) };
        if timeouts.are_valid() { Ok(timeouts) } else { Err(FlagError::RaftTimeouts { election, heartbeat }) }
    }

    /// Logs a warning if the tempo bounds are not the default ones.
    pub(crate) fn warn_about_bounds(&self) {
        if self.min_bpm != DEFAULT_MIN_BPM || self.max_bpm != DEFAULT_MAX_BPM {
            tracing::warn!(min = self.min_bpm, max = self.max_bpm, "tempo bounds differ from the default 1 to 24 BPM");
        }
    }

    /// This node's name.
    pub(crate) fn node(&self) -> NodeName {
        self.node
    }

    /// The directory of this node's store.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.data_dir.join(self.node.to_string())
    }

    /// The nodes of a new cluster; none for a node that joins one.
    pub(crate) fn bootstrap_nodes(&self) -> Result<BTreeMap<NodeName, NodeInfo>, FlagError> {
        let mut bootstrap_nodes = BTreeMap::new();
        for (node, address) in &self.peers {
            if bootstrap_nodes.insert(*node, NodeInfo { address: address.clone() }).is_some() {
                return Err(FlagError::PeerTwice(node.to_string()));
            }
        }
        if self.join {
            return Ok(bootstrap_nodes);
        }
        if bootstrap_nodes.is_empty() {
            if let Some(address) = self.raft_bind.filter(|address| address.ip().is_unspecified()) {
                return Err(FlagError::Unspecified(address));
            }
            let address = self.raft_bind.map(|address| address.to_string()).unwrap_or_default();
            return Ok([(self.node, NodeInfo { address })].into());
        }
        if bootstrap_nodes.contains_key(&self.node) {
            return Ok(bootstrap_nodes);
        }
        let names: Vec<String> = bootstrap_nodes.keys().map(NodeName::to_string).collect();
        Err(FlagError::NotAmongPeers { peers: names.join(", "), node: self.node.to_string() })
    }

    /// The host:port that Raft listens on; `None` for a node without peers that no other node can join.
    pub(crate) fn raft_listen_address(&self) -> Option<String> {
        let own = self.peers.iter().find(|(node, _)| *node == self.node).map(|(_, address)| address.clone());
        self.raft_bind.map(|address| address.to_string()).or(own)
    }

    /// The secrets that calls to Raft's port must be signed with.
    pub(crate) fn raft_secrets(&self) -> anyhow::Result<Option<SecretFile>> {
        self.raft_secret_file.as_deref().map(|path| SecretFile::open(path, self.log.environment)).transpose()
    }

    /// Refuses, in production, a Raft port that other machines can reach without a secret; elsewhere logs a warning.
    pub(crate) fn check_raft_port(&self, address: SocketAddr, has_secret: bool) -> Result<(), FlagError> {
        if has_secret || address.ip().is_loopback() {
            return Ok(());
        }
        if self.log.environment == Environment::Production {
            return Err(FlagError::OpenRaft(address));
        }
        tracing::warn!(%address, "raft's port accepts unauthenticated callers: give all nodes a --raft-secret-file");
        Ok(())
    }

    /// The authorization of write requests.
    pub(crate) fn write_authorization(&self) -> anyhow::Result<WriteAuthorization> {
        Ok(match &self.admin_token_file {
            Some(path) => WriteAuthorization::Token(SecretFile::open(path, self.log.environment)?),
            None if self.http.admin_host.is_loopback() => WriteAuthorization::Loopback,
            None => WriteAuthorization::Disabled,
        })
    }
}

fn peer(text: &str) -> Result<(NodeName, String), String> {
    let (node, address) = text.split_once('=').ok_or_else(|| format!("{text:?} is not name=host:port"))?;
    let node = node.parse().map_err(|error| format!("{error}"))?;
    if is_host_and_port(address) {
        Ok((node, address.to_owned()))
    } else {
        Err(format!("{address:?} is not host:port"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn args(flags: &[&str]) -> Args {
        Args::parse_from([&["pulse"], flags].concat())
    }

    fn initial_config(flags: &[&str]) -> Result<InitialConfig, FlagError> {
        args(flags).initial_config()
    }

    #[test]
    fn initial_config_without_flags_has_the_defaults() {
        let initial_config = initial_config(&[]).expect("defaults are allowed");
        assert_eq!((initial_config.tempo.bpm(), initial_config.bar_length, initial_config.grace_beats), (1.0, 8, 0));
    }

    #[test]
    fn initial_config_out_of_bounds_is_refused_with_the_allowed_range() {
        let error = initial_config(&["--bpm", "25"]).expect_err("too fast").to_string();
        assert_eq!(error, "--bpm 25 is out of bounds; must be 1 to 24 BPM (--min-bpm, --max-bpm)");
        assert!(initial_config(&["--bpm", "25", "--max-bpm", "30"]).is_ok());
        assert!(initial_config(&["--bpm", "NaN"]).is_err());
        assert_eq!(initial_config(&["--bar", "4", "--grace", "5"]), Err(FlagError::Grace { grace: 5, bar: 4 }));
    }

    #[test]
    fn tempo_bounds_that_are_invalid_are_refused() {
        assert!(args(&["--min-bpm", "0.001"]).bounds().is_err());
        assert!(args(&["--min-bpm", "30"]).bounds().is_err());
        assert!(args(&["--max-bpm", "inf"]).bounds().is_err());
    }

    #[test]
    fn peers_that_are_invalid_are_refused() {
        let peers = "a=127.0.0.1:9001,b=b.example:9002";
        let args = args(&["--node", "a", "--peers", peers]);
        assert_eq!(args.bootstrap_nodes().expect("valid peers").len(), 2);
        assert_eq!(args.raft_listen_address().as_deref(), Some("127.0.0.1:9001"));
        let stranger = self::args(&["--node", "c", "--peers", peers]);
        let error = stranger.bootstrap_nodes().expect_err("not among the peers").to_string();
        assert_eq!(error, "--peers names a, b, but not this node, \"c\" (--node)");
        for wrong in ["a", "a=", "a=host", "a=host:x", "a=:1", "=host:1", "a=host:0"] {
            assert!(Args::try_parse_from(["pulse", "--peers", wrong]).is_err(), "{wrong}");
        }
        let twice = self::args(&["--node", "a", "--peers", "a=h:1,a=h:2"]);
        assert_eq!(twice.bootstrap_nodes(), Err(FlagError::PeerTwice("a".into())));
    }

    #[test]
    fn election_timeout_below_four_heartbeats_is_refused() {
        let timeouts = |heartbeat, election| {
            args(&["--raft-heartbeat", heartbeat, "--raft-election-timeout", election]).raft_timeouts()
        };
        assert_eq!(args(&[]).raft_timeouts(), Ok(RaftTimeouts::DEFAULT));
        assert!(timeouts("100", "400").is_ok());
        assert!(timeouts("0", "400").is_err());
        let error = timeouts("100", "399").expect_err("too short").to_string();
        assert_eq!(
            error,
            "--raft-election-timeout 399 is too short; must be at least four times --raft-heartbeat, 100 ms"
        );
    }

    #[test]
    fn raft_port_without_a_secret_is_refused_in_production() {
        let open: SocketAddr = "0.0.0.0:9000".parse().expect("an address");
        let args = args(&["--env", "production"]);
        assert_eq!(args.check_raft_port(open, false), Err(FlagError::OpenRaft(open)));
        assert_eq!(args.check_raft_port(open, true), Ok(()));
        assert_eq!(args.check_raft_port("127.0.0.1:9000".parse().expect("an address"), false), Ok(()));
    }
}
