//! The state that the page shows, as a function of the events that were read.

use std::collections::{BTreeMap, VecDeque};

use backbeat_broker::DeadLetter;
use backbeat_http_api::{pulse, reverb};
use backbeat_schemas::{BarReport, BeatFrame, BeatIndex, Timestamp, Verdict, WindowId};

use crate::overview::{ProgramStatus, slos};

/// The largest number of windows that are shown.
pub(crate) const MAX_WINDOWS: usize = 50;
/// The largest number of dead letters that are shown.
pub(crate) const MAX_DEAD_LETTERS: usize = 20;
/// The largest number of beats whose lateness is shown.
pub(crate) const MAX_BEATS: usize = 60;

/// News from Kafka or from a program.
#[derive(Debug)]
pub(crate) enum Event {
    /// A frame was read that was in the log before.
    EarlierFrame(BeatFrame),
    /// A frame was read as soon as it was published.
    Frame(BeatFrame),
    /// `beatframes` is read from its end on, where this beat is.
    NewestBeat(Option<BeatIndex>),
    /// `beatframes` was recreated: what was read of it is of another log.
    Recreated,
    /// A report was read.
    Report(BarReport),
    /// Dead letters were read.
    DeadLetters(Vec<DeadLetter>),
    /// The pulse nodes at the address with this number were asked for their status.
    Pulse(usize, Vec<ProgramStatus<pulse::StatusBody>>),
    /// The reverb members at the address with this number were asked for their status and their newest windows.
    Reverb(usize, Vec<Member>),
    /// Kafka answered, or did not, for this reason.
    Kafka(Result<(), String>),
    /// A reader of this name works, or does not, for this reason.
    Reader(&'static str, Result<(), String>),
}

/// A reverb member's answers.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) program: ProgramStatus<reverb::StatusBody>,
    pub(crate) windows: Vec<reverb::WindowStatus>,
}

/// A program, with its last status.
#[derive(Debug)]
pub(crate) struct Known<S> {
    pub(crate) program: ProgramStatus<S>,
    /// True if it answered; otherwise its status is an earlier one.
    pub(crate) answers: bool,
    /// The instant since which it is ready, or is not.
    pub(crate) since: Timestamp,
}

impl<S> Known<S> {
    fn current(&self) -> Option<&S> {
        self.program.status.as_ref().filter(|_| self.answers)
    }
}

/// A window that is shown.
#[derive(Debug, Clone)]
pub(crate) struct WindowView {
    pub(crate) window_id: WindowId,
    pub(crate) from_beat: BeatIndex,
    /// The bar's beats; `None` until a frame or a report has said it.
    pub(crate) bar_length: Option<u16>,
    /// The number of its beats that were published.
    pub(crate) beats: u16,
    /// The claims that reverb's members have counted so far, by partition.
    pub(crate) claims_so_far: BTreeMap<i32, i64>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) report: Option<BarReport>,
}

/// The state of the page.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// The newest frame.
    pub(crate) frame: Option<BeatFrame>,
    /// The instant at which the next frame is due, by this program's clock.
    pub(crate) due: Timestamp,
    /// The differences between the last beats' emission and schedule in milliseconds, oldest first.
    pub(crate) lateness_ms: VecDeque<i64>,
    pub(crate) windows: BTreeMap<BeatIndex, WindowView>,
    /// The report of the newest window that has one.
    pub(crate) last_report: Option<BarReport>,
    pub(crate) pulse: BTreeMap<(usize, String), Known<pulse::StatusBody>>,
    pub(crate) reverb: BTreeMap<(usize, String), Known<reverb::StatusBody>>,
    /// The newest dead letters, newest first.
    pub(crate) dead_letters: VecDeque<DeadLetter>,
    /// The reason why Kafka does not answer, and since when.
    pub(crate) kafka_trouble: Option<(Timestamp, String)>,
    /// True if Kafka has answered once.
    pub(crate) has_seen_kafka: bool,
    /// The readers that do not work, since when and why.
    pub(crate) reader_troubles: BTreeMap<&'static str, (Timestamp, String)>,
}

