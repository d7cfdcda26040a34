//! Pulse's command line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use backbeat_broker::KafkaArgs;
use backbeat_schemas::Tempo;
use backbeat_service::{Environment, HttpArgs, LogArgs};

use super::http::Writers;
use super::raft::{Member, NodeName};
use super::secret::Secret;
use crate::core::{Bounds, InitialConfig, MAX_BAR_LENGTH};

/// The cluster's metronome: publishes one `BeatFrame` per beat.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "pulse", version)]
pub struct Args {
    /// The cluster's name.
    #[arg(long, env = "BACKBEAT_CLUSTER", default_value = "backbeat")]
    pub cluster: String,

    /// This node's name, unlike any other's.
    #[arg(long, env = "BACKBEAT_NODE", default_value = "pulse-1")]
    node: NodeName,

    /// All members of a new cluster, this one too, the same on each: name=host:port,... A node without peers is a
    /// cluster by itself.
    #[arg(long, env = "BACKBEAT_PEERS", value_parser = peer, value_delimiter = ',')]
    peers: Vec<(NodeName, String)>,

    /// Waits to be added to a running cluster (POST /api/v1/members) instead of founding one.
    #[arg(long, conflicts_with = "peers", requires = "raft_bind")]
    pub join: bool,

    /// The address that other nodes reach Raft at; by default this node's in --peers, and none without peers.
    #[arg(long, env = "BACKBEAT_RAFT_BIND")]
    raft_bind: Option<SocketAddr>,

    /// A file with the secret that all nodes share: Raft answers nobody else.
    #[arg(long, env = "BACKBEAT_RAFT_SECRET_FILE", value_name = "FILE")]
    raft_secret_file: Option<PathBuf>,

    /// A file with the token that operators must show to change something.
    #[arg(long, env = "BACKBEAT_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,

    /// Where Raft's store is kept, in a directory of the node's name.
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

/// The prototype's bounds.
const DEFAULT_MIN_BPM: f64 = 1.0;
const DEFAULT_MAX_BPM: f64 = 24.0;

/// Slower, and 10 % would be less than the smallest step.
const SLOWEST_BPM: f64 = 0.01;

/// A flag whose value cannot be.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FlagError {
    /// A tempo out of bounds.
    #[error("--bpm {bpm} is out of bounds; allowed are {min} to {max} BPM (--min-bpm, --max-bpm)")]
    Tempo {
        /// The tempo asked for.
        bpm: f64,
        /// The slowest.
        min: f64,
        /// The fastest.
        max: f64,
    },
    /// Bounds that cannot be.
    #[error(
        "--min-bpm {min} and --max-bpm {max} are no bounds; allowed are 0.01 to 60000, the first at most the second"
    )]
    Bounds {
        /// The slowest asked for.
        min: f64,
        /// The fastest asked for.
        max: f64,
    },
    /// A grace longer than a bar.
    #[error("--grace {grace} is longer than a bar; allowed are 0 to {bar} beats")]
    Grace {
        /// The grace asked for.
        grace: u16,
        /// The bar.
        bar: u16,
    },
    /// A name that cannot be a cluster's.
    #[error("--cluster {0:?} is no cluster name; allowed are 1 to 100 printable ASCII characters")]
    Cluster(String),
    /// Peers without this node.
    #[error("--peers names {peers}, but not this node, {node:?} (--node)")]
    NotAmongPeers {
        /// Who is named.
        peers: String,
        /// Who is not.
        node: String,
    },
    /// An address that every node could have.
    #[error(
        "--raft-bind {0} is no address that other nodes can reach this one at; name this node in --peers, or bind one"
    )]
    Unspecified(SocketAddr),
    /// A peer that is named twice.
    #[error("--peers names {0:?} twice")]
    PeerTwice(String),
    /// A Raft port that everybody could use.
    #[error(
        "raft would listen on {0}, open to everybody: with BACKBEAT_ENV=production that needs a --raft-secret-file"
    )]
    OpenRaft(SocketAddr),
}

impl Args {
    /// What a new cluster starts with.
    pub fn initial_config(&self) -> Result<InitialConfig, FlagError> {
        let Bounds { min, max } = self.bounds()?;
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
        Ok(InitialConfig { cluster_id: self.cluster.clone(), tempo, bar_length: self.bar, grace_beats: self.grace })
    }

    /// The tempi that are allowed.
    pub fn bounds(&self) -> Result<Bounds, FlagError> {
        let (min, max) = (self.min_bpm, self.max_bpm);
        let tempo = |bpm| Tempo::try_from(bpm).ok().filter(|tempo| tempo.bpm() >= SLOWEST_BPM);
        let bounds = tempo(min).zip(tempo(max)).filter(|(min, max)| min <= max);
        bounds.map(|(min, max)| Bounds { min, max }).ok_or(FlagError::Bounds { min, max })
    }

    /// Says what is allowed here and not elsewhere.
    pub(crate) fn warn_of_bounds(&self) {
        if self.min_bpm != DEFAULT_MIN_BPM || self.max_bpm != DEFAULT_MAX_BPM {
            tracing::warn!(min = self.min_bpm, max = self.max_bpm, "tempo bounds differ from the standard 1 to 24 BPM");
        }
    }

    /// This node's name.
    pub(crate) fn node(&self) -> NodeName {
        self.node
    }

