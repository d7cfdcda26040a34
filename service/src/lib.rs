//! The foundation of every BACKBEAT program: command line, logging, shutdown, exit code and HTTP server.

mod check;
mod command_line;
mod http;
mod logging;
mod openapi;
mod outcome;
mod secret;
mod server;
mod shutdown;

pub use check::Check;
pub use command_line::command_line;
pub use http::{ApiError, HttpArgs, base_routes, write_atomically};
pub use logging::{Environment, LogArgs};
pub use openapi::router_with_openapi;
pub use outcome::{block_on, exit_code};
pub use secret::{Secret, SecretFile};
pub use server::{serve, serve_at_most};
pub use shutdown::{Shutdown, on_signals, on_signals_in};
