//! Secrets that requests must show.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A secret from a file; it never shows itself.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// The content of `path`, without the white space around it.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading the secret in {}", path.display()))?;
        let secret = text.trim();
        ensure!(!secret.is_empty(), "the secret in {} is empty", path.display());
        ensure!(
            secret.chars().all(|c| c.is_ascii_graphic()),
            "the secret in {} has characters that no header can carry; allowed are printable ASCII ones",
            path.display()
        );
        Ok(Self(secret.to_owned()))
    }

    /// For the header `Authorization: Bearer`.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `authorization`, a header's value, shows this secret. Takes the same time whatever it
    /// shows.
    pub(crate) fn is_shown_by(&self, authorization: Option<&[u8]>) -> bool {
        let shown = authorization.and_then(|header| header.strip_prefix(b"Bearer ")).unwrap_or_default();
        // Digests have one length, so that not even the secret's is told.
        Sha256::digest(shown).as_slice().ct_eq(Sha256::digest(&self.0).as_slice()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_secret_counts() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "open sesame\n").expect("writes");
        assert!(Secret::read(file.path()).is_err(), "a space");
        fs::write(file.path(), " \n").expect("writes");
        assert!(Secret::read(file.path()).is_err(), "nothing");
        fs::write(file.path(), "sesame\n").expect("writes");
        let secret = Secret::read(file.path()).expect("a secret");
        assert!(secret.is_shown_by(Some(b"Bearer sesame")));
        for wrong in [None, Some(&b"Bearer "[..]), Some(b"Bearer sesam"), Some(b"sesame"), Some(b"Bearer sesame ")] {
            assert!(!secret.is_shown_by(wrong));
        }
    }
}
