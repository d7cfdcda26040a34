//! A client of the schema registry (Confluent API).

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use backbeat_schemas::Record;
use reqwest::{Certificate, Client, RequestBuilder, StatusCode, Url};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_id, post_schema};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, SchemaType, SuppliedSchema};
use serde_json::{Value, json};

use crate::KafkaArgs;
use crate::broker::{REGISTRY_CREDENTIALS, read_properties};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// The registry's error codes for "no such schema".
const SCHEMA_NOT_FOUND: [u32; 2] = [40_403, 404];

/// A client of a schema registry.
#[derive(Debug, Clone)]
pub struct Registry {
    url: String,
    /// The URL without credentials, for messages.
    display_url: String,
    settings: SrSettings,
    http: Client,
}

/// An error of registering or checking a schema, or of setting up the client.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The registry did not answer, or answered unexpectedly; a retry may succeed.
    #[error("the schema registry at {url} is unavailable: {reason}")]
    Unavailable {
        /// The registry's URL, without credentials.
        url: String,
        /// The cause.
        reason: String,
    },
    /// The file with the CA certificate of the registry cannot be used.
    #[error(
        "cannot read the schema registry's CA certificate (--schema-registry-ca) from {}: {reason}",
        path.display()
    )]
    CaCertificate {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The credentials of the registry cannot be used.
    #[error("cannot use the schema registry's credentials ({REGISTRY_CREDENTIALS}, --kafka-config): {0}")]
    Credentials(String),
    /// The registry rejected the schema.
    #[error("the schema registry at {url} rejects the schema of {subject}: {reason}")]
    Rejected {
        /// The registry's URL, without credentials.
        url: String,
        /// The subject.
        subject: String,
        /// The registry's reason.
        reason: String,
    },
}

/// An error of fetching a schema.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The registry answered that it has no schema of that id.
    #[error("schema id {0} is not known to the registry")]
    Unknown(u32),
    /// The registry did not answer.
    #[error("the schema registry is unavailable: {0}")]
    Unavailable(String),
}

/// The result of checking a schema against a subject of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectStatus {
    /// The number of the subject's versions.
    pub versions: usize,
    /// True if the checked schema is one of these versions.
    pub is_registered: bool,
    /// The subject's compatibility level; `None` if it has none of its own.
    pub compatibility: Option<String>,
    /// The reason why the schema is incompatible with the subject's versions; `None` if it is compatible.
    pub refused: Option<String>,
}

impl Registry {
    /// Creates a client of the registry that `args` name; connects to nothing yet.
    pub fn new(args: &KafkaArgs) -> Result<Self, RegistryError> {
        let url = url_with_credentials(args)?;
        let display_url = without_credentials(&url);
        let unusable = |reason: String| RegistryError::Unavailable { url: display_url.clone(), reason };
        let certificates = ca_certificates(args)?;
        let client = || Client::builder().timeout(REQUEST_TIMEOUT).tls_certs_merge(certificates.clone());
        let settings = SrSettings::new_builder(url.clone()).build_with(client());
        let settings = settings.map_err(|error| unusable(error_chain(&error)))?;
        let http = client().build().map_err(|error| unusable(error_chain(&error)))?;
        Ok(Self { url, display_url, settings, http })
    }

