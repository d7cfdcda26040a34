//! The records' encodings: the prototype's JSON, golden bytes, schema evolution, and round trips.

use backbeat_schemas::{
    BarPartial, BarReport, BeatFrame, BeatIndex, Counts, DecodeError, Done, Header, HeaderError, Help, Merging,
    Partial, PartialBody, Record, SecretRotation, State, StatusClaim, Tempo, Timestamp, Verdict, WindowId,
    WriterSchema, testing, wire,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const FRAME: &str = r#"{"type":"backbeat.beatframe.v1","cluster_id":"chorus-production","beat_index":1234,"downbeat":true,"phase":"execution","hlc":"7ffd:0001:beef","deadline_at":"2024-01-15T10:30:00Z","tempo_bpm":120,"window_id":"7e9b0e6c4c9a4e59b7f2d9a3c1b2e4d5"}"#;
const CLAIM: &str = r#"{"type":"backbeat.statusclaim.v1","agent_id":"agent:xyz","task_id":"task:123","beat_index":1234,"state":"executing","beats_left":3,"progress":0.5,"notes":"fetching inputs","hlc":"7ffd:0001:beef"}"#;
const REPORT: &str = r#"{"type":"backbeat.barreport.v1","window_id":"7e9b0e6c4c9a4e59b7f2d9a3c1b2e4d5","from_beat":240,"to_beat":359,"agents_reporting":978,"on_time_reviews":842,"help_promises_fulfilled":91,"secret_rotations_ok":true,"tempo_drift_ms":7,"issues":[]}"#;

fn from_json<R: Record>(text: &str) -> R {
    serde_json::from_str(text).expect("a record in the prototype's JSON parses")
}

fn to_json<R: Record>(record: &R) -> String {
    serde_json::to_string(record).expect("a record serializes as JSON")
}

/// Asserts that the JSON of a record starts with the prototype's fields, in the prototype's order and form; further
/// fields follow them.
fn assert_starts_with_prototype<R: Record>(text: &str) {
    let json = to_json(&from_json::<R>(text));
    let prototype = text.strip_suffix('}').expect("an object");
    assert_eq!(json.get(..prototype.len()), Some(prototype), "{json}");
}

#[test]
fn json_of_records_starts_with_the_prototypes_fields() {
    assert_starts_with_prototype::<BeatFrame>(FRAME);
    assert_starts_with_prototype::<StatusClaim>(CLAIM);
    assert_starts_with_prototype::<BarReport>(REPORT);
}

fn round_trip<R: Record>(record: &R) -> R {
    let value = wire(7, record);
    let (header, body) = Header::split(&value).expect("the wire format");
    assert_eq!(header.schema_id, 7);
    WriterSchema::own().decode(body).expect("an encoded record decodes")
}

#[test]
fn wire_of_a_claim_equals_the_golden_bytes() {
    let bytes = wire(258, &from_json::<StatusClaim>(CLAIM));
    let mut expected = vec![0, 0, 0, 1, 2];
    for text in ["backbeat.statusclaim.v1", "agent:xyz", "task:123"] {
        expected.push(text.len() as u8 * 2);
        expected.extend(text.as_bytes());
    }
    expected.extend([0xa4, 0x13]); // beat 1234, zig-zag
    expected.push(2); // executing
    expected.push(6); // beats_left 3
    expected.extend(0.5f64.to_le_bytes());
    for text in ["fetching inputs", "7ffd:0001:beef"] {
        expected.push(text.len() as u8 * 2);
        expected.extend(text.as_bytes());
    }
    expected.extend([0, 0, 0]); // help null, secret_rotation null, degraded false
    assert_eq!(bytes, expected);
}

#[test]
fn decode_with_left_over_or_missing_bytes_fails() {
    let value = wire(1, &from_json::<StatusClaim>(CLAIM));
    let (_, body) = Header::split(&value).expect("the wire format");
    let schema = WriterSchema::<StatusClaim>::own();
    let longer = [body, &[0]].concat();
    assert_eq!(schema.decode(&longer), Err(DecodeError::LeftOver { bytes: 1 }));
    for length in 0..body.len() {
        assert!(matches!(schema.decode(&body[..length]), Err(DecodeError::Body(_))), "{length} bytes");
    }
    assert_eq!(Header::split(b"\0\0\0\0"), Err(HeaderError::TooShort(4)));
    assert_eq!(Header::split(b"{\"a\":1}"), Err(HeaderError::Magic(b'{')));
}

/// Returns the schema of claims after `change` to its fields.
fn evolved(change: impl FnOnce(&mut Vec<serde_json::Value>)) -> String {
    let mut schema: serde_json::Value = serde_json::from_str(StatusClaim::schema().text()).expect("a schema is JSON");
    change(schema["fields"].as_array_mut().expect("a record has fields"));
    schema.to_string()
}

#[test]
fn decode_of_an_older_writer_without_a_defaulted_field_fills_in_the_default() {
    let older = evolved(|fields| fields.retain(|f| f["name"] != "degraded" && f["name"] != "help"));
    let claim = from_json::<StatusClaim>(CLAIM);
    let value = wire(1, &claim);
    // Cut out help (one byte before secret_rotation) and degraded (the last byte).
    let body = [&value[5..value.len() - 3], &value[value.len() - 2..value.len() - 1]].concat();
    let decoded = WriterSchema::parse(&older).and_then(|schema| schema.decode(&body));
    assert_eq!(decoded, Ok(claim));
}

#[test]
fn decode_of_a_newer_writer_with_a_further_defaulted_field_ignores_it() {
    let newer = evolved(|fields| fields.push(serde_json::json!({"name": "mood", "type": "string", "default": "calm"})));
    let claim =
        StatusClaim { help: Some(Help::Promised), secret_rotation: Some(SecretRotation::Failed), ..from_json(CLAIM) };
    let mut body = wire(1, &claim)[5..].to_vec();
    body.extend(b"\x08glad");
    let decoded = WriterSchema::parse(&newer).and_then(|schema| schema.decode(&body));
    assert_eq!(decoded, Ok(claim));
}

#[test]
fn decode_of_a_newer_writer_with_a_further_state_gives_unknown() {
    let newer = evolved(|fields| {
        fields[4]["type"]["symbols"].as_array_mut().expect("an enum has symbols").push("paused".into());
    });
    let claim = from_json::<StatusClaim>(CLAIM);
    let mut body = wire(1, &claim)[5..].to_vec();
    let state = 1 + 23 + 1 + 9 + 1 + 8 + 2;
    assert_eq!(body[state], 2, "executing");
    body[state] = 14;
    let decoded: StatusClaim =
        WriterSchema::parse(&newer).and_then(|schema| schema.decode(&body)).expect("the schemas resolve");
    assert_eq!(decoded, StatusClaim { state: State::Unknown, ..claim });
}

#[test]
fn parse_of_another_records_schema_fails() {
    let refused = WriterSchema::<StatusClaim>::parse(BarReport::schema().text()).err();
    assert_eq!(
        refused,
        Some(DecodeError::OtherRecord { found: "backbeat.BarReport".into(), expected: "backbeat.StatusClaim".into() })
    );
    assert!(WriterSchema::<StatusClaim>::parse("\"string\"").is_err());
    assert!(WriterSchema::<StatusClaim>::parse("{").is_err());
}

prop_compose! {
    fn any_claim()(
        agent_id in ".{0,20}", task_id in ".{0,20}", beat_index: i64, beats_left: i32, progress in -1e9f64..1e9, notes in ".{0,40}", hlc in ".{0,20}",
        state in prop::sample::select(vec![State::Planning, State::Executing, State::Waiting, State::Review, State::Done, State::Failed, State::Unknown]),
        help in prop::option::of(prop::sample::select(vec![Help::Requested, Help::Promised, Help::Fulfilled])),
        secret_rotation in prop::option::of(prop::sample::select(vec![SecretRotation::Ok, SecretRotation::Failed])), degraded: bool,
    ) -> StatusClaim {
        StatusClaim { r#type: Default::default(), agent_id, task_id, beat_index, state, beats_left, progress, notes, hlc, help, secret_rotation, degraded }
    }
}

prop_compose! {
    fn any_frame()(
        beat in 0..i64::MAX / 2, bar_length in 1u16..1_000, grace_beats in 0u16..9, milli_bpm in 1u32..60_000_000, millis in 0i64..4_000_000_000_000,
        logical: u16, node: u16, degraded: bool, claim_offsets in prop::collection::vec(0i64..i64::MAX, 0..20),
    ) -> BeatFrame {
        let beat_index = BeatIndex::try_from(beat).expect("the beat index is not negative");
        BeatFrame {
            beat_index,
            downbeat: beat % 2 == 0,
            hlc: format!("{millis:x}:{logical:04x}:{node:04x}").parse().expect("the hlc is well formed"),
            deadline_at: Timestamp::from_millis(millis),
            tempo_bpm: Tempo::try_from(f64::from(milli_bpm) / 1_000.0).expect("the tempo is in range"),
            window_id: WindowId::new("c", beat_index),
            grace_beats,
            scheduled_at: Timestamp::from_millis(millis - 5),
            emitted_at: Timestamp::from_millis(millis - 4),
            anchor_beat: beat_index,
            anchor_at: Timestamp::from_millis(1),
            degraded,
            claim_offsets,
            ..testing::frame(0, bar_length)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn claim_round_trips_through_avro_and_json(claim in any_claim()) {
        prop_assert_eq!(&round_trip(&claim), &claim);
        let again: StatusClaim = from_json(&to_json(&claim));
        prop_assert!((again.progress - claim.progress).abs() <= f64::EPSILON * claim.progress.abs());
        prop_assert_eq!(StatusClaim { progress: claim.progress, ..again }, claim);
    }

    #[test]
    fn frame_round_trips_through_avro_and_json(frame in any_frame()) {
        prop_assert_eq!(&round_trip(&frame), &frame);
        prop_assert_eq!(&from_json::<BeatFrame>(&to_json(&frame)), &frame);
    }

    #[test]
    fn report_round_trips_through_avro_and_json(
        counts in prop::array::uniform9(0i64..i64::MAX), rotations_ok: bool, issues in prop::collection::vec(".{0,30}", 0..5),
        offsets in prop::collection::vec(0i64..i64::MAX, 0..20), millis in 0i64..4_000_000_000_000,
    ) {
        let [agents, reviews, help, drift, claims, late, invalid, done, failed] = counts;
        let from_beat = BeatIndex::try_from(agents / 2).expect("the beat index is not negative");
        let report = BarReport {
            window_id: WindowId::new("c", from_beat), from_beat, to_beat: from_beat.plus(7),
            agents_reporting: agents, on_time_reviews: reviews, help_promises_fulfilled: help, secret_rotations_ok: rotations_ok,
            tempo_drift_ms: drift, issues, opened_at: Timestamp::from_millis(millis), closed_at: Timestamp::from_millis(millis + 1),
            claims, late_claims: late, invalid_claims: invalid, tasks_done: done, tasks_failed: failed,
            from_offsets: offsets.clone(), to_offsets: offsets, ..testing::report(0, 4)
        };
        prop_assert_eq!(&round_trip(&report), &report);
        prop_assert_eq!(&from_json::<BarReport>(&to_json(&report)), &report);
    }

    #[test]
    fn decode_of_random_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = WriterSchema::<StatusClaim>::own().decode(&bytes);
        let _ = WriterSchema::<BeatFrame>::own().decode(&bytes);
        let _ = WriterSchema::<BarPartial>::own().decode(&bytes);
    }
}

#[test]
fn partial_and_done_round_trip_through_avro() {
    let window = WindowId::new("c", BeatIndex::ZERO);
    let counts = Counts::from_values(1..);
    let partial = Partial { member: "m".into(), counter: 9, ..Partial::new(3, 1, true, &counts) };
    assert_eq!(partial.counts(), counts);
    let done = Done { verdict: Verdict::Skipped, low: 12, rescued: vec![0, 7] };
    let merging = |member| PartialBody::Merging(Merging { member, logic: 3 });
    for body in [PartialBody::Partial(partial), PartialBody::Done(done), merging(Some("m".into())), merging(None)] {
        let record = BarPartial::new(window, BeatIndex::ZERO, body.clone());
        assert_eq!(round_trip(&record).into_body(), Some(body));
    }
}

/// Any type of a field, as JSON: also those that nest, repeat, and refer to the record itself.
fn any_type() -> impl Strategy<Value = Value> {
    let primitive = prop::sample::select(vec!["null", "boolean", "int", "long", "float", "double", "bytes", "string"]);
    let leaf = prop_oneof![
        6 => primitive.prop_map(|name| json!(name)),
        1 => Just(json!("backbeat.StatusClaim")),
        1 => "[a-z]{8}".prop_map(|name| json!({ "type": "enum", "name": name, "symbols": ["a", "b"] })),
        1 => ("[a-z]{8}", 0usize..1_000_000_000).prop_map(|(name, size)| json!({ "type": "fixed", "name": name, "size": size })),
        1 => Just(json!({ "type": "long", "logicalType": "timestamp-millis" })),
        1 => Just(json!({ "type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2 })),
    ];
    leaf.prop_recursive(6, 32, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|items| json!({ "type": "array", "items": items })),
            inner.clone().prop_map(|values| json!({ "type": "map", "values": values })),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            ("[a-z]{8}", inner).prop_map(|(name, field)| {
                json!({ "type": "record", "name": name, "fields": [{ "name": "f", "type": field }] })
            }),
        ]
    })
}

/// Returns true if values of the type are no larger than their bytes. Independent of the decoder's own check.
fn is_flat(schema: &Value) -> bool {
    const PRIMITIVE: [&str; 8] = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];
    match schema {
        Value::String(name) => PRIMITIVE.contains(&name.as_str()),
        Value::Array(variants) => variants.iter().all(is_flat),
        schema => schema["type"] == "enum",
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1_000, ..ProptestConfig::default() })]

    /// Whoever may write to the registry chooses the schema of claims, and whoever may write claims the bytes.
    #[test]
    fn schemas_that_nest_or_repeat_are_refused_and_no_other_makes_the_decoder_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_type()), 0..3),
        additions in prop::collection::vec(("[a-z]{9}", any_type()), 0..3),
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..8),
    ) {
        let mut schema: Value = serde_json::from_str(StatusClaim::schema().text()).expect("the schema is JSON");
        let fields = schema["fields"].as_array_mut().expect("a record has fields");
        for (index, changed) in changes {
            let field = index.index(fields.len());
            fields[field] = json!({ "name": fields[field]["name"], "type": changed });
        }
        fields.extend(additions.into_iter().map(|(name, added)| json!({ "name": name, "type": added })));
        let all_flat = fields.iter().all(|field| is_flat(&field["type"]));
        match WriterSchema::<StatusClaim>::parse_flat(&schema.to_string()) {
            Ok(schema) => {
                prop_assert!(all_flat);
                for body in bodies {
                    let _ = (schema.decode(&body), schema.decode_borrowed(&body));
                }
            }
            // Other flat schemas may be invalid, such as a union in a union.
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