    /// Where this node's store is.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.data_dir.join(self.node.to_string())
    }

    /// The members of a new cluster; none for a node that joins one.
    pub(crate) fn bootstrap_members(&self) -> Result<BTreeMap<NodeName, Member>, FlagError> {
        let mut bootstrap_members = BTreeMap::new();
        for (node, address) in &self.peers {
            if bootstrap_members.insert(*node, Member { address: address.clone() }).is_some() {
                return Err(FlagError::PeerTwice(node.to_string()));
            }
        }
        if self.join {
            return Ok(bootstrap_members);
        }
        if bootstrap_members.is_empty() {
            if let Some(address) = self.raft_bind.filter(|address| address.ip().is_unspecified()) {
                return Err(FlagError::Unspecified(address));
            }
            let address = self.raft_bind.map(|address| address.to_string()).unwrap_or_default();
            return Ok([(self.node, Member { address })].into());
        }
        if bootstrap_members.contains_key(&self.node) {
            return Ok(bootstrap_members);
        }
        let names: Vec<String> = bootstrap_members.keys().map(NodeName::to_string).collect();
        Err(FlagError::NotAmongPeers { peers: names.join(", "), node: self.node.to_string() })
    }

    /// host:port that Raft listens on; `None` for a node without peers that nobody can join.
    pub(crate) fn raft_listens_on(&self) -> Option<String> {
        let own = self.peers.iter().find(|(node, _)| *node == self.node).map(|(_, address)| address.clone());
        self.raft_bind.map(|address| address.to_string()).or(own)
    }

    /// The secret of Raft's port.
    pub(crate) fn raft_secret(&self) -> anyhow::Result<Option<Secret>> {
        self.raft_secret_file.as_deref().map(Secret::read).transpose()
    }

    /// Refuses a Raft port that is open to everybody.
    pub(crate) fn check_raft_port(&self, listens_on: SocketAddr, has_secret: bool) -> Result<(), FlagError> {
        if has_secret || listens_on.ip().is_loopback() {
            return Ok(());
        }
        if self.log.environment == Environment::Production {
            return Err(FlagError::OpenRaft(listens_on));
        }
        tracing::warn!(%listens_on, "raft's port is open to everybody: give all nodes a --raft-secret-file");
        Ok(())
    }

    /// Who may change something.
    pub(crate) fn writers(&self) -> anyhow::Result<Writers> {
        Ok(match &self.admin_token_file {
            Some(path) => Writers::Holders(Secret::read(path)?),
            None if self.http.admin_host.is_loopback() => Writers::Local,
            None => Writers::Nobody,
        })
    }
}

fn peer(text: &str) -> Result<(NodeName, String), String> {
    let (node, address) = text.split_once('=').ok_or_else(|| format!("{text:?} is not name=host:port"))?;
    let node = node.parse().map_err(|error| format!("{error}"))?;
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok((node, address.to_owned()))
        }
        _ => Err(format!("{address:?} is not host:port")),
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
    fn the_defaults_are_the_prototypes() {
        let initial_config = initial_config(&[]).expect("defaults are allowed");
        assert_eq!((initial_config.tempo.bpm(), initial_config.bar_length, initial_config.grace_beats), (1.0, 8, 0));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_with_the_bounds() {
        let error = initial_config(&["--bpm", "25"]).expect_err("too fast").to_string();
        assert_eq!(error, "--bpm 25 is out of bounds; allowed are 1 to 24 BPM (--min-bpm, --max-bpm)");
        assert!(initial_config(&["--bpm", "25", "--max-bpm", "30"]).is_ok());
        assert!(initial_config(&["--bpm", "NaN"]).is_err());
        assert_eq!(initial_config(&["--bar", "4", "--grace", "5"]), Err(FlagError::Grace { grace: 5, bar: 4 }));
    }

    #[test]
    fn bounds_are_checked() {
        assert!(args(&["--min-bpm", "0.001"]).bounds().is_err());
        assert!(args(&["--min-bpm", "30"]).bounds().is_err());
        assert!(args(&["--max-bpm", "inf"]).bounds().is_err());
    }

    #[test]
    fn peers_are_checked() {
        let peers = "a=127.0.0.1:9001,b=b.example:9002";
        let args = args(&["--node", "a", "--peers", peers]);
        assert_eq!(args.bootstrap_members().expect("two").len(), 2);
        assert_eq!(args.raft_listens_on().as_deref(), Some("127.0.0.1:9001"));
        let stranger = self::args(&["--node", "c", "--peers", peers]);
        let error = stranger.bootstrap_members().expect_err("it is not among them").to_string();
        assert_eq!(error, "--peers names a, b, but not this node, \"c\" (--node)");
        for wrong in ["a", "a=", "a=host", "a=host:x", "a=:1", "=host:1", "a=host:0"] {
            assert!(Args::try_parse_from(["pulse", "--peers", wrong]).is_err(), "{wrong}");
        }
        let twice = self::args(&["--node", "a", "--peers", "a=h:1,a=h:2"]);
        assert_eq!(twice.bootstrap_members(), Err(FlagError::PeerTwice("a".into())));
    }

    #[test]
    fn an_open_raft_port_needs_a_secret_in_production() {
        let open: SocketAddr = "0.0.0.0:9000".parse().expect("an address");
        let args = args(&["--env", "production"]);
        assert_eq!(args.check_raft_port(open, false), Err(FlagError::OpenRaft(open)));
        assert_eq!(args.check_raft_port(open, true), Ok(()));
        assert_eq!(args.check_raft_port("127.0.0.1:9000".parse().expect("an address"), false), Ok(()));
    }
}
