//! Slow and idle HTTP clients: they cost others nothing, and keep no program from ending.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use backbeat_tests::{Cluster, Program, wait_until};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

const LIMIT: Duration = Duration::from_mins(1);
const CONNECTIONS: usize = 10_000;

/// Opens connections that begin a request and never end it.
fn open_slow_connections(address: &str) -> Vec<TcpStream> {
    let open = |_| {
        let mut connection = TcpStream::connect(address).expect("the port accepts connections");
        // The program may have closed it already.
        let _ = connection.write_all(b"GET /ready HTTP/1.1\r\nhost: ");
        connection
    };
    (0..CONNECTIONS).map(open).collect()
}

fn address(program: &Program) -> String {
    program.url().expect("the program listens").trim_start_matches("http://").to_owned()
}

#[test]
fn slow_connections_to_every_port_touch_neither_readiness_nor_beats() {
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).expect("a soft limit may be raised");
    let cluster = Cluster::new(1);
    let nodes =
        backbeat_tests::PulseNodes::start(&cluster, 1, &["--cluster", "it", "--bpm", "240", "--max-bpm", "240"]);
    let reverb = cluster.serve("reverb", &["--cluster", "it"]);
    let pulse = nodes.node(0);
    pulse.wait_ready();
    reverb.wait_ready();
    let ports = [address(pulse), nodes.raft_address(0).to_owned(), address(&reverb)];
    for port in ports {
        let mut slow = open_slow_connections(&port);
        let beats = cluster.frames().len();
        for program in [pulse, &reverb] {
            assert_eq!(program.get("/ready").map(|(status, _)| status), Some(200), "slow connections to {port}");
        }
        wait_until("ten more beats", LIMIT, || cluster.frames().len() >= beats + 10);
        assert!(cluster.frames().iter().skip(beats).all(|frame| !frame.degraded));
        // The oldest connection was closed for newer ones.
        let oldest = &mut slow[0];
        oldest.set_read_timeout(Some(LIMIT)).expect("a timeout");
        let read = oldest.read(&mut [0; 1]);
        let is_reset = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(matches!(read, Ok(0)) || read.is_err_and(is_reset));
    }
}

#[test]
fn programs_with_an_open_connection_end() {
    let cluster = Cluster::new(1);
    let start = |name| cluster.serve(name, &["--cluster", "it"]);
    for mut program in [start("pulse"), start("reverb")] {
        wait_until("an answer", LIMIT, || program.get("/health").is_some());
        let mut connection = TcpStream::connect(address(&program)).expect("the port accepts connections");
        connection.write_all(b"GET /health HTTP/1.1\r\nhost: ").expect("the connection is open");
        program.signal(Signal::TERM);
        assert_eq!(program.wait(), 0, "{}", program.log());
    }
}
