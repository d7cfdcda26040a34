//! Compares the claims that were sent, the claims in the log, and the counts in the reports.
//!
//! A claim that was sent and is not in the log is a mismatch of its agent; a report that differs from the log is a
//! mismatch of its window. This shares no code with reverb: the boundaries in the frames alone decide where a claim
//! counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use backbeat_broker::TopicRecord;
use backbeat_schemas::{
    BarReport, BarRoster, BeatFrame, BeatIndex, BorrowedClaim, RosterKind, StatusClaim, WindowId, check_claim,
};
use serde::Serialize;

use crate::expected_rosters::{RosterClaims, RosterDifference};
use crate::{ClaimPlan, Delivery};

/// The claims and reports of a run, as sent and as found in the log.
pub(crate) struct Ledger {
    /// The first beat that the agents received.
    first_beat: BeatIndex,
    /// Consecutive frames, the first of which is a downbeat at or before `first_beat`.
    frames: Vec<BeatFrame>,
    /// The windows whose closing frame is known, by downbeat.
    windows: BTreeMap<i64, Window>,
    /// The claims by agent id, including those of agents outside the run.
    agents: HashMap<String, AgentClaims>,
}

struct Window {
    id: WindowId,
    /// The downbeat of the next window.
    end: i64,
    /// The beat from whose boundary on the window's claims are late.
    closing_beat: i64,
    in_the_log: Counts,
    /// The numbers of the agents with a counted claim.
    agents: HashSet<usize>,
    rosters: RosterClaims,
    /// True if partitions were added since the window before opened: then who is silent is not checked.
    has_new_partitions: bool,
    report: Option<BarReport>,
}

/// The claims of a window in the log. `claims` are the counted ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    claims: i64,
    late: i64,
    invalid: i64,
}

/// The claims of one agent.
#[derive(Default)]
struct AgentClaims {
    /// A number that identifies the agent, smaller than its id.
    number: usize,
    /// The beats of the valid claims that it sent.
    sent: Vec<i64>,
    /// The beats of its valid claims in the log.
    found: Vec<i64>,
    invalid_sent: u64,
    invalid_found: u64,
}

/// The result of verifying a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct VerificationResult {
    /// Windows whose reports were checked.
    windows: u64,
    /// Claims sent by the agents of the run.
    claims_sent: u64,
    /// Claims counted by the reports of those windows, of all agents.
    claims_counted: i64,
    claims_late: i64,
    claims_invalid: i64,
    /// Claims of agents outside the run.
    claims_of_others: u64,
    /// Agents and tasks that the rosters had to name.
    named: u64,
    #[serde(rename = "disagreements")]
    pub(crate) mismatches: Vec<Mismatch>,
}

/// A mismatch between what was sent, the log, and the reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Mismatch {
    /// The log differs from what an agent sent.
    Agent {
        agent: String,
        sent: u64,
        found: u64,
        /// Beats whose claims are not in the log.
        lost: Vec<i64>,
        /// Beats whose claims are more often in the log than they were sent.
        repeated: Vec<i64>,
    },
    /// A report differs from the log.
    Report { window_id: WindowId, from_beat: i64, field: &'static str, reported: i64, in_the_log: i64 },
    /// A roster does not name those that need attention in the log.
    Roster {
        window_id: WindowId,
        from_beat: i64,
        roster: &'static str,
        /// Agents that must be named and are not; the first ten.
        missing: Vec<String>,
        /// Agents that must not be named; the first ten.
        unexpected: Vec<String>,
    },
    /// A report is missing.
    NoReport { window_id: WindowId, from_beat: i64 },
}

