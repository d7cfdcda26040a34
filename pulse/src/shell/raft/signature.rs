//! Signatures of the calls between nodes: an HMAC with a secret that all nodes share.
//!
//! The secret itself never travels. A call is accepted once, and only within half a minute. The response is signed, too, so that
//! nobody else answers for a node.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue};
use backbeat_service::{Secret, SecretFile};
use chrono::Utc;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The header that names the caller's cluster.
pub(crate) const CLUSTER: &str = "x-backbeat-cluster";
/// The header that names the caller.
pub(crate) const NODE: &str = "x-backbeat-node";
/// The header that names the called node: a wrong address may be that of another node.
pub(crate) const TARGET: &str = "x-backbeat-target";
/// The header with the time of the call, in milliseconds since the Unix epoch.
const TIME: &str = "x-backbeat-time";
/// The header with 128 random bits, which no other call has.
const NONCE: &str = "x-backbeat-nonce";
/// The header with the signature by the nodes' secret.
pub(crate) const SIGNATURE: &str = "x-backbeat-signature";
/// The header with the signature by the operators' token, of calls that forward an operator's command.
pub(crate) const AUTHORIZATION: &str = "x-backbeat-authorization";

/// The largest difference between a call's time and the called node's.
const MAX_SKEW: Duration = Duration::from_secs(30);

/// The reason for a refusal of a call.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureError {
    /// There is no signature, or none that an accepted secret makes.
    #[error("the signature is missing or wrong: do all nodes have the same secret (--raft-secret-file)?")]
    Wrong,
    /// The call was made too long ago, or its node's clock is wrong.
    #[error(
        "by its clock the caller made the call {age_ms} ms ago; must be within {} s: synchronise the nodes' clocks",
        MAX_SKEW.as_secs()
    )]
    Time {
        /// The difference; negative if the caller's clock is ahead.
        age_ms: i64,
    },
    /// The call was received before.
    #[error("the call was received before, so somebody repeats recorded calls")]
    Repeated,
}

/// A call, as it is signed.
pub(crate) struct Call<'c> {
    pub(crate) headers: &'c HeaderMap,
    pub(crate) path: &'c str,
    pub(crate) body: &'c [u8],
}

