//! Flags whose value is a beat.

use backbeat_schemas::BeatIndex;
use clap::builder::TypedValueParser;

/// Returns the parser of a beat index.
pub(crate) fn beat_parser() -> impl TypedValueParser<Value = BeatIndex> {
    clap::value_parser!(i64).range(0..).try_map(BeatIndex::try_from)
}
