//! Secrets in files, which may change while a program runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::Environment;

/// The shortest secret in production. Whoever records signed calls can try secrets as fast as a computer hashes: 24 random
/// characters of base64 are 144 bits.
const MIN_PRODUCTION_LENGTH: usize = 24;
/// A secret that starts like this is an example that everybody can read.
const EXAMPLE_PREFIX: &[u8] = b"development-only";
/// The interval at which the files are read again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// A secret. It implements neither `Debug` nor `Display`, so that no log shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The secret's bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// A file with a secret; clones share its content.
///
/// It has one secret a line: the first is used, and all are accepted. So a secret is replaced node by node, without a moment
/// in which nodes refuse each other.
#[derive(Clone)]
pub struct SecretFile {
    path: PathBuf,
    environment: Environment,
    secrets: Arc<RwLock<Arc<[Secret]>>>,
}

impl SecretFile {
    /// Reads the secrets in `path`. In production an error if one is short, or an example.
    pub fn open(path: &Path, environment: Environment) -> anyhow::Result<Self> {
        let secrets = read(path, environment)?;
        Ok(Self { path: path.to_owned(), environment, secrets: Arc::new(RwLock::new(secrets)) })
    }

    /// Returns the accepted secrets.
    pub fn secrets(&self) -> Arc<[Secret]> {
        Arc::clone(&self.secrets.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the secret to use.
    pub fn first(&self) -> Secret {
        self.secrets().first().expect("a file without a secret is refused").clone()
    }

    /// Reads the file again whenever it has changed. While it has an error, the secrets stay, and the error is logged once.
    pub async fn follow(self) {
        let mut last_error = None;
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let error = self.reload().err().map(|error| format!("{error:#}"));
            if error != last_error
                && let Some(reason) = &error
            {
                tracing::warn!(reason, "cannot reload a secret; the last one stays");
            }
            last_error = error;
        }
    }

    fn reload(&self) -> anyhow::Result<()> {
        let secrets = read(&self.path, self.environment)?;
        let mut current = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        if *current != secrets {
            tracing::info!(file = %self.path.display(), accepted = secrets.len(), "a secret has changed");
            *current = secrets;
        }
        Ok(())
    }

    /// Returns the secret that `authorization`, a header's value, carries as a bearer token. The comparison takes constant time.
    pub fn bearer(&self, authorization: Option<&[u8]>) -> Option<Secret> {
        let token = authorization.and_then(|header| header.strip_prefix(b"Bearer ")).unwrap_or_default();
        // Digests have one length, so that the time does not reveal the length of the secret.
        let digest = Sha256::digest(token);
        let secrets = self.secrets();
        secrets.iter().find(|secret| digest.as_slice().ct_eq(Sha256::digest(&secret.0).as_slice()).into()).cloned()
    }
}

/// Reads one secret from each line of the file that is not empty.
fn read(path: &Path, environment: Environment) -> anyhow::Result<Arc<[Secret]>> {
    let file = path.display();
    let text = fs::read(path).with_context(|| format!("cannot read the secret in {file}"))?;
    let mut secrets = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let secret = line.trim_ascii();
        if secret.is_empty() {
            continue;
        }
        ensure!(
            secret.iter().all(u8::is_ascii_graphic),
            "the secret in {file}, line {number}, has characters that an HTTP header cannot carry; must be printable ASCII \
             characters without spaces"
        );
        ensure!(
            environment != Environment::Production
                || (secret.len() >= MIN_PRODUCTION_LENGTH && !secret.starts_with(EXAMPLE_PREFIX)),
            "the secret in {file}, line {number}, is an example or too short: with BACKBEAT_ENV=production it must have at \
             least {MIN_PRODUCTION_LENGTH} characters; make one with `openssl rand -hex 32`"
        );
        secrets.push(Secret(secret.to_owned()));
    }
    ensure!(!secrets.is_empty(), "the secret in {file} is empty");
    Ok(secrets.into())
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::*;

    fn file(content: &str) -> NamedTempFile {
        let file = NamedTempFile::new().expect("a file");
        fs::write(file.path(), content).expect("the file is written");
        file
    }

    #[test]
    fn token_is_matched_as_a_whole_only() {
        let file = file("sesame\n");
        let secrets = SecretFile::open(file.path(), Environment::Development).expect("a secret");
        assert!(secrets.bearer(Some(b"Bearer sesame")).is_some());
        for wrong in [None, Some(&b"Bearer "[..]), Some(b"Bearer sesam"), Some(b"sesame"), Some(b"Bearer sesame ")] {
            assert!(secrets.bearer(wrong).is_none());
        }
    }

    #[test]
    fn secrets_that_are_invalid_are_refused() {
        for (environment, content, reason) in [
            (Environment::Development, "open sesame\n", "has characters that an HTTP header cannot carry"),
            (Environment::Development, " \n\n", "is empty"),
            (Environment::Production, "sesame\n", "is an example or too short"),
            (Environment::Production, "development-only-replace-me\n", "is an example or too short"),
            (Environment::Production, "a-secret-that-is-long-enough\nsesame\n", "line 2, is an example or too short"),
        ] {
            let file = file(content);
            let error = SecretFile::open(file.path(), environment).err().expect("the secret is refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn changed_file_replaces_the_secrets_unless_it_is_invalid() {
        let file = file("old\n");
        let secrets = SecretFile::open(file.path(), Environment::Development).expect("a secret");
        let accepts = |token: &str| secrets.bearer(Some(format!("Bearer {token}").as_bytes())).is_some();
        fs::write(file.path(), "new\nold\n").expect("the file is written");
        secrets.reload().expect("the file is valid");
        assert!(accepts("old") && accepts("new"));
        fs::write(file.path(), "\n").expect("the file is written");
        assert!(secrets.reload().is_err());
        assert!(accepts("old") && accepts("new"));
        fs::write(file.path(), "new\n").expect("the file is written");
        secrets.reload().expect("the file is valid");
        assert!(!accepts("old") && accepts("new"));
    }
}
