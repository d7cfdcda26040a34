//! Delivers notifications to a webhook: again and again until it takes them.

use std::time::{Duration, Instant};

use backbeat_service::{SecretFile, Shutdown};
use rand::Rng;
use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;

use super::event::signature;

const TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// The longest pause that a receiver may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(10);
const STOP_POLL: Duration = Duration::from_millis(100);

/// A webhook.
pub(crate) struct Webhook {
    url: String,
    secret: Option<SecretFile>,
    http: Client,
}

/// The outcome of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The receiver has taken the notification.
    Taken,
    /// The receiver refuses this content for good.
    Refused,
    /// The program is to stop.
    Stopped,
}

impl Webhook {
    /// `secret` has the key of the signature.
    pub(crate) fn new(url: String, secret: Option<SecretFile>) -> reqwest::Result<Self> {
        Ok(Self { url, secret, http: Client::builder().timeout(TIMEOUT).redirect(Policy::none()).build()? })
    }

    /// Delivers `body`, with growing pauses between attempts, until the receiver takes or refuses it, or until `stop`.
    pub(crate) fn deliver(&self, key: &str, body: &[u8], stop: &Shutdown) -> Delivery {
        let mut pause = FIRST_PAUSE;
        while !stop.is_cancelled() {
            let wait = match self.post(key, body) {
                Ok(response) if response.status().is_success() => return Delivery::Taken,
                Ok(response) if is_refusal(response.status()) => {
                    tracing::error!(url = self.url, key, status = %response.status(), "the receiver refuses this notification; it is skipped");
                    return Delivery::Refused;
                }
                Ok(response) => {
                    tracing::warn!(url = self.url, key, status = %response.status(), "the receiver did not take a notification; trying again");
                    retry_after(&response).unwrap_or(pause)
                }
                Err(error) => {
                    tracing::warn!(key, %error, "cannot reach the receiver of notifications; trying again");
                    pause
                }
            };
            sleep(wait.mul_f64(rand::rng().random_range(1.0..1.2)), stop);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Delivery::Stopped
    }

    fn post(&self, key: &str, body: &[u8]) -> reqwest::Result<Response> {
        let mut request = self.http.post(&self.url).header("Content-Type", "application/cloudevents+json");
        request = request.header("Idempotency-Key", key);
        if let Some(secret) = &self.secret {
            request = request.header("X-Backbeat-Signature-256", signature(secret.first().expose(), body));
        }
        request.body(body.to_vec()).send()
    }

    /// Sends one request without a body, and logs if it fails: the next one comes soon.
    pub(crate) fn ping(&self) {
        match self.http.post(&self.url).send() {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => tracing::warn!(url = self.url, status = %response.status(), "the heartbeat was not taken"),
            Err(error) => tracing::warn!(%error, "cannot send the heartbeat"),
        }
    }
}

/// Returns true if the status says that the same content will never be taken. Wrong credentials or paths are mended at the
/// receiver, so they are tried again.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}

fn sleep(duration: Duration, stop: &Shutdown) {
    let end = Instant::now() + duration;
    while !stop.is_cancelled() && Instant::now() < end {
        std::thread::sleep(STOP_POLL.min(end.saturating_duration_since(Instant::now())));
    }
}
