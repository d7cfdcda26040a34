//! The JSON bodies of the services' HTTP APIs, shared by the services, which write most of them, and their clients.

pub mod pulse;
pub mod reverb;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of an error response.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The reason for the failure, and the allowed values.
    pub error: String,
}
