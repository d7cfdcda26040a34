//! The content of notifications: pure functions of a report and its roster.

use backbeat_reverb::rosters::WindowRoster;
use backbeat_schemas::{BarReport, RosterEntry, RosterKind};
use hmac::{Hmac, Mac};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A reason for a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finding {
    /// Agents with an open task did not claim.
    Silent,
    /// Tasks are in the same state as in the window before, without progress.
    Stalled,
    /// Open tasks have spent their beat budget.
    Overdrawn,
    /// A secret rotation failed.
    RotationFailed,
    /// The share of late claims is above --late-share.
    #[value(skip)]
    Late,
    /// No report has come for --no-report-beats beats.
    #[value(skip)]
    NoReport,
}

/// The findings to notify of.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) on: Vec<Finding>,
    /// The share of late claims, 0 to 1, above which they are a finding.
    pub(crate) late_share: Option<f64>,
}

impl Rules {
    /// Returns the findings in `report`.
    pub(crate) fn findings(&self, report: &BarReport) -> Vec<Finding> {
        let is_found = |finding: &Finding| match finding {
            Finding::Silent => report.agents_fell_silent > 0,
            Finding::Stalled => report.tasks_stalled > 0,
            Finding::Overdrawn => report.tasks_overdrawn > 0,
            Finding::RotationFailed => !report.secret_rotations_ok,
            Finding::Late | Finding::NoReport => false,
        };
        let mut findings: Vec<Finding> = self.on.iter().copied().filter(is_found).collect();
        let (late, claims) = (report.late_claims as f64, (report.claims + report.late_claims) as f64);
        if self.late_share.is_some_and(|share| late > share * claims) {
            findings.push(Finding::Late);
        }
        findings
    }
}

/// The body of a notification, in the structured JSON form of `CloudEvents` 1.0.
#[derive(Debug, Serialize)]
struct CloudEvent<'e> {
    specversion: &'static str,
    id: String,
    source: String,
    r#type: &'static str,
    subject: String,
    time: String,
    datacontenttype: &'static str,
    data: Data<'e>,
}

#[derive(Debug, Serialize)]
struct Data<'e> {
    findings: &'e [Finding],
    /// The window's report; the last one before, if none has come.
    report: &'e BarReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    roster: Option<Roster<'e>>,
}

#[derive(Debug, Serialize)]
struct Roster<'e> {
    silent: Vec<&'e RosterEntry>,
    stalled: Vec<&'e RosterEntry>,
    overdrawn: Vec<&'e RosterEntry>,
}

impl<'e> From<&'e WindowRoster> for Roster<'e> {
    fn from(window: &'e WindowRoster) -> Self {
        let entries = |kind| window.entries(kind).into_iter().map(|(_, entry)| entry).collect();
        let [silent, stalled, overdrawn] = RosterKind::ALL.map(entries);
        Self { silent, stalled, overdrawn }
    }
}

/// Returns the body of the notification about a window. The same window gives the same bytes.
pub(crate) fn body(report: &BarReport, findings: &[Finding], roster: Option<&WindowRoster>) -> Vec<u8> {
    let is_missing = findings.contains(&Finding::NoReport);
    let event = CloudEvent {
        specversion: "1.0",
        id: format!("{}{}", report.window_id, if is_missing { "/no-report-after" } else { "" }),
        source: format!("/backbeat/{}", report.cluster_id),
        r#type: if is_missing { "backbeat.report.missing.v1" } else { "backbeat.bar.finding.v1" },
        subject: report.window_id.to_string(),
        time: report.closed_at.to_string(),
        datacontenttype: "application/json",
        data: Data { findings, report, roster: roster.map(Roster::from) },
    };
    serde_json::to_vec(&event).expect("an event serializes as JSON")
}

/// Returns the value of the header Idempotency-Key: the same for each delivery of the same notification.
pub(crate) fn idempotency_key(report: &BarReport, body: &[u8]) -> String {
    format!("{}-{}", report.window_id, &hex::encode(Sha256::digest(body))[..16])
}

/// Returns the value of the header X-Backbeat-Signature-256: the HMAC-SHA256 of `body`, in hexadecimal digits.
pub(crate) fn signature(secret: &[u8], body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use backbeat_schemas::testing;

    use super::*;

    #[test]
    fn only_what_the_rules_name_is_found() {
        let rules = |on: &[Finding], late_share| Rules { on: on.to_vec(), late_share };
        let report = BarReport {
            agents_fell_silent: 1,
            tasks_stalled: 2,
            claims: 8,
            late_claims: 2,
            secret_rotations_ok: false,
            ..testing::report(4, 4)
        };
        let all = [Finding::Silent, Finding::Stalled, Finding::Overdrawn, Finding::RotationFailed];
        assert_eq!(rules(&all, None).findings(&report), [Finding::Silent, Finding::Stalled, Finding::RotationFailed]);
        assert_eq!(rules(&[Finding::Overdrawn], None).findings(&report), []);
        assert_eq!(rules(&[], Some(0.2)).findings(&report), [], "2 of 10 are not more than a fifth");
        assert_eq!(rules(&[], Some(0.19)).findings(&report), [Finding::Late]);
        assert_eq!(rules(&all, Some(0.0)).findings(&testing::report(0, 4)), []);
    }

    #[test]
    fn body_is_a_cloud_event_and_its_signature_is_that_of_openssl() {
        let report = testing::report(4, 4);
        let body = body(&report, &[Finding::Silent], None);
        let event: serde_json::Value = serde_json::from_slice(&body).expect("valid JSON");
        assert_eq!((&event["specversion"], &event["source"]), (&"1.0".into(), &"/backbeat/c".into()));
        assert_eq!(event["id"], report.window_id.to_string());
        assert_eq!(event["data"]["findings"], serde_json::json!(["silent"]));
        assert_eq!(event["data"]["report"]["from_beat"], 4);
        assert!(idempotency_key(&report, &body).starts_with(&report.window_id.to_string()));
        // printf body | openssl dgst -sha256 -hmac secret
        assert_eq!(
            signature(b"secret", b"body"),
            "sha256=dc46983557fea127b43af721467eb9b3fde2338fe3e14f51952aa8478c13d355"
        );
    }
}