impl Board {
    pub(crate) fn on(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::EarlierFrame(frame) => self.on_frame(frame, None),
            Event::Frame(frame) => self.on_frame(frame, Some(now)),
            Event::NewestBeat(newest) => {
                let shown = self.frame.as_ref().map(|frame| frame.beat_index);
                if shown > newest {
                    self.forget_log();
                }
            }
            Event::Recreated => self.forget_log(),
            Event::Report(report) => self.on_report(report),
            Event::DeadLetters(letters) => {
                for letter in letters {
                    // Those that are read again are there.
                    if self
                        .dead_letters
                        .iter()
                        .all(|shown| (shown.offset, shown.written_at_ms) != (letter.offset, letter.written_at_ms))
                    {
                        self.dead_letters.push_front(letter);
                    }
                }
                self.dead_letters.truncate(MAX_DEAD_LETTERS);
            }
            Event::Pulse(address, programs) => replace(&mut self.pulse, address, programs, now),
            Event::Reverb(address, members) => {
                for window in members.iter().flat_map(|member| &member.windows) {
                    self.on_window_status(window);
                }
                replace(&mut self.reverb, address, members.into_iter().map(|member| member.program), now);
                self.drop_old_windows();
            }
            Event::Kafka(Ok(())) => (self.kafka_trouble, self.has_seen_kafka) = (None, true),
            Event::Kafka(Err(reason)) => {
                let since = self.kafka_trouble.as_ref().map_or(now, |(since, _)| *since);
                self.kafka_trouble = Some((since, reason));
            }
            Event::Reader(name, Ok(())) => drop(self.reader_troubles.remove(name)),
            Event::Reader(name, Err(reason)) => {
                self.reader_troubles.entry(name).or_insert((now, String::new())).1 = reason;
            }
        }
    }

    fn forget_log(&mut self) {
        (self.frame, self.last_report) = (None, None);
        self.windows.clear();
        self.lateness_ms.clear();
    }

    /// A frame that is not newer than the newest one is read again after a client was replaced, and changes nothing.
    fn on_frame(&mut self, frame: BeatFrame, published_at: Option<Timestamp>) {
        if self.frame.as_ref().is_some_and(|newest| newest.beat_index >= frame.beat_index) {
            return;
        }
        self.lateness_ms.push_back(frame.emitted_at.millis_since(frame.scheduled_at));
        if self.lateness_ms.len() > MAX_BEATS {
            self.lateness_ms.pop_front();
        }
        if frame.downbeat {
            self.window(frame.window_id, frame.beat_index).bar_length = Some(frame.bar_length);
        }
        let open = self.windows.values_mut().rev().find(|window| window.window_id == frame.window_id);
        if let Some(window) = open {
            window.beats = (frame.beat_index.since(window.from_beat) + 1) as u16;
            window.bar_length = Some(frame.bar_length);
        }
        // The leader's clock may differ from this one: a new frame counts as emitted now.
        let until_next = frame.deadline_at.millis_since(frame.emitted_at).max(0);
        self.due = published_at.map_or(frame.deadline_at, |now| now.plus_millis(until_next));
        self.frame = Some(frame);
        self.drop_old_windows();
    }

    fn on_report(&mut self, report: BarReport) {
        let beats = (report.to_beat.since(report.from_beat) + 1) as u16;
        let window = self.window(report.window_id, report.from_beat);
        (window.bar_length, window.beats) = (Some(beats), beats);
        window.report = Some(report.clone());
        if self.last_report.as_ref().is_none_or(|last| last.from_beat <= report.from_beat) {
            self.last_report = Some(report);
        }
        self.drop_old_windows();
    }

    fn on_window_status(&mut self, status: &reverb::WindowStatus) {
        // Members list windows that are older than those shown.
        let is_shown = self.windows.contains_key(&status.from_beat) || self.windows.len() < MAX_WINDOWS;
        if !is_shown {
            return;
        }
        let window = self.window(status.window_id, status.from_beat);
        for (partition, share) in &status.partitions {
            let claims = window.claims_so_far.entry(*partition).or_default();
            *claims = share.claims.max(*claims);
        }
        window.verdict = status.verdict.or(window.verdict);
        if let (None, Some(report)) = (&window.report, &status.report) {
            self.on_report(report.clone());
        }
    }

    fn window(&mut self, window_id: WindowId, from_beat: BeatIndex) -> &mut WindowView {
        self.windows.entry(from_beat).or_insert_with(|| WindowView {
            window_id,
            from_beat,
            bar_length: None,
            beats: 0,
            claims_so_far: BTreeMap::new(),
            verdict: None,
            report: None,
        })
    }

    fn drop_old_windows(&mut self) {
        while self.windows.len() > MAX_WINDOWS {
            self.windows.pop_first();
        }
    }

    /// Returns the window with this id, if it is shown.
    pub(crate) fn find_window(&self, id: WindowId) -> Option<&WindowView> {
        self.windows.values().find(|window| window.window_id == id)
    }

    /// Returns the name of the member that sent the newest partial of each partition.
    pub(crate) fn owners(&self) -> BTreeMap<i32, &str> {
        let mut owners = BTreeMap::<i32, &reverb::LastPartial>::new();
        let statuses = self.reverb.values().filter_map(Known::current);
        for (partition, partial) in statuses.flat_map(|status| &status.group) {
            let owner = owners.entry(*partition).or_insert(partial);
            if owner.from_beat < partial.from_beat {
                *owner = partial;
            }
        }
        owners.into_iter().map(|(partition, partial)| (partition, partial.member.as_str())).collect()
    }

    /// Returns the SLOs as members that answer measure them.
    pub(crate) fn slos(&self) -> &[reverb::Slo] {
        slos(self.reverb.values().filter_map(Known::current))
    }

    /// Returns the status of the pulse node that knows the newest beat.
    pub(crate) fn newest_pulse_status(&self) -> Option<&pulse::StatusBody> {
        let statuses = self.pulse.values().filter_map(Known::current);
        statuses.max_by_key(|status| status.beat)
    }
}

