//! Loopback ports.

use std::net::{Ipv4Addr, TcpListener};

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

/// Returns a loopback port that is free at this moment.
pub fn free_port() -> Result<u16, DevstackError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    listener
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .context(|| "cannot find a free port".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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