/// Returns the headers that make a call unique.
pub(crate) fn unique_headers() -> [(&'static str, String); 2] {
    [(TIME, Utc::now().timestamp_millis().to_string()), (NONCE, format!("{:032x}", rand::random::<u128>()))]
}

/// Returns the value of the header; empty if there is none.
pub(crate) fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h [u8] {
    headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default()
}

fn mac(secret: &Secret, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).expect("a key has any length");
    for part in parts {
        // With its length, so that no other division into parts has the same signature.
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

fn is_signed(mac: Hmac<Sha256>, signature: &[u8]) -> bool {
    // Takes constant time.
    hex::decode(signature).is_ok_and(|signature| mac.verify_slice(&signature).is_ok())
}

impl Call<'_> {
    /// `purpose` is the header of the signature: one for another purpose is another.
    fn mac(&self, secret: &Secret, purpose: &str) -> Hmac<Sha256> {
        let value = |name| header(self.headers, name);
        let (cluster, node, target) = (value(CLUSTER), value(NODE), value(TARGET));
        let (time, nonce) = (value(TIME), value(NONCE));
        mac(secret, &[purpose.as_bytes(), self.path.as_bytes(), cluster, node, target, time, nonce, self.body])
    }

    /// Returns the value of the header `purpose`.
    pub(crate) fn sign(&self, secret: &Secret, purpose: &str) -> String {
        hex::encode(self.mac(secret, purpose).finalize().into_bytes())
    }

    /// Returns the secret by which the header `purpose` signs the call.
    pub(crate) fn signer(&self, secrets: &SecretFile, purpose: &str) -> Option<Secret> {
        let signature = header(self.headers, purpose);
        secrets.secrets().iter().find(|secret| is_signed(self.mac(secret, purpose), signature)).cloned()
    }
}

fn response_mac(secret: &Secret, call_signature: &[u8], body: &[u8]) -> Hmac<Sha256> {
    mac(secret, &[b"response", call_signature, body])
}

/// Signs the response to the call with `call_signature`.
pub(crate) fn sign_response(secret: &Secret, call_signature: &[u8], body: &[u8]) -> String {
    hex::encode(response_mac(secret, call_signature, body).finalize().into_bytes())
}

/// Returns true if `signature` signs the response to the call with `call_signature`.
pub(crate) fn is_response_signed(secret: &Secret, call_signature: &[u8], body: &[u8], signature: &[u8]) -> bool {
    is_signed(response_mac(secret, call_signature, body), signature)
}

/// Verifies the signatures of calls.
pub(crate) struct Verifier {
    secrets: SecretFile,
    nonces: Mutex<Nonces>,
}

/// The nonces of calls that are not too old to be repeated. Only signed calls add to them.
struct Nonces {
    recent: HashSet<Vec<u8>>,
    older: HashSet<Vec<u8>>,
    since: Instant,
}

impl Verifier {
    pub(crate) fn new(secrets: SecretFile) -> Self {
        let nonces = Nonces { recent: HashSet::new(), older: HashSet::new(), since: Instant::now() };
        Self { secrets, nonces: Mutex::new(nonces) }
    }

    /// Verifies a call that is received now, and returns the secret by which it is signed.
    pub(crate) fn verify(&self, call: &Call<'_>) -> Result<Secret, SignatureError> {
        let signer = call.signer(&self.secrets, SIGNATURE).ok_or(SignatureError::Wrong)?;
        let time = str::from_utf8(header(call.headers, TIME)).ok().and_then(|time| time.parse::<i64>().ok());
        let age_ms = Utc::now().timestamp_millis().saturating_sub(time.ok_or(SignatureError::Wrong)?);
        if age_ms.unsigned_abs() > MAX_SKEW.as_millis() as u64 {
            return Err(SignatureError::Time { age_ms });
        }
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        // A call whose time lies ahead is accepted until twice the difference has passed.
        if nonces.since.elapsed() > MAX_SKEW * 2 {
            nonces.older = std::mem::take(&mut nonces.recent);
            nonces.since = Instant::now();
        }
        let nonce = header(call.headers, NONCE);
        if nonces.older.contains(nonce) || !nonces.recent.insert(nonce.to_owned()) {
            return Err(SignatureError::Repeated);
        }
        Ok(signer)
    }
}

#[cfg(test)]
mod tests {
    use backbeat_service::Environment;

    use super::*;

    fn secrets(content: &str) -> SecretFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), content).expect("the file is written");
        SecretFile::open(file.path(), Environment::Development).expect("a secret")
    }

    /// The headers of a call of `path` with `body` at `time`, signed by the first of `secrets`.
    fn signed(secrets: &SecretFile, path: &str, body: &[u8], time: i64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(CLUSTER, "c"), (NODE, "n1"), (TARGET, "n2")]
            .map(|(n, v)| (n, v.to_owned()))
            .into_iter()
            .chain(unique_headers())
        {
            headers.insert(name, value.parse().expect("a header"));
        }
        headers.insert(TIME, time.into());
        let signature = Call { headers: &headers, path, body }.sign(&secrets.secrets()[0], SIGNATURE);
        headers.insert(SIGNATURE, signature.parse().expect("a header"));
        headers
    }

    #[test]
    fn call_is_accepted_once_and_only_as_it_was_signed() {
        let secrets = secrets("sesame");
        let verifier = Verifier::new(secrets.clone());
        let headers = signed(&secrets, "/raft/vote", b"body", Utc::now().timestamp_millis());
        let verify =
            |headers: &HeaderMap, path: &str, body: &[u8]| verifier.verify(&Call { headers, path, body }).map(|_| ());
        assert_eq!(verify(&headers, "/raft/append", b"body"), Err(SignatureError::Wrong));
        assert_eq!(verify(&headers, "/raft/vote", b"bodies"), Err(SignatureError::Wrong));
        assert_eq!(verify(&HeaderMap::new(), "/raft/vote", b"body"), Err(SignatureError::Wrong));
        for name in [CLUSTER, NODE, TARGET, TIME, NONCE, SIGNATURE] {
            let mut changed = headers.clone();
            changed.insert(name, "0".parse().expect("a header"));
            assert_eq!(verify(&changed, "/raft/vote", b"body"), Err(SignatureError::Wrong), "{name}");
        }
        assert_eq!(verify(&headers, "/raft/vote", b"body"), Ok(()));
        assert_eq!(verify(&headers, "/raft/vote", b"body"), Err(SignatureError::Repeated));
    }

    #[test]
    fn call_of_another_time_is_refused() {
        let secrets = secrets("sesame");
        let verifier = Verifier::new(secrets.clone());
        for (age, accepted) in [(-35_000, false), (-25_000, true), (25_000, true), (35_000, false)] {
            let headers = signed(&secrets, "/raft/vote", b"", Utc::now().timestamp_millis() - age);
            let result = verifier.verify(&Call { headers: &headers, path: "/raft/vote", body: b"" });
            assert_eq!(result.is_ok(), accepted, "{age}");
        }
    }

    #[test]
    fn each_secret_of_the_file_is_accepted_and_the_response_is_signed_by_the_same() {
        let verifier = Verifier::new(secrets("new\nold\n"));
        for (caller, accepted) in [("new", true), ("old", true), ("oldest", false)] {
            let secrets = secrets(caller);
            let headers = signed(&secrets, "/raft/vote", b"", Utc::now().timestamp_millis());
            let by = verifier.verify(&Call { headers: &headers, path: "/raft/vote", body: b"" }).ok();
            assert_eq!(by.is_some(), accepted, "{caller}");
            let Some(by) = by else { continue };
            let call_signature = header(&headers, SIGNATURE);
            let signature = sign_response(&by, call_signature, b"yes");
            let own = &secrets.secrets()[0];
            assert!(is_response_signed(own, call_signature, b"yes", signature.as_bytes()));
            assert!(!is_response_signed(own, call_signature, b"no", signature.as_bytes()));
            assert!(!is_response_signed(own, b"other", b"yes", signature.as_bytes()));
        }
    }
}