impl WindowView {
    /// Returns the claims that count in it, as the report has them, or else those counted so far.
    pub(crate) fn claims(&self) -> i64 {
        self.report.as_ref().map_or_else(|| self.claims_so_far.values().sum(), |report| report.claims)
    }

    /// Returns its last beat, if the bar's length is known.
    pub(crate) fn to_beat(&self) -> Option<i64> {
        self.bar_length.map(|length| self.from_beat.get() + i64::from(length) - 1)
    }

    /// Returns true if its last beat has been published.
    pub(crate) fn is_complete(&self) -> bool {
        self.bar_length.is_some_and(|length| self.beats >= length)
    }
}

/// Replaces the programs at one address. A status that cannot be fetched keeps the last one.
fn replace<S>(
    known: &mut BTreeMap<(usize, String), Known<S>>,
    address: usize,
    programs: impl IntoIterator<Item = ProgramStatus<S>>,
    now: Timestamp,
) {
    let mut old: BTreeMap<String, Known<S>> = BTreeMap::new();
    for key in known.keys().filter(|(of, _)| *of == address).cloned().collect::<Vec<_>>() {
        if let Some(program) = known.remove(&key) {
            old.insert(key.1, program);
        }
    }
    for mut program in programs {
        let last = old.remove(&program.url);
        let answers = program.status.is_some();
        let had_same_trouble = last
            .as_ref()
            .is_some_and(|last| last.program.problem.is_some() == program.problem.is_some() && last.answers == answers);
        let since = last.as_ref().filter(|_| had_same_trouble).map_or(now, |last| last.since);
        if !answers {
            program.status = last.and_then(|last| last.program.status);
        }
        known.insert((address, program.url.clone()), Known { program, answers, since });
    }
}

#[cfg(test)]
mod tests {
    use backbeat_schemas::testing::{frame, report};

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn board(events: impl IntoIterator<Item = Event>) -> Board {
        let mut board = Board::default();
        events.into_iter().for_each(|event| board.on(event, at(0)));
        board
    }

    fn node(url: &str, problem: Option<&str>, status: Option<pulse::StatusBody>) -> ProgramStatus<pulse::StatusBody> {
        ProgramStatus { url: url.to_owned(), problem: problem.map(str::to_owned), status }
    }

    fn status(name: &str, beat: u32) -> pulse::StatusBody {
        serde_json::from_value(serde_json::json!({
            "cluster_id": "c", "node": name, "role": "leader", "beat": beat, "members": [],
        }))
        .expect("a status")
    }

    #[test]
    fn window_opens_at_its_downbeat_and_is_complete_at_its_last_beat_until_it_has_a_report() {
        let mut board = board((0..3).map(|beat| Event::Frame(frame(beat, 4))));
        let id = frame(0, 4).window_id;
        let window = |board: &Board| board.find_window(id).cloned().expect("it is shown");
        assert_eq!((window(&board).beats, window(&board).is_complete()), (3, false));
        // Frames that are read again change nothing.
        board.on(Event::Frame(frame(1, 4)), at(0));
        assert_eq!((window(&board).beats, board.lateness_ms.len()), (3, 3));
        board.on(Event::Frame(frame(3, 4)), at(0));
        assert!(window(&board).is_complete());
        board.on(Event::Report(BarReport { claims: 7, ..report(0, 4) }), at(0));
        assert_eq!(window(&board).claims(), 7);
        assert_eq!(board.last_report.map(|report| report.claims), Some(7));
    }

