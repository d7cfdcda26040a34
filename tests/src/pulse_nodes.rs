//! Pulse nodes of one Raft cluster.

use std::process::Command;
use std::time::Duration;

use backbeat_devstack::free_port;
use reqwest::Method;
use rustix::process::Signal;

use crate::{Cluster, Program, SmallDisk, wait_for, wait_until};

const LIMIT: Duration = Duration::from_mins(1);

/// The pulse nodes of a cluster, some of them running.
pub struct PulseNodes<'c> {
    cluster: &'c Cluster,
    flags: Vec<String>,
    addresses: Vec<String>,
    /// The addresses at which the nodes reach each other.
    peer_addresses: Vec<String>,
    programs: Vec<Option<Program>>,
    /// The file system that all nodes see.
    disk: Option<&'c SmallDisk>,
}

impl<'c> PulseNodes<'c> {
    /// Starts `count` nodes, named `n0`, `n1` and so on, with `flags`, in which `{node}` stands for the node's name.
    pub fn start(cluster: &'c Cluster, count: usize, flags: &[&str]) -> Self {
        Self::start_with(cluster, count, flags, str::to_owned, None)
    }

    /// Starts nodes as [`Self::start`] does. They see `disk`, which may be in place of a node's directory.
    pub fn start_on(cluster: &'c Cluster, count: usize, flags: &[&str], disk: &'c SmallDisk) -> Self {
        Self::start_with(cluster, count, flags, str::to_owned, Some(disk))
    }

    /// Starts nodes as [`Self::start`] does. Each is reached by the others at the address that `proxy` returns for its own.
    pub fn start_behind(cluster: &'c Cluster, count: usize, flags: &[&str], proxy: impl FnMut(&str) -> String) -> Self {
        Self::start_with(cluster, count, flags, proxy, None)
    }

    fn start_with(
        cluster: &'c Cluster,
        count: usize,
        flags: &[&str],
        mut proxy: impl FnMut(&str) -> String,
        disk: Option<&'c SmallDisk>,
    ) -> Self {
        let address = |_| format!("127.0.0.1:{}", free_port().expect("a free port"));
        let addresses: Vec<String> = (0..count).map(address).collect();
        let peer_addresses = addresses.iter().map(|address| proxy(address)).collect();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let programs = (0..count).map(|_| None).collect();
        let mut nodes = Self { cluster, flags, addresses, peer_addresses, programs, disk };
        (0..count).for_each(|node| nodes.start_node(node));
        nodes
    }

    /// Starts a node that is not running.
    pub fn start_node(&mut self, node: usize) {
        let name = format!("n{node}");
        let peers = self.peer_addresses.iter().enumerate().map(|(node, address)| format!("n{node}={address}"));
        let peers = peers.collect::<Vec<_>>().join(",");
        let flags: Vec<String> = self.flags.iter().map(|flag| flag.replace("{node}", &name)).collect();
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        args.extend(["--node", &name, "--peers", &peers, "--raft-bind", &self.addresses[node]]);
        let wrap = |command: Command| match self.disk {
            Some(disk) => disk.command(&command),
            None => command,
        };
        self.programs[node] = Some(self.cluster.serve_by("pulse", &args, wrap));
    }

    /// The program of a running node.
    pub fn node(&self, node: usize) -> &Program {
        self.programs[node].as_ref().unwrap_or_else(|| panic!("n{node} is not running"))
    }

    /// The address at which a node answers the other nodes' Raft requests.
    pub fn raft_address(&self, node: usize) -> &str {
        &self.addresses[node]
    }

    /// Returns the index of the node called `name`, as frames name it.
    pub fn index_of(name: &str) -> usize {
        name.strip_prefix('n').and_then(|index| index.parse().ok()).expect("nodes are named n0, n1 and so on")
    }

    /// Waits until a node has ended by itself. Returns its exit status and its log.
    pub fn wait(&mut self, node: usize) -> (i32, String) {
        let mut program = self.programs[node].take().unwrap_or_else(|| panic!("n{node} is not running"));
        (program.wait(), program.log())
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, node: usize) {
        self.node(node).signal(Signal::KILL);
        self.programs[node] = None;
    }

    /// Returns the node that reports the role of leader, if there is one.
    pub fn leader(&self) -> Option<usize> {
        let leads = |node: &usize| {
            let program = self.programs[*node].as_ref()?;
            let (_, body) = program.request(Method::GET, "/api/v1/status", "", None)?;
            body.contains("\"role\":\"leader\"").then_some(())
        };
        (0..self.programs.len()).find(|node| leads(node).is_some())
    }

    /// Waits for a leader and returns it.
    pub fn wait_for_leader(&self) -> usize {
        wait_for("a leader", LIMIT, || self.leader())
    }

    /// Waits until all nodes are ready.
    pub fn wait_until_ready(&self) {
        let is_ready = |node| self.node(node).get("/ready").is_some_and(|(status, _)| status == 200);
        wait_until("all nodes to be ready", LIMIT, || (0..self.programs.len()).all(is_ready));
    }

    /// The logs of all running nodes.
    pub fn logs(&self) -> String {
        let log = |(node, program): (usize, &Option<Program>)| {
            program.as_ref().map(|program| format!("== n{node}\n{}", program.log()))
        };
        self.programs.iter().enumerate().filter_map(log).collect::<Vec<_>>().join("\n")
    }
}
