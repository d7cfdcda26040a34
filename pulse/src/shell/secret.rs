//! Secrets that requests must carry as a bearer token.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A secret read from a file. It implements neither `Debug` nor `Display`, so that no log shows it.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// Reads the secret from `path`, without the white space around it.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the secret in {}", path.display()))?;
        let secret = text.trim();
        ensure!(!secret.is_empty(), "the secret in {} is empty", path.display());
        ensure!(
            secret.chars().all(|c| c.is_ascii_graphic()),
            "the secret in {} has characters that an HTTP header cannot carry; must be printable ASCII characters without spaces",
            path.display()
        );
        Ok(Self(secret.to_owned()))
    }

    /// The secret itself, for the header `Authorization: Bearer`.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Returns true if `authorization`, a header's value, carries this secret. The comparison takes constant time.
    pub(crate) fn matches(&self, authorization: Option<&[u8]>) -> bool {
        let token = authorization.and_then(|header| header.strip_prefix(b"Bearer ")).unwrap_or_default();
        // Digests have one length, so that the time does not reveal the length of the secret.
        Sha256::digest(token).as_slice().ct_eq(Sha256::digest(&self.0).as_slice()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_matched_by_the_whole_token_only() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "open sesame\n").expect("the file is written");
        assert!(Secret::read(file.path()).is_err(), "it contains a space");
        fs::write(file.path(), " \n").expect("the file is written");
        assert!(Secret::read(file.path()).is_err(), "it is empty");
        fs::write(file.path(), "sesame\n").expect("the file is written");
        let secret = Secret::read(file.path()).expect("a secret");
        assert!(secret.matches(Some(b"Bearer sesame")));
        for wrong in [None, Some(&b"Bearer "[..]), Some(b"Bearer sesam"), Some(b"sesame"), Some(b"Bearer sesame ")] {
            assert!(!secret.matches(wrong));
        }
    }
}