    #[test]
    fn next_beat_is_due_a_period_after_the_last_one_was_read_whatever_the_leaders_clock_says() {
        // Beat 100 was emitted at 100 s, and the next one is due at 101 s.
        let due = |event, now| {
            let mut board = Board::default();
            board.on(event, at(now));
            board.due
        };
        for now in [100_010, 50_000, 200_000] {
            assert_eq!(due(Event::Frame(frame(100, 4)), now), at(now + 1_000));
        }
        assert_eq!(due(Event::EarlierFrame(frame(100, 4)), 200_000), at(101_000), "the next one is late since then");
    }

    #[test]
    fn newest_windows_dead_letters_and_beats_are_kept() {
        let letter = |offset| DeadLetter {
            offset,
            written_at_ms: 0,
            reason: String::new(),
            detail: String::new(),
            source_partition: String::new(),
            source_offset: String::new(),
            key: String::new(),
        };
        let frames = (0..300).map(|beat| Event::Frame(frame(beat, 4)));
        let letters = (0..30).map(|offset| Event::DeadLetters(vec![letter(offset)]));
        let board = board(frames.chain(letters));
        let shown: Vec<i64> = board.windows.keys().map(|from| from.get()).collect();
        assert_eq!((shown.len(), shown.first(), shown.last()), (MAX_WINDOWS, Some(&100), Some(&296)));
        assert_eq!((board.dead_letters.len(), board.dead_letters[0].offset), (MAX_DEAD_LETTERS, 29));
        assert_eq!(board.lateness_ms.len(), MAX_BEATS);
    }

    #[test]
    fn program_that_does_not_answer_keeps_its_last_status_and_the_start_of_its_trouble() {
        let mut board = Board::default();
        let answers = |beat| node("u", None, Some(status("p", beat)));
        let silent = |reason| node("u", Some(reason), None);
        for (time, program) in [(1, answers(5)), (2, answers(6)), (3, silent("timeout")), (4, silent("refused"))] {
            board.on(Event::Pulse(0, vec![program]), at(time));
        }
        let known = board.pulse.values().next().expect("one node");
        assert_eq!(
            (known.since, known.program.status.as_ref().map(|status| status.beat)),
            (at(3), Some(status("p", 6).beat))
        );
        assert!(board.newest_pulse_status().is_none(), "a node that does not answer knows nothing of now");
        board.on(Event::Pulse(0, vec![answers(7)]), at(5));
        assert_eq!(board.pulse.values().next().map(|known| known.since), Some(at(5)));
        // An instance that is gone from the names of its address is gone from the page.
        board.on(Event::Pulse(0, vec![node("v", None, None)]), at(6));
        assert_eq!(board.pulse.keys().map(|(_, url)| url.as_str()).collect::<Vec<_>>(), ["v"]);
    }

    #[test]
    fn trouble_of_another_kind_has_a_start_of_its_own() {
        let mut board = Board::default();
        let catches_up = node("u", Some("catches up"), Some(status("p", 5)));
        for (time, program) in [(1, catches_up), (2, node("u", Some("does not answer"), None))] {
            board.on(Event::Pulse(0, vec![program]), at(time));
        }
        assert_eq!(board.pulse.values().next().map(|known| known.since), Some(at(2)));
    }

    #[test]
    fn log_whose_newest_beat_is_before_the_shown_one_is_another() {
        let frames = || (0..6).map(|beat| Event::Frame(frame(beat, 4)));
        let newest = |beat| Event::NewestBeat(Some(BeatIndex::try_from(beat).expect("a beat")));
        assert!(board(frames().chain([newest(5)])).frame.is_some());
        let again = board(frames().chain([newest(4), Event::Frame(frame(0, 4))]));
        assert_eq!(again.frame.map(|frame| frame.beat_index), Some(BeatIndex::ZERO));
        assert_eq!(again.windows.len(), 1);
        assert!(board(frames().chain([Event::NewestBeat(None)])).frame.is_none());
    }

    #[test]
    fn outage_of_kafka_is_shown_since_its_first_failure() {
        let mut board = board([Event::Kafka(Ok(()))]);
        board.on(Event::Kafka(Err("a".to_owned())), at(1));
        board.on(Event::Kafka(Err("b".to_owned())), at(2));
        assert_eq!(board.kafka_trouble, Some((at(1), "b".to_owned())));
        board.on(Event::Kafka(Ok(())), at(3));
        assert_eq!(board.kafka_trouble, None);
    }
}