impl Ledger {
    /// Creates the ledger of a run whose agents received `first_beat` as their first beat. `frames` are consecutive and
    /// begin with a downbeat.
    pub(crate) fn new(first_beat: BeatIndex, frames: Vec<BeatFrame>) -> Self {
        let newest = frames.last().map_or(0, |frame| frame.beat_index.get());
        let partitions_at = |beat: i64| {
            let place = frames.first().map_or(0, |first| beat - first.beat_index.get());
            usize::try_from(place).ok().and_then(|place| frames.get(place)).map(|frame| frame.claim_offsets.len())
        };
        let mut before = None;
        let windows = frames.iter().filter(|frame| frame.downbeat).map(|frame| {
            let end = frame.beat_index.get() + i64::from(frame.bar_length);
            let closing_beat = end + i64::from(frame.grace_beats);
            let previous = before.replace(frame.claim_offsets.len());
            let window = Window {
                id: frame.window_id,
                end,
                closing_beat,
                in_the_log: Counts::default(),
                agents: HashSet::new(),
                rosters: RosterClaims::default(),
                has_new_partitions: previous != partitions_at(closing_beat),
                report: None,
            };
            (frame.beat_index.get(), window)
        });
        let windows = windows.filter(|(_, window)| window.closing_beat <= newest).collect();
        Self { first_beat, frames, windows, agents: HashMap::new() }
    }

    /// Records a claim that was planned for `beat`.
    pub(crate) fn record_sent(&mut self, beat: BeatIndex, plan: &ClaimPlan) {
        let claims = self.claims_of(&plan.status.agent_id);
        match plan.delivery {
            Delivery::Malformed(_) => claims.invalid_sent += 1,
            Delivery::OnTime | Delivery::Late => claims.sent.push(beat.get()),
        }
    }

    /// Records a claim found in the log: with its agent, and in the window that counts it.
    pub(crate) fn record_found(&mut self, found: TopicRecord<StatusClaim>) {
        let TopicRecord { partition, offset, key, record } = found;
        let begun = self.frames.partition_point(|frame| frame.boundary(partition) <= offset);
        // Records before the first boundary are not of this run, and those at or after the last one not reported yet.
        let Some(arrival) = begun.checked_sub(1).filter(|_| begun < self.frames.len()) else { return };
        let arrival = self.frames[arrival].beat_index.get();
        let claim = record.ok().map(BorrowedClaim::from);
        let valid = claim.as_ref().is_some_and(|claim| {
            check_claim(key.as_deref(), claim).is_ok() && (0..=arrival).contains(&claim.beat_index)
        });
        let from_key = || String::from_utf8_lossy(key.as_deref().unwrap_or_default()).into_owned();
        let agent = claim.as_ref().map_or_else(from_key, |claim| claim.agent_id.clone().into_owned());
        // The agents of an earlier run may have had the same ids.
        let is_of_this_run = arrival >= self.first_beat.get();
        let claims = self.claims_of(&agent);
        let number = claims.number;
        let claim = claim.filter(|_| valid);
        let beat = claim.as_ref().map(|claim| claim.beat_index);
        if is_of_this_run {
            match beat {
                Some(beat) => claims.found.push(beat),
                None => claims.invalid_found += 1,
            }
        }
        let window = beat.and_then(|beat| self.window_of(beat)).and_then(|downbeat| self.windows.get_mut(&downbeat));
        let counted_in = window.filter(|window| arrival < window.closing_beat);
        match (beat, counted_in) {
            (Some(_), Some(window)) => {
                window.in_the_log.claims += 1;
                window.agents.insert(number);
                if let Some(claim) = &claim {
                    window.rosters.record_counted(partition, claim);
                }
            }
            (beat, _) => {
                // There is no owner if the window is still open: its report is not checked.
                let owner = self.window_of(arrival).and_then(|downbeat| self.windows.get_mut(&downbeat));
                if let Some(owner) = owner {
                    owner.in_the_log.late += i64::from(beat.is_some());
                    if beat.is_some() {
                        owner.rosters.record_late(partition, &agent);
                    }
                    owner.in_the_log.invalid += i64::from(beat.is_none());
                }
            }
        }
    }

    /// Records a report; it replaces an earlier one of the same window.
    pub(crate) fn record_report(&mut self, report: BarReport) {
        if let Some(window) = self.windows.get_mut(&report.from_beat.get()) {
            window.report = Some(report);
        }
    }

    /// Records a roster.
    pub(crate) fn record_roster(&mut self, roster: BarRoster) {
        if let Some(window) = self.windows.get_mut(&roster.from_beat.get()) {
            window.rosters.record_roster(roster);
        }
    }

    /// Returns true if every window of the run has a report.
    pub(crate) fn is_complete(&self) -> bool {
        self.windows_of_the_run().all(|(_, window)| window.report.is_some())
    }

