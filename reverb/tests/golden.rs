//! A log and its reports: whoever changes the rules by which claims become reports must raise LOGIC.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use backbeat_reverb::core::{
    DecodedClaim, Frames, LOGIC, LOGIC_WITH_ROSTERS, Output, PartitionAggregator, RawRecord, bar_report,
};
use backbeat_schemas::{
    BeatFrame, BeatIndex, Help, InvalidClaim, SecretRotation, State, StatusClaim, WindowId, WriterSchema, testing, wire,
};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const SCHEMA: u32 = 1;
const PARTITIONS: usize = 3;
/// Bars of these lengths, with a grace of one beat.
const BARS: [u16; 6] = [4, 4, 3, 5, 1, 4];
/// Tasks of one agent in one window, more than count.
const GREEDY_TASKS: usize = 10_003;

/// A key and a value of `statusclaims`.
type Record = (Option<Vec<u8>>, Option<Vec<u8>>);

struct Log {
    frames: Vec<BeatFrame>,
    /// By partition.
    claims: [Vec<Record>; PARTITIONS],
}

impl Log {
    /// Makes the log, which has claims of all kinds. It must never change.
    fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut log = Self { frames: Vec::new(), claims: [const { Vec::new() }; PARTITIONS] };
        let mut beat = 0;
        for bar_length in BARS {
            let from = BeatIndex::ZERO.plus(beat);
            for position in 0..bar_length {
                // The third partition is added after some beats.
                let partitions = if beat < 6 { 2 } else { PARTITIONS };
                log.publish(beat, position, from, bar_length, partitions);
                for _ in 0..60 {
                    let partition = rng.random_range(0..partitions);
                    log.claims[partition].push(record(&mut rng, i64::from(beat)));
                }
                beat += 1;
            }
            if beat == 8 {
                let greedy = |task| StatusClaim { task_id: format!("t{task}"), ..testing::claim("greedy", 7) };
                let value = |task| Some(wire(SCHEMA, &greedy(task)));
                log.claims[1].extend((0..GREEDY_TASKS).map(|task| (Some(b"greedy".to_vec()), value(task))));
            }
        }
        // These beats close the last window.
        (0..2).for_each(|position| {
            log.publish(beat + position, position as u16, BeatIndex::ZERO.plus(beat), 4, PARTITIONS);
        });
        log
    }

    fn publish(&mut self, beat: u32, position: u16, from: BeatIndex, bar_length: u16, partitions: usize) {
        let mut frame = BeatFrame {
            downbeat: position == 0,
            window_id: WindowId::new("c", from),
            bar_length,
            grace_beats: 1,
            degraded: beat % 7 == 3,
            claim_offsets: self.claims[..partitions].iter().map(|claims| claims.len() as i64).collect(),
            ..testing::frame(beat, bar_length)
        };
        frame.emitted_at = frame.scheduled_at.plus_millis(i64::from(beat % 5));
        if beat == 10 {
            // Pulse had an outage.
            frame.emitted_at = frame.scheduled_at.plus_millis(7_000);
            (frame.anchor_beat, frame.anchor_at) = (frame.beat_index, frame.emitted_at);
        }
        self.frames.push(frame);
    }
}

/// Returns a claim made on `beat`, or something that is none.
fn record(rng: &mut ChaCha8Rng, beat: i64) -> Record {
    const STATES: [State; 7] =
        [State::Planning, State::Executing, State::Waiting, State::Review, State::Done, State::Failed, State::Unknown];
    const HELP: [Option<Help>; 4] = [None, Some(Help::Requested), Some(Help::Promised), Some(Help::Fulfilled)];
    let claimed = match rng.random_range(0..20) {
        0..4 => beat - rng.random_range(1..9),
        4 => beat + rng.random_range(1..4),
        _ => beat,
    };
    let mut claim = StatusClaim {
        task_id: format!("t{}", rng.random_range(0..4)),
        state: *STATES.choose(rng).expect("there are states"),
        beats_left: rng.random_range(-1..3),
        progress: rng.random_range(0.0..1.0),
        help: *HELP.choose(rng).expect("there are values"),
        secret_rotation: rng.random_bool(0.05).then_some(SecretRotation::Failed),
        degraded: rng.random_bool(0.1),
        ..testing::claim(&format!("a{}", rng.random_range(0..12)), claimed)
    };
    let mut key = claim.agent_id.clone();
    match rng.random_range(0..60) {
        0 => return (Some(key.into_bytes()), None),
        1 => return (Some(key.into_bytes()), Some(vec![0; 65_537])),
        2 => return (Some(key.into_bytes()), Some(b"no avro".to_vec())),
        3 => return (Some(key.into_bytes()), Some(wire(SCHEMA + 1, &claim))),
        4 => return (Some(key.into_bytes()), Some(wire(SCHEMA, &claim)[..20].to_vec())),
        5 => return (Some(key.into_bytes()), Some([wire(SCHEMA, &claim), vec![0]].concat())),
        6 => key.insert(0, 'x'),
        7 => claim.task_id = String::new(),
        8 => claim.task_id = "t".repeat(257),
        9 => claim.progress = 1.5,
        10 => claim.notes = "n".repeat(4_097),
        11 => claim.hlc.clear(),
        _ => {}
    }
    (Some(key.into_bytes()), Some(wire(SCHEMA, &claim)))
}

