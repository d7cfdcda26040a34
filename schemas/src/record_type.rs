//! The `type` field, which names a record's type in JSON.

/// Defines a unit type that serializes as `$text` and deserializes from any string: a record's type follows from its
/// schema, so the field is not checked.
macro_rules! record_type {
    ($name:ident, $text:literal) => {
        #[doc = concat!("The constant `", $text, "`.")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name;

        impl $name {
            pub(crate) const TEXT: &str = $text;
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(Self::TEXT)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct AnyText;
                impl serde::de::Visitor<'_> for AnyText {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<$name, E> {
                        Ok($name)
                    }
                }
                deserializer.deserialize_str(AnyText)
            }
        }
    };
}

record_type!(BeatFrameType, "backbeat.beatframe.v1");
record_type!(StatusClaimType, "backbeat.statusclaim.v1");
record_type!(BarReportType, "backbeat.barreport.v1");
record_type!(BarRosterType, "backbeat.barroster.v1");