    /// Returns the windows from that of the first received beat on. Earlier windows are kept only for claims that count
    /// in them, which would otherwise be late ones of this run.
    fn windows_of_the_run(&self) -> impl Iterator<Item = (&i64, &Window)> {
        let first = self.window_of(self.first_beat.get()).unwrap_or_default();
        self.windows.range(first..)
    }

    /// Returns the downbeat of the window that contains `beat`.
    fn window_of(&self, beat: i64) -> Option<i64> {
        let (from, window) = self.windows.range(..=beat).next_back()?;
        (beat < window.end).then_some(*from)
    }

    fn claims_of(&mut self, agent: &str) -> &mut AgentClaims {
        if !self.agents.contains_key(agent) {
            let claims = AgentClaims { number: self.agents.len(), ..AgentClaims::default() };
            self.agents.insert(agent.to_owned(), claims);
        }
        self.agents.get_mut(agent).expect("the agent was inserted above")
    }

    /// Compares what was recorded.
    pub(crate) fn into_result(self) -> VerificationResult {
        let reports = || self.windows_of_the_run().filter_map(|(_, window)| window.report.as_ref());
        let mut result = VerificationResult {
            windows: self.windows_of_the_run().count() as u64,
            claims_sent: 0,
            claims_counted: reports().map(|report| report.claims).sum(),
            claims_late: reports().map(|report| report.late_claims).sum(),
            claims_invalid: reports().map(|report| report.invalid_claims).sum(),
            claims_of_others: 0,
            named: 0,
            mismatches: self.windows_of_the_run().flat_map(|(from, window)| window.mismatches(*from)).collect(),
        };
        for (from, window) in self.windows_of_the_run() {
            // The log was read from the window before the first one of the run on, if there is one.
            let previous = self.windows.range(..*from).next_back().map(|(_, previous)| &previous.rosters);
            if window.report.is_some() && (previous.is_some() || *from == 0) {
                let (named, mismatches) = window.roster_mismatches(*from, previous);
                result.named += named;
                result.mismatches.extend(mismatches);
            }
        }
        let mut agents: Vec<(String, AgentClaims)> = self.agents.into_iter().collect();
        agents.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (agent, claims) in agents {
            let sent = claims.sent.len() as u64 + claims.invalid_sent;
            result.claims_sent += sent;
            if sent == 0 {
                result.claims_of_others += claims.found.len() as u64 + claims.invalid_found;
            } else {
                result.mismatches.extend(claims.mismatch(agent));
            }
        }
        result
    }
}

impl Window {
    fn mismatches(&self, from_beat: i64) -> Vec<Mismatch> {
        let window_id = self.id;
        let Some(report) = &self.report else {
            return vec![Mismatch::NoReport { window_id, from_beat }];
        };
        let fields = [
            ("claims", report.claims, self.in_the_log.claims),
            ("late_claims", report.late_claims, self.in_the_log.late),
            ("invalid_claims", report.invalid_claims, self.in_the_log.invalid),
            ("agents_reporting", report.agents_reporting, self.agents.len() as i64),
        ];
        let differing = fields.into_iter().filter(|(_, reported, in_the_log)| reported != in_the_log);
        let mismatch =
            |(field, reported, in_the_log)| Mismatch::Report { window_id, from_beat, field, reported, in_the_log };
        differing.map(mismatch).collect()
    }

    /// Compares the rosters with the log, and returns how many agents and tasks had to be named.
    fn roster_mismatches(&self, from_beat: i64, previous: Option<&RosterClaims>) -> (u64, Vec<Mismatch>) {
        let nobody = RosterClaims::default();
        let previous = previous.unwrap_or(&nobody);
        let (mut named, mut mismatches) = (0, Vec::new());
        for kind in RosterKind::ALL {
            if kind == RosterKind::Silent && self.has_new_partitions {
                continue;
            }
            let expected = self.rosters.expected(kind, previous);
            named += expected.len() as u64;
            if let Some(RosterDifference { missing, unexpected }) = self.rosters.difference(kind, &expected) {
                let (window_id, roster) = (self.id, kind.as_str());
                mismatches.push(Mismatch::Roster { window_id, from_beat, roster, missing, unexpected });
            }
        }
        (named, mismatches)
    }
}