/// Returns the reports by the rules of version `logic`, the reasons of dead letters, and the rosters, one a line.
fn outcome(log: &Log, logic: i32) -> String {
    let mut frames = Frames::default();
    log.frames.iter().for_each(|frame| frames.push(frame.clone()).expect("the frames are consistent"));
    let schema = WriterSchema::own();
    let (mut windows, mut dead_letters, mut rosters) = (BTreeMap::new(), String::new(), String::new());
    for (partition, claims) in (0..).zip(&log.claims) {
        let mut aggregator = PartitionAggregator::new(partition, BeatIndex::ZERO, &frames, 0);
        let mut outputs = Vec::new();
        for (offset, (key, value)) in (0..).zip(claims) {
            let find = |id| if id == SCHEMA { Ok(Some(&schema)) } else { Err(InvalidClaim::UnknownSchema(id)) };
            let decoded = DecodedClaim::decode(key.as_deref(), value.as_deref(), find).expect("the schema is known");
            aggregator.process(offset, decoded, &frames, RawRecord::default, &mut outputs);
        }
        aggregator.advance(&frames, &mut outputs);
        for output in outputs {
            match output {
                Output::DeadLetter { offset, reason, .. } => {
                    let line = json!({ "partition": partition, "offset": offset, "reason": reason.reason() });
                    writeln!(dead_letters, "{line}").expect("a String takes all");
                }
                Output::WindowClosed(closed) => {
                    let (_, counts) = windows.entry(closed.window.from).or_insert((closed.window, Default::default()));
                    backbeat_schemas::Counts::add(counts, &closed.counts);
                    if let Some(roster) = closed.roster.filter(|_| logic >= LOGIC_WITH_ROSTERS) {
                        writeln!(rosters, "{}", json!(roster)).expect("a String takes all");
                    }
                }
            }
        }
    }
    let report = |(window, counts)| bar_report(&frames, &window, &counts, logic).expect("the window is closed");
    let reports = windows.into_values().map(report);
    let lines = reports.map(|report| serde_json::to_string(&report).expect("a report is JSON") + "\n");
    lines.collect::<String>() + &dead_letters + &rosters
}

#[test]
fn reports_of_the_golden_log_change_only_with_logic() {
    // Reports of earlier versions are still computed: to compare them, and while members are upgraded.
    (1..=LOGIC).for_each(assert_golden);
}

fn assert_golden(logic: i32) {
    let mut found = outcome(&Log::new(), logic);
    if logic < LOGIC_WITH_ROSTERS {
        // The reports of that version had no such fields.
        found = found.replace(r#","agents_fell_silent":0,"tasks_stalled":0,"tasks_overdrawn":0"#, "");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/logic-{logic}.jsonl"));
    if !path.exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).expect("the file is written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}. After LOGIC was raised, UPDATE_GOLDEN=1 writes this file", path.display())
    });
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(
            found, expected,
            "the rules have changed: raise LOGIC in reverb/src/core/mod.rs, then write a new file with UPDATE_GOLDEN=1"
        );
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

#[test]
fn golden_log_has_claims_of_all_kinds() {
    let outcome = outcome(&Log::new(), LOGIC);
    let missing: Vec<&str> =
        InvalidClaim::REASONS.into_iter().filter(|reason| !outcome.contains(&format!("\"{reason}\""))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let issues = [
        "late claims",
        "invalid claims",
        "claims with an unknown schema",
        "claims of agents or tasks beyond the limit",
        "agents with claims in other partitions than theirs",
        "degraded beats",
        "degraded claims",
        "agents failed secret rotation",
        "pulse outage of 7000 ms before beat 10",
    ];
    let missing: Vec<&str> = issues.into_iter().filter(|issue| !outcome.contains(issue)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
