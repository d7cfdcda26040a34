//! The schema registry (Confluent API).

use std::error::Error as _;
use std::time::Duration;

use backbeat_schemas::Record;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_id, post_schema};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, SchemaType, SuppliedSchema};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// The registry's error codes for "no such schema".
const SCHEMA_NOT_FOUND: [u32; 2] = [40_403, 404];

/// A schema registry.
#[derive(Debug, Clone)]
pub struct Registry {
    url: String,
    settings: SrSettings,
    http: reqwest::Client,
}

/// The registry did not take a schema.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// It did not answer, or not as a registry should; worth another try.
    #[error("the schema registry at {url} does not answer: {reason}")]
    Unavailable {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It answered that it does not want the schema.
    #[error("the schema registry at {url} refuses the schema of {subject}: {reason}")]
    Refused {
        /// Where.
        url: String,
        /// The subject.
        subject: String,
        /// Its reason.
        reason: String,
    },
}

/// A schema could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The registry answered that there is none of that id.
    #[error("schema id {0} is not known to the registry")]
    Unknown(u32),
    /// The registry did not answer.
    #[error("the schema registry does not answer: {0}")]
    Unavailable(String),
}

impl Registry {
    /// The registry at `url`.
    pub fn new(url: &str) -> Result<Self, RegistryError> {
        let url = url.trim_end_matches('/').to_owned();
        let unusable = |reason: String| RegistryError::Unavailable { url: url.clone(), reason };
        let settings = SrSettings::new_builder(url.clone()).set_timeout(REQUEST_TIMEOUT).build();
        let settings = settings.map_err(|error| unusable(error.to_string()))?;
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        let http = http.map_err(|error| unusable(error.to_string()))?;
        Ok(Self { url, settings, http })
    }

    /// Registers `R`'s schema for `subject`, compatible for ever in both directions, and returns its
    /// id. Waits, with log lines, while the registry is away.
    pub async fn register<R: Record>(&self, subject: &str) -> Result<u32, RegistryError> {
        loop {
            match self.try_register::<R>(subject).await {
                Err(error @ RegistryError::Unavailable { .. }) => {
                    tracing::warn!(%error, subject, "waiting for the schema registry");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                settled => return settled,
            }
        }
    }

    async fn try_register<R: Record>(&self, subject: &str) -> Result<u32, RegistryError> {
        // The registry's own default may be NONE.
        let url = format!("{}/config/{subject}", self.url);
        let request =
            self.http.put(url).header("Content-Type", CONTENT_TYPE).body(r#"{"compatibility":"FULL_TRANSITIVE"}"#);
        let answer = request.send().await.map_err(|error| self.unavailable(error.to_string()))?;
        if !answer.status().is_success() {
            return Err(self.unavailable(format!("setting the compatibility of {subject}: HTTP {}", answer.status())));
        }
        let schema = SuppliedSchema::new(None, SchemaType::Avro, R::schema().text().to_owned());
        match post_schema(&self.settings, subject.to_owned(), schema).await {
            Ok(registered) => Ok(registered.id),
            Err(error) => Err(match registry_code(&error) {
                Some(409 | 422 | 40_901 | 42_201..=42_299) => RegistryError::Refused {
                    url: self.url.clone(),
                    subject: subject.to_owned(),
                    reason: error.to_string(),
                },
                _ => self.unavailable(error.to_string()),
            }),
        }
    }

    /// The text of the schema with this id.
    pub async fn fetch(&self, id: u32) -> Result<String, FetchError> {
        match get_schema_by_id(id, &self.settings).await {
            Ok(registered) => Ok(registered.schema),
            Err(error) if registry_code(&error).is_some_and(|code| SCHEMA_NOT_FOUND.contains(&code)) => {
                Err(FetchError::Unknown(id))
            }
            Err(error) => Err(FetchError::Unavailable(error.to_string())),
        }
    }

    fn unavailable(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { url: self.url.clone(), reason }
    }
}

/// The `error_code` of the registry's answer, if it gave one.
fn registry_code(error: &SRCError) -> Option<u32> {
    error.source()?.downcast_ref::<RawError>().map(|raw| raw.error_code).filter(|code| *code != 0)
}
