//! Loopback ports.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::DevstackError;
use crate::error::Context;

/// Returns `port` if nothing listens on it, or a free port for 0.
///
/// Another process may still take the port before the service binds it; the service then fails to start, with the
/// reason in its log.
pub(crate) fn choose(service: &'static str, port: u16) -> Result<u16, DevstackError> {
    if port == 0 {
        return free_port();
    }
    // Binds to all interfaces, to detect a service that listens on any of them.
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map(|_| port)
        .map_err(|_| DevstackError::PortTaken { service, port })
}

/// Below the kernel's ephemeral ports: one of those may be given to any connection before the service binds it.
const PORTS: Range<u16> = 12_000..32_000;

/// Returns a loopback port that is free at this moment, and that this process has not returned lately.
///
/// # Errors
///
/// If no port from 12,000 to 31,999 is free.
pub fn free_port() -> Result<u16, DevstackError> {
    static RETURNED: AtomicU32 = AtomicU32::new(0);
    let ports = u32::from(PORTS.end - PORTS.start);
    // Processes that start at the same time have adjacent ids; 97 apart, they do not try the same ports.
    let first = process::id().wrapping_mul(97);
    (0..ports)
        .map(|_| {
            let position = first.wrapping_add(RETURNED.fetch_add(1, Ordering::Relaxed)) % ports;
            PORTS.start + u16::try_from(position).expect("it is below the number of ports")
        })
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))
        .context(|| format!("no port from {} to {} is free", PORTS.start, PORTS.end - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_skip_ports_in_use() {
        let first = free_port().expect("a free port");
        // If this fails, another program has the port, which does as well.
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, first + 1));
        let second = free_port().expect("a free port");
        assert!(second > first + 1 || second < first, "{first}, {second}");
    }

    #[test]
    fn chosen_port_with_a_listener_is_refused() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("the listener is bound").port();
        let error = choose("kafka", port).expect_err("the port is taken");
        assert_eq!(
            error.to_string(),
            format!("port {port} for kafka is taken by another process; stop it or choose another port")
        );
    }
}