    /// Registers `R`'s schema for `subject`, with compatibility level `FULL_TRANSITIVE`, and returns its id. Retries
    /// and logs while the registry is unavailable.
    pub async fn register<R: Record>(&self, subject: &str) -> Result<u32, RegistryError> {
        loop {
            match self.try_register::<R>(subject).await {
                Err(error @ RegistryError::Unavailable { .. }) => {
                    tracing::warn!(%error, subject, "waiting for the schema registry");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn try_register<R: Record>(&self, subject: &str) -> Result<u32, RegistryError> {
        // Set explicitly, since the registry's default may be NONE.
        let url = format!("{}/config/{subject}", self.url);
        let request =
            self.http.put(url).header("Content-Type", CONTENT_TYPE).body(r#"{"compatibility":"FULL_TRANSITIVE"}"#);
        let answer = request.send().await.map_err(|error| self.unavailable(error_chain(&error)))?;
        if !answer.status().is_success() {
            let status = answer.status();
            return Err(self.unavailable(format!("cannot set the compatibility of {subject}: HTTP {status}")));
        }
        let schema = SuppliedSchema::new(None, SchemaType::Avro, R::schema().text().to_owned());
        match post_schema(&self.settings, subject.to_owned(), schema).await {
            Ok(registered) => Ok(registered.id),
            Err(error) => Err(match registry_code(&error) {
                Some(409 | 422 | 40_901 | 42_201..=42_299) => RegistryError::Rejected {
                    url: self.display_url.clone(),
                    subject: subject.to_owned(),
                    reason: error.to_string(),
                },
                _ => self.unavailable(error_chain(&error)),
            }),
        }
    }

    /// Checks `R`'s schema against the versions of `subject`. Changes nothing in the registry.
    pub async fn check<R: Record>(&self, subject: &str) -> Result<SubjectStatus, RegistryError> {
        self.check_text(subject, R::schema().text()).await
    }

    /// Checks the JSON text of any schema against the versions of `subject`. Changes nothing in the registry.
    pub async fn check_text(&self, subject: &str, schema: &str) -> Result<SubjectStatus, RegistryError> {
        let subject_url = format!("{}/subjects/{subject}", self.url);
        let versions = self.send(self.http.get(format!("{subject_url}/versions"))).await?;
        let versions = versions.as_ref().and_then(Value::as_array).map_or(0, Vec::len);
        let config = self.send(self.http.get(format!("{}/config/{subject}", self.url))).await?;
        let level = config.as_ref().and_then(|config| config["compatibilityLevel"].as_str());
        let mut found =
            SubjectStatus { versions, is_registered: false, compatibility: level.map(str::to_owned), refused: None };
        if versions > 0 {
            let body = json!({ "schema": schema });
            found.is_registered = self.send(self.post(subject_url, &body)).await?.is_some();
            let url = format!("{}/compatibility/subjects/{subject}/versions?verbose=true", self.url);
            let answer = self.send(self.post(url, &body)).await?.unwrap_or_default();
            if answer["is_compatible"] != true {
                let messages = answer["messages"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let reason = messages.collect::<Vec<_>>().join("; ");
                found.refused =
                    Some(if reason.is_empty() { "the registry gives no reason".to_owned() } else { reason });
            }
        }
        Ok(found)
    }

    fn post(&self, url: String, body: &Value) -> RequestBuilder {
        // Set before `json`, which would otherwise add a content type of its own.
        self.http.post(url).header("Content-Type", CONTENT_TYPE).json(body)
    }

    /// Sends `request` and returns the JSON body of the response; `None` for 404 Not Found.
    async fn send(&self, request: RequestBuilder) -> Result<Option<Value>, RegistryError> {
        let answer = request.send().await;
        let answer = answer.map_err(|error| self.unavailable(error_chain(&error)))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                answer.json().await.map(Some).map_err(|error| self.unavailable(error_chain(&error)))
            }
            status => {
                let text = answer.text().await.unwrap_or_default();
                Err(self.unavailable(format!("HTTP {status}: {text}")))
            }
        }
    }

    /// Returns the numbers of `subject`'s versions, ascending, with those that were deleted softly: records written with them
    /// stay in the log.
    pub async fn versions(&self, subject: &str) -> Result<Vec<u32>, RegistryError> {
        let url = format!("{}/subjects/{subject}/versions?deleted=true", self.url);
        let answer = self.send(self.http.get(url)).await?.unwrap_or_else(|| json!([]));
        let mut versions: Vec<u32> = serde_json::from_value(answer).map_err(|error| {
            self.unavailable(format!("the versions of {subject} are not a list of numbers: {error}"))
        })?;
        versions.sort_unstable();
        Ok(versions)
    }

    /// Returns the schema's id and its JSON text of a version of `subject`; `None` if there is no such version.
    pub async fn version(&self, subject: &str, version: u32) -> Result<Option<(u32, String)>, RegistryError> {
        let url = format!("{}/subjects/{subject}/versions/{version}?deleted=true", self.url);
        let Some(answer) = self.send(self.http.get(url)).await? else { return Ok(None) };
        let id = answer["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        match (id, answer["schema"].as_str()) {
            (Some(id), Some(text)) => Ok(Some((id, text.to_owned()))),
            _ => Err(self.unavailable(format!("version {version} of {subject} has no id or no schema: {answer}"))),
        }
    }

    /// Fetches the JSON text of the schema with this id.
    pub async fn fetch(&self, id: u32) -> Result<String, FetchError> {
        match get_schema_by_id(id, &self.settings).await {
            Ok(registered) => Ok(registered.schema),
            Err(error) if registry_code(&error).is_some_and(|code| SCHEMA_NOT_FOUND.contains(&code)) => {
                Err(FetchError::Unknown(id))
            }
            Err(error) => Err(FetchError::Unavailable(error_chain(&error))),
        }
    }

    fn unavailable(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { url: self.display_url.clone(), reason }
    }
}

/// Reads the CA certificates from the file that `args` name.
fn ca_certificates(args: &KafkaArgs) -> Result<Vec<Certificate>, RegistryError> {
    let Some(path) = &args.schema_registry_ca else {
        return Ok(Vec::new());
    };
    let unreadable = |reason: String| RegistryError::CaCertificate { path: path.clone(), reason };
    let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unreadable(error.to_string()))?;
    if certificates.is_empty() { Err(unreadable("the file has no certificate".to_owned())) } else { Ok(certificates) }
}

/// Returns the registry's URL, with the credentials of the properties file if it has some.
fn url_with_credentials(args: &KafkaArgs) -> Result<String, RegistryError> {
    let url = args.schema_registry.trim_end_matches('/').to_owned();
    let Some(path) = &args.kafka_config else { return Ok(url) };
    let properties = read_properties(path).map_err(|error| RegistryError::Credentials(error.to_string()))?;
    let Some((_, credentials)) = properties.into_iter().find(|(key, _)| key == REGISTRY_CREDENTIALS) else {
        return Ok(url);
    };
    let (user, password) =
        credentials.split_once(':').ok_or_else(|| RegistryError::Credentials("must be user:password".to_owned()))?;
    let mut parsed = Url::parse(&url).map_err(|error| RegistryError::Credentials(error.to_string()))?;
    let set = parsed.set_username(user).and_then(|()| parsed.set_password(Some(password)));
    set.map_err(|()| RegistryError::Credentials("the registry's URL cannot have any".to_owned()))?;
    Ok(parsed.to_string().trim_end_matches('/').to_owned())
}

/// Returns `url` without user and password, for logs and messages.
pub fn without_credentials(url: &str) -> String {
    match Url::parse(url) {
        Ok(parsed) if parsed.username().is_empty() && parsed.password().is_none() => url.to_owned(),
        Ok(mut parsed) => {
            // These fail only for URLs that cannot contain credentials.
            let _ = parsed.set_username("");
            let _ = parsed.set_password(None);
            parsed.to_string()
        }
        Err(error) => format!("(invalid URL: {error})"),
    }
}

/// Returns an error's text with all its causes: the HTTP clients' errors display without them.
fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Returns the `error_code` of the registry's response, if it has one.
fn registry_code(error: &SRCError) -> Option<u32> {
    error.source()?.downcast_ref::<RawError>().map(|raw| raw.error_code).filter(|code| *code != 0)
}
