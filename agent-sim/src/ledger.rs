//! What was sent, what lies in the log and what the reports counted, held against each other.
//!
//! The log lies between the two: where it lacks a claim that was sent, the agent is named; where a report differs
//! from it, the window is. Nothing here is reverb's: a claim is placed by the frames' boundaries alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use backbeat_broker::Seen;
use backbeat_schemas::{BarReport, BeatFrame, BeatIndex, BorrowedClaim, StatusClaim, WindowId, check_claim};
use serde::Serialize;

use crate::{ClaimPlan, Fate};

/// The books of a run.
pub(crate) struct Ledger {
    /// The first beat that the agents heard.
    first_heard: BeatIndex,
    /// Consecutive, from a downbeat before it.
    frames: Vec<BeatFrame>,
    /// By downbeat; those whose closing frame is there.
    windows: BTreeMap<i64, Window>,
    /// By agent: ours, and others.
    accounts: HashMap<String, Account>,
}

struct Window {
    id: WindowId,
    /// The next window's downbeat.
    end: i64,
    /// From this beat's boundary on, its claims are late.
    closes: i64,
    found: Counts,
    agents: HashSet<usize>,
    reported: Option<BarReport>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    claims: i64,
    late: i64,
    invalid: i64,
}

/// One agent's claims.
#[derive(Default)]
struct Account {
    /// Tells agents apart, more cheaply than their names.
    number: usize,
    /// The beats of its claims.
    sent: Vec<i64>,
    found: Vec<i64>,
    /// Claims that break a rule.
    malformed_sent: u64,
    malformed_found: u64,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verdict {
    /// Windows whose reports were looked at.
    windows: u64,
    /// Our claims.
    claims_sent: u64,
    /// What the reports of those windows counted, of all agents.
    claims_counted: i64,
    claims_late: i64,
    claims_invalid: i64,
    /// Claims of other agents among them.
    claims_of_others: u64,
    pub(crate) disagreements: Vec<Disagreement>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Disagreement {
    /// The log has not what an agent sent.
    Agent {
        agent: String,
        sent: u64,
        found: u64,
        /// Beats whose claims are not in the log.
        lost: Vec<i64>,
        /// Beats whose claims are there more often than they were sent.
        repeated: Vec<i64>,
    },
    /// A report has not what the log has.
    Report { window_id: WindowId, from_beat: i64, field: &'static str, reported: i64, in_the_log: i64 },
    /// There is no report.
    NoReport { window_id: WindowId, from_beat: i64 },
}

impl Ledger {
    /// Books for agents that heard `first_heard` first. `frames` are consecutive, and begin with a downbeat.
    pub(crate) fn new(first_heard: BeatIndex, frames: Vec<BeatFrame>) -> Self {
        let newest = frames.last().map_or(0, |frame| frame.beat_index.get());
        let windows = frames.iter().filter(|frame| frame.downbeat).map(|frame| {
            let end = frame.beat_index.get() + i64::from(frame.bar_length);
            let closes = end + i64::from(frame.grace_beats);
            let (found, agents) = (Counts::default(), HashSet::new());
            (frame.beat_index.get(), Window { id: frame.window_id, end, closes, found, agents, reported: None })
        });
        let windows = windows.filter(|(_, window)| window.closes <= newest).collect();
        Self { first_heard, frames, windows, accounts: HashMap::new() }
    }

    /// Enters a claim that was to be sent for `beat`.
    pub(crate) fn sent(&mut self, beat: BeatIndex, plan: &ClaimPlan) {
        let account = self.account(&plan.status.agent_id);
        match plan.fate {
            Fate::Malformed(_) => account.malformed_sent += 1,
            Fate::Honest | Fate::Late => account.sent.push(beat.get()),
        }
    }

    /// Enters a record of the log.
    pub(crate) fn found(&mut self, seen: Seen<StatusClaim>) {
        let Seen { partition, offset, key, record } = seen;
        let begun = self.frames.partition_point(|frame| frame.boundary(partition) <= offset);
        // Before the first boundary nothing is ours, and behind the last one nothing is reported yet.
        let Some(arrival) = begun.checked_sub(1).filter(|_| begun < self.frames.len()) else { return };
        let arrival = self.frames[arrival].beat_index.get();
        let claim = record.ok().map(BorrowedClaim::from);
        let valid = claim.as_ref().is_some_and(|claim| {
            check_claim(key.as_deref(), claim).is_ok() && (0..=arrival).contains(&claim.beat_index)
        });
        let from_key = || String::from_utf8_lossy(key.as_deref().unwrap_or_default()).into_owned();
        let agent = claim.as_ref().map_or_else(from_key, |claim| claim.agent_id.clone().into_owned());
        // An earlier run's agents may have had the same names.
        let is_of_this_run = arrival >= self.first_heard.get();
        let account = self.account(&agent);
        let number = account.number;
        let beat = claim.filter(|_| valid).map(|claim| claim.beat_index);
        if is_of_this_run {
            match beat {
                Some(beat) => account.found.push(beat),
                None => account.malformed_found += 1,
            }
        }
        let home = beat.and_then(|beat| self.window_of(beat));
        let on_time = home.and_then(|home| self.windows.get_mut(&home)).filter(|window| arrival < window.closes);
        match (beat, on_time) {
            (Some(_), Some(window)) => {
                window.found.claims += 1;
                window.agents.insert(number);
            }
            (beat, _) => {
                // A window that is not closed yet may own it: its report is none of this run's.
                let owner = self.window_of(arrival).and_then(|owner| self.windows.get_mut(&owner));
                if let Some(owner) = owner {
                    owner.found.late += i64::from(beat.is_some());
                    owner.found.invalid += i64::from(beat.is_none());
                }
            }
        }
    }

    /// Enters a report; of several of one window the last one holds.
    pub(crate) fn reported(&mut self, report: BarReport) {
        if let Some(window) = self.windows.get_mut(&report.from_beat.get()) {
            window.reported = Some(report);
        }
    }

    /// Whether every window of the run has a report.
    pub(crate) fn is_complete(&self) -> bool {
        self.of_the_run().all(|(_, window)| window.reported.is_some())
    }

    /// The windows from the one of the first beat that was heard. Those before only take their own claims.
    fn of_the_run(&self) -> impl Iterator<Item = (&i64, &Window)> {
        let first = self.window_of(self.first_heard.get()).unwrap_or_default();
        self.windows.range(first..)
    }

    /// The downbeat of the window that `beat` lies in.
    fn window_of(&self, beat: i64) -> Option<i64> {
        let (from, window) = self.windows.range(..=beat).next_back()?;
        (beat < window.end).then_some(*from)
    }

    fn account(&mut self, agent: &str) -> &mut Account {
        if !self.accounts.contains_key(agent) {
            let account = Account { number: self.accounts.len(), ..Account::default() };
            self.accounts.insert(agent.to_owned(), account);
        }
        self.accounts.get_mut(agent).expect("it is there now")
    }

    /// Closes the books.
    pub(crate) fn close(self) -> Verdict {
        let reports = || self.of_the_run().filter_map(|(_, window)| window.reported.as_ref());
        let mut verdict = Verdict {
            windows: self.of_the_run().count() as u64,
            claims_sent: 0,
            claims_counted: reports().map(|report| report.claims).sum(),
            claims_late: reports().map(|report| report.late_claims).sum(),
            claims_invalid: reports().map(|report| report.invalid_claims).sum(),
            claims_of_others: 0,
            disagreements: self.of_the_run().flat_map(|(from, window)| window.disagreements(*from)).collect(),
        };
        let mut accounts: Vec<(String, Account)> = self.accounts.into_iter().collect();
        accounts.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (agent, account) in accounts {
            let sent = account.sent.len() as u64 + account.malformed_sent;
            verdict.claims_sent += sent;
            if sent == 0 {
                verdict.claims_of_others += account.found.len() as u64 + account.malformed_found;
            } else {
                verdict.disagreements.extend(account.disagreement(agent));
            }
        }
        verdict
    }
}

impl Window {
    fn disagreements(&self, from_beat: i64) -> Vec<Disagreement> {
        let window_id = self.id;
        let Some(report) = &self.reported else {
            return vec![Disagreement::NoReport { window_id, from_beat }];
        };
        let fields = [
            ("claims", report.claims, self.found.claims),
            ("late_claims", report.late_claims, self.found.late),
            ("invalid_claims", report.invalid_claims, self.found.invalid),
            ("agents_reporting", report.agents_reporting, self.agents.len() as i64),
        ];
        let differing = fields.into_iter().filter(|(_, reported, in_the_log)| reported != in_the_log);
        let disagreement =
            |(field, reported, in_the_log)| Disagreement::Report { window_id, from_beat, field, reported, in_the_log };
        differing.map(disagreement).collect()
    }
}

impl Account {
    fn disagreement(mut self, agent: String) -> Option<Disagreement> {
        self.sent.sort_unstable();
        self.found.sort_unstable();
        let (lost, repeated) = (without(&self.sent, &self.found), without(&self.found, &self.sent));
        let agrees = lost.is_empty() && repeated.is_empty() && self.malformed_sent == self.malformed_found;
        (!agrees).then(|| Disagreement::Agent {
            agent,
            sent: self.sent.len() as u64 + self.malformed_sent,
            found: self.found.len() as u64 + self.malformed_found,
            lost,
            repeated,
        })
    }
}

/// The `beats` that `others` has less often; both are sorted.
fn without(beats: &[i64], others: &[i64]) -> Vec<i64> {
    let mut others = others.iter().peekable();
    let is_unmatched = |beat: &i64| {
        while others.next_if(|other| *other < beat).is_some() {}
        others.next_if_eq(&beat).is_none()
    };
    beats.iter().copied().filter(is_unmatched).collect()
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { windows, claims_sent, claims_counted, claims_late, claims_invalid, claims_of_others, .. } = self;
        let agrees = if self.disagreements.is_empty() { "agree" } else { "DISAGREE" };
        write!(f, "{claims_sent} claims sent and {windows} reports {agrees}: ")?;
        write!(f, "{claims_counted} counted, {claims_late} late, {claims_invalid} invalid")?;
        if *claims_of_others > 0 { write!(f, ", {claims_of_others} of them other agents'") } else { Ok(()) }
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { agent, sent, found, lost, repeated } => {
                write!(f, "agent {agent}: {sent} claims sent, {found} in the log")?;
                for (what, beats) in [("lost", lost), ("repeated", repeated)] {
                    if !beats.is_empty() {
                        write!(f, "; {what} on beats {beats:?}")?;
                    }
                }
                Ok(())
            }
            Self::Report { window_id, from_beat, field, reported, in_the_log } => write!(
                f,
                "window {window_id} from beat {from_beat}: {field} {reported} in the report, {in_the_log} in the log; see backbeat audit --from {from_beat} --to {from_beat}"
            ),
            Self::NoReport { window_id, from_beat } => {
                write!(f, "window {window_id} from beat {from_beat}: no report")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use backbeat_sdk::{State, Status};
    use serde_json::json;

    use super::*;
    use crate::Malformation;

    /// Bars of two beats; the boundary of beat n is 10 n.
    fn frames(beats: i64) -> Vec<BeatFrame> {
        let frame = |beat: i64| {
            let from = beat - beat % 2;
            let id = WindowId::new("c", from.try_into().expect("not negative"));
            let frame = json!({
                "type": "backbeat.beatframe.v1", "cluster_id": "c", "beat_index": beat, "downbeat": beat == from,
                "phase": "execution", "hlc": "7ffd:0001:beef", "deadline_at": "2024-01-15T10:30:00Z", "tempo_bpm": 1.0,
                "window_id": id, "bar_length": 2, "claim_offsets": [10 * beat],
            });
            serde_json::from_value(frame).expect("a frame")
        };
        (0..beats).map(frame).collect()
    }

    fn report(from_beat: i64, counts: [i64; 4]) -> BarReport {
        let [claims, late, invalid, agents] = counts;
        let report = json!({
            "type": "backbeat.barreport.v1", "window_id": WindowId::new("c", from_beat.try_into().expect("not negative")),
            "from_beat": from_beat, "to_beat": from_beat + 1, "agents_reporting": agents, "on_time_reviews": 0,
            "help_promises_fulfilled": 0, "secret_rotations_ok": true, "tempo_drift_ms": 0, "issues": [],
            "claims": claims, "late_claims": late, "invalid_claims": invalid,
        });
        serde_json::from_value(report).expect("a report")
    }

    fn claim(offset: i64, agent: &str, beat_index: i64) -> Seen<StatusClaim> {
        let claim = json!({
            "type": "backbeat.statusclaim.v1", "agent_id": agent, "task_id": "t", "beat_index": beat_index,
            "state": "executing", "beats_left": 0, "progress": 0.0, "notes": "", "hlc": "7ffd:0001:beef",
        });
        let record = Ok(serde_json::from_value(claim).expect("a claim"));
        Seen { partition: 0, offset, key: Some(agent.into()), record }
    }

    fn garbage(offset: i64, agent: &str) -> Seen<StatusClaim> {
        Seen { partition: 0, offset, key: Some(agent.into()), record: Err("garbage".to_owned()) }
    }

    /// A run on beats 2 to 5: a claims on each, b on 2 and, late, on 3; c's claim is broken.
    fn run() -> Ledger {
        let beat = |beat: i64| BeatIndex::try_from(beat).expect("not negative");
        let mut ledger = Ledger::new(beat(2), frames(7));
        let plan = |agent: &str, fate| ClaimPlan { status: Status::new(agent, "t", State::Executing), fate };
        (2..6).for_each(|index| ledger.sent(beat(index), &plan("a", Fate::Honest)));
        ledger.sent(beat(2), &plan("b", Fate::Honest));
        ledger.sent(beat(3), &plan("b", Fate::Late));
        ledger.sent(beat(3), &plan("c", Fate::Malformed(Malformation::NotAvro)));
        ledger
    }

    fn log() -> Vec<Seen<StatusClaim>> {
        // b's second claim arrives on beat 4, when its window has closed. Offset 5 is of before, 61 of after.
        let ours = [(20, "a", 2), (30, "a", 3), (40, "a", 4), (50, "a", 5), (21, "b", 2), (41, "b", 3), (5, "a", 0)];
        let mut log: Vec<_> = ours.into_iter().map(|(offset, agent, beat)| claim(offset, agent, beat)).collect();
        log.extend([garbage(31, "c"), claim(61, "a", 6), claim(32, "other", 3)]);
        log
    }

    fn enter(ledger: &mut Ledger, log: Vec<Seen<StatusClaim>>) {
        for seen in log {
            ledger.found(seen);
        }
    }

    fn verdict(log: Vec<Seen<StatusClaim>>, reports: [BarReport; 2]) -> Verdict {
        let mut ledger = run();
        enter(&mut ledger, log);
        for report in reports {
            ledger.reported(report);
        }
        ledger.close()
    }

    fn right() -> [BarReport; 2] {
        [report(2, [4, 0, 1, 3]), report(4, [2, 1, 0, 1])]
    }

    #[test]
    fn what_agrees_agrees() {
        let verdict = verdict(log(), right());
        assert_eq!(verdict.disagreements, []);
        assert_eq!(
            verdict.to_string(),
            "7 claims sent and 2 reports agree: 6 counted, 1 late, 1 invalid, 1 of them other agents'"
        );
    }

    #[test]
    fn lost_and_repeated_claims_name_their_agent() {
        let mut log = log();
        log[1] = claim(30, "a", 2);
        let of_a = verdict(log, right()).disagreements;
        assert_eq!(of_a.len(), 1, "{of_a:?}");
        assert_eq!(
            of_a[0].to_string(),
            "agent a: 4 claims sent, 4 in the log; lost on beats [3]; repeated on beats [2]"
        );
        let without_c = self::log().into_iter().filter(|seen| seen.offset != 31).collect();
        let shown: Vec<String> = verdict(without_c, right()).disagreements.iter().map(ToString::to_string).collect();
        assert!(shown.contains(&"agent c: 1 claims sent, 0 in the log".to_owned()), "{shown:?}");
    }

    #[test]
    fn reports_that_differ_or_are_not_there_name_their_window() {
        let wrong = [report(2, [4, 0, 1, 3]), report(4, [3, 0, 0, 1])];
        let shown: Vec<String> = verdict(log(), wrong).disagreements.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].contains("from beat 4: claims 3 in the report, 2 in the log"), "{shown:?}");
        assert!(shown[1].contains("late_claims 0 in the report, 1 in the log"), "{shown:?}");
        let mut ledger = run();
        enter(&mut ledger, log());
        assert!(!ledger.is_complete());
        assert!(matches!(ledger.close().disagreements[..], [Disagreement::NoReport { from_beat: 2, .. }, _]));
    }
}
