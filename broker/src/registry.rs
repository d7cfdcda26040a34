//! The schema registry (Confluent API).

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

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// The registry's error codes for "no such schema".
const SCHEMA_NOT_FOUND: [u32; 2] = [40_403, 404];

/// A schema registry.
#[derive(Debug, Clone)]
pub struct Registry {
    url: String,
    /// The same without credentials, for messages.
    shown: String,
    settings: SrSettings,
    http: Client,
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
    /// The authority that should sign its certificate cannot be read.
    #[error("reading the schema registry's authority (--schema-registry-ca) from {}: {reason}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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

/// How a schema of ours stands to what a registry has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// How many versions the subject has.
    pub versions: usize,
    /// Whether ours is one of them.
    pub is_ours: bool,
    /// What the subject demands of a new version, if that was set.
    pub compatibility: Option<String>,
    /// Why ours could not be a new version.
    pub refused: Option<String>,
}

impl Registry {
    /// The registry that `args` name.
    pub fn new(args: &KafkaArgs) -> Result<Self, RegistryError> {
        let url = args.schema_registry.trim_end_matches('/').to_owned();
        let shown = without_credentials(&url);
        let unusable = |reason: String| RegistryError::Unavailable { url: shown.clone(), reason };
        let authority = authority(args)?;
        let client = || Client::builder().timeout(REQUEST_TIMEOUT).tls_certs_merge(authority.clone());
        let settings = SrSettings::new_builder(url.clone()).build_with(client());
        let settings = settings.map_err(|error| unusable(causes(&error)))?;
        let http = client().build().map_err(|error| unusable(causes(&error)))?;
        Ok(Self { url, shown, settings, http })
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
        let answer = request.send().await.map_err(|error| self.unavailable(causes(&error)))?;
        if !answer.status().is_success() {
            return Err(self.unavailable(format!("setting the compatibility of {subject}: HTTP {}", answer.status())));
        }
        let schema = SuppliedSchema::new(None, SchemaType::Avro, R::schema().text().to_owned());
        match post_schema(&self.settings, subject.to_owned(), schema).await {
            Ok(registered) => Ok(registered.id),
            Err(error) => Err(match registry_code(&error) {
                Some(409 | 422 | 40_901 | 42_201..=42_299) => RegistryError::Refused {
                    url: self.shown.clone(),
                    subject: subject.to_owned(),
                    reason: error.to_string(),
                },
                _ => self.unavailable(causes(&error)),
            }),
        }
    }

    /// How `R`'s schema stands to the versions of `subject`. Changes nothing.
    pub async fn check<R: Record>(&self, subject: &str) -> Result<Registered, RegistryError> {
        self.check_text(subject, R::schema().text()).await
    }

    /// The same for any schema.
    pub async fn check_text(&self, subject: &str, schema: &str) -> Result<Registered, RegistryError> {
        let subject_url = format!("{}/subjects/{subject}", self.url);
        let versions = self.ask(self.http.get(format!("{subject_url}/versions"))).await?;
        let versions = versions.as_ref().and_then(Value::as_array).map_or(0, Vec::len);
        let config = self.ask(self.http.get(format!("{}/config/{subject}", self.url))).await?;
        let level = config.as_ref().and_then(|config| config["compatibilityLevel"].as_str());
        let mut found = Registered { versions, is_ours: false, compatibility: level.map(str::to_owned), refused: None };
        if versions > 0 {
            let body = json!({ "schema": schema });
            found.is_ours = self.ask(self.post(subject_url, &body)).await?.is_some();
            let url = format!("{}/compatibility/subjects/{subject}/versions?verbose=true", self.url);
            let verdict = self.ask(self.post(url, &body)).await?.unwrap_or_default();
            if verdict["is_compatible"] != true {
                let messages = verdict["messages"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let reason = messages.collect::<Vec<_>>().join("; ");
                found.refused = Some(if reason.is_empty() { "the registry says no more".to_owned() } else { reason });
            }
        }
        Ok(found)
    }

    fn post(&self, url: String, body: &Value) -> RequestBuilder {
        // Set first, so that it stands there once.
        self.http.post(url).header("Content-Type", CONTENT_TYPE).json(body)
    }

    /// The answer's body; `None` where there is no such thing.
    async fn ask(&self, request: RequestBuilder) -> Result<Option<Value>, RegistryError> {
        let answer = request.send().await;
        let answer = answer.map_err(|error| self.unavailable(causes(&error)))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                answer.json().await.map(Some).map_err(|error| self.unavailable(causes(&error)))
            }
            status => {
                let text = answer.text().await.unwrap_or_default();
                Err(self.unavailable(format!("HTTP {status}: {text}")))
            }
        }
    }

    /// The text of the schema with this id.
    pub async fn fetch(&self, id: u32) -> Result<String, FetchError> {
        match get_schema_by_id(id, &self.settings).await {
            Ok(registered) => Ok(registered.schema),
            Err(error) if registry_code(&error).is_some_and(|code| SCHEMA_NOT_FOUND.contains(&code)) => {
                Err(FetchError::Unknown(id))
            }
            Err(error) => Err(FetchError::Unavailable(causes(&error))),
        }
    }

    fn unavailable(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { url: self.shown.clone(), reason }
    }
}

/// The certificates in the file that `args` name.
fn authority(args: &KafkaArgs) -> Result<Vec<Certificate>, RegistryError> {
    let Some(path) = &args.schema_registry_ca else {
        return Ok(Vec::new());
    };
    let unreadable = |reason: String| RegistryError::Authority { path: path.clone(), reason };
    let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unreadable(error.to_string()))?;
    if certificates.is_empty() { Err(unreadable("it holds no certificate".to_owned())) } else { Ok(certificates) }
}

/// `url` as it may be shown: a user and a password may stand in it.
pub fn without_credentials(url: &str) -> String {
    match Url::parse(url) {
        Ok(parsed) if parsed.username().is_empty() && parsed.password().is_none() => url.to_owned(),
        Ok(mut parsed) => {
            // They fail for addresses that cannot have any.
            let _ = parsed.set_username("");
            let _ = parsed.set_password(None);
            parsed.to_string()
        }
        Err(error) => format!("(an address that is none: {error})"),
    }
}

/// What happened and why: the clients' own words leave the causes out.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The `error_code` of the registry's answer, if it gave one.
fn registry_code(error: &SRCError) -> Option<u32> {
    error.source()?.downcast_ref::<RawError>().map(|raw| raw.error_code).filter(|code| *code != 0)
}