impl AgentClaims {
    fn mismatch(mut self, agent: String) -> Option<Mismatch> {
        self.sent.sort_unstable();
        self.found.sort_unstable();
        let (lost, repeated) = (without(&self.sent, &self.found), without(&self.found, &self.sent));
        let matches = lost.is_empty() && repeated.is_empty() && self.invalid_sent == self.invalid_found;
        (!matches).then(|| Mismatch::Agent {
            agent,
            sent: self.sent.len() as u64 + self.invalid_sent,
            found: self.found.len() as u64 + self.invalid_found,
            lost,
            repeated,
        })
    }
}

/// Returns the multiset difference `beats` minus `others`; both are sorted.
fn without(beats: &[i64], others: &[i64]) -> Vec<i64> {
    let mut others = others.iter().peekable();
    let is_unmatched = |beat: &i64| {
        while others.next_if(|other| *other < beat).is_some() {}
        others.next_if_eq(&beat).is_none()
    };
    beats.iter().copied().filter(is_unmatched).collect()
}

impl fmt::Display for VerificationResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { windows, claims_sent, claims_counted, claims_late, claims_invalid, claims_of_others, named, .. } =
            self;
        let comparison = if self.mismatches.is_empty() { "match" } else { "DO NOT MATCH" };
        write!(f, "{claims_sent} claims sent and {windows} reports {comparison}: ")?;
        write!(f, "{claims_counted} counted, {claims_late} late, {claims_invalid} invalid")?;
        if *named > 0 {
            write!(f, ", {named} named in rosters")?;
        }
        if *claims_of_others > 0 { write!(f, ", {claims_of_others} of them other agents'") } else { Ok(()) }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { agent, sent, found, lost, repeated } => {
                write!(f, "agent {agent}: {sent} claims sent, {found} in the log")?;
                for (label, beats) in [("lost", lost), ("repeated", repeated)] {
                    if !beats.is_empty() {
                        write!(f, "; {label} on beats {beats:?}")?;
                    }
                }
                Ok(())
            }
            Self::Report { window_id, from_beat, field, reported, in_the_log } => write!(
                f,
                "window {window_id} from beat {from_beat}: {field} {reported} in the report, {in_the_log} in the log; see backbeat audit --from {from_beat} --to {from_beat}"
            ),
            Self::Roster { window_id, from_beat, roster, missing, unexpected } => write!(
                f,
                "window {window_id} from beat {from_beat}: the roster of {roster} must name {missing:?} and must not name {unexpected:?}; see backbeat roster --beat {from_beat}"
            ),
            Self::NoReport { window_id, from_beat } => {
                write!(f, "window {window_id} from beat {from_beat}: no report")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use backbeat_schemas::testing;
    use backbeat_sdk::{State, Status};

    use super::*;
    use crate::Malformation;

    /// Bars of two beats; the boundary of beat n is 10 n.
    fn frames(beats: u32) -> Vec<BeatFrame> {
        let frame = |beat: u32| BeatFrame { claim_offsets: vec![10 * i64::from(beat)], ..testing::frame(beat, 2) };
        (0..beats).map(frame).collect()
    }

    fn report(from_beat: u32, counts: [i64; 4]) -> BarReport {
        let [claims, late_claims, invalid_claims, agents_reporting] = counts;
        BarReport { claims, late_claims, invalid_claims, agents_reporting, ..testing::report(from_beat, 2) }
    }

    fn claim(offset: i64, agent: &str, beat_index: i64) -> TopicRecord<StatusClaim> {
        // Whoever is not in the next window is done, and the others get on.
        let state = if agent == "other" { State::Done } else { State::Executing };
        let progress = beat_index as f64 / 10.0;
        let record = Ok(StatusClaim { state, progress, ..testing::claim(agent, beat_index) });
        TopicRecord { partition: 0, offset, key: Some(agent.into()), record }
    }

    fn garbage(offset: i64, agent: &str) -> TopicRecord<StatusClaim> {
        TopicRecord { partition: 0, offset, key: Some(agent.into()), record: Err("garbage".to_owned()) }
    }

    /// A run on beats 2 to 5: agent a claims on each, b on 2 and, late, on 3; the claim of c is invalid.
    fn run() -> Ledger {
        let beat = |beat: i64| BeatIndex::try_from(beat).expect("the beat is not negative");
        let mut ledger = Ledger::new(beat(2), frames(7));
        let plan = |agent: &str, delivery| ClaimPlan { status: Status::new(agent, "t", State::Executing), delivery };
        (2..6).for_each(|index| ledger.record_sent(beat(index), &plan("a", Delivery::OnTime)));
        ledger.record_sent(beat(2), &plan("b", Delivery::OnTime));
        ledger.record_sent(beat(3), &plan("b", Delivery::Late));
        ledger.record_sent(beat(3), &plan("c", Delivery::Malformed(Malformation::NotAvro)));
        ledger
    }

    fn log() -> Vec<TopicRecord<StatusClaim>> {
        // The second claim of b arrives on beat 4, when its window has closed. Offset 5 is before the run, 61 after it.
        let claims = [(20, "a", 2), (30, "a", 3), (40, "a", 4), (50, "a", 5), (21, "b", 2), (41, "b", 3), (5, "a", 0)];
        let mut log: Vec<_> = claims.into_iter().map(|(offset, agent, beat)| claim(offset, agent, beat)).collect();
        log.extend([garbage(31, "c"), claim(61, "a", 6), claim(32, "other", 3)]);
        log
    }

    fn record_log(ledger: &mut Ledger, log: Vec<TopicRecord<StatusClaim>>) {
        for record in log {
            ledger.record_found(record);
        }
    }

    fn verify(log: Vec<TopicRecord<StatusClaim>>, reports: [BarReport; 2]) -> VerificationResult {
        let mut ledger = run();
        record_log(&mut ledger, log);
        for report in reports {
            ledger.record_report(report);
        }
        ledger.into_result()
    }

    fn correct_reports() -> [BarReport; 2] {
        [report(2, [4, 0, 1, 3]), report(4, [2, 1, 0, 1])]
    }

    #[test]
    fn verification_of_a_correct_run_finds_no_mismatch() {
        let result = verify(log(), correct_reports());
        assert_eq!(result.mismatches, []);
        assert_eq!(
            result.to_string(),
            "7 claims sent and 2 reports match: 6 counted, 1 late, 1 invalid, 1 of them other agents'"
        );
    }

    #[test]
    fn verification_of_lost_and_repeated_claims_names_the_agent() {
        let mut log = log();
        log[1] = claim(30, "a", 2);
        let of_a = verify(log, correct_reports()).mismatches;
        assert_eq!(of_a.len(), 1, "{of_a:?}");
        assert_eq!(
            of_a[0].to_string(),
            "agent a: 4 claims sent, 4 in the log; lost on beats [3]; repeated on beats [2]"
        );
        let without_c = self::log().into_iter().filter(|record| record.offset != 31).collect();
        let shown: Vec<String> =
            verify(without_c, correct_reports()).mismatches.iter().map(ToString::to_string).collect();
        assert!(shown.contains(&"agent c: 1 claims sent, 0 in the log".to_owned()), "{shown:?}");
    }

    #[test]
    fn verification_of_wrong_rosters_names_the_agents() {
        // Agent a says the same in both windows, and nobody's roster says so.
        let mut log = log();
        for record in log.iter_mut().filter(|record| record.key.as_deref() == Some(b"a")) {
            record.record.as_mut().expect("a claim").progress = 0.5;
        }
        let shown: Vec<String> = verify(log, correct_reports()).mismatches.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].contains(r#"the roster of stalled must name ["a"] and must not name []"#), "{shown:?}");
    }

    #[test]
    fn verification_of_wrong_and_missing_reports_names_the_window() {
        let wrong = [report(2, [4, 0, 1, 3]), report(4, [3, 0, 0, 1])];
        let shown: Vec<String> = verify(log(), wrong).mismatches.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].contains("from beat 4: claims 3 in the report, 2 in the log"), "{shown:?}");
        assert!(shown[1].contains("late_claims 0 in the report, 1 in the log"), "{shown:?}");
        let mut ledger = run();
        record_log(&mut ledger, log());
        assert!(!ledger.is_complete());
        assert!(matches!(ledger.into_result().mismatches[..], [Mismatch::NoReport { from_beat: 2, .. }, _]));
    }
}
