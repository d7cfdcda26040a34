//! The records and their types as the HTTP APIs show them, for the services' OpenAPI descriptions: derived from the Avro
//! schemas, so that a field and its documentation are written once.

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::{
    BarReport, BarRoster, BeatFrame, BeatIndex, Record, RosterEntry, RosterKind, StatusClaim, Tempo, Timestamp,
    Verdict, WindowId,
};

fn schema(json: Value) -> RefOr<Schema> {
    RefOr::T(serde_json::from_value(json).expect("what is built here is a JSON schema"))
}

fn record<R: Record>() -> RefOr<Schema> {
    let avro = serde_json::from_str(R::schema().text()).expect("an Avro schema is JSON");
    schema(json_schema(&avro))
}

/// The items of the first list of a roster.
fn roster_entry() -> RefOr<Schema> {
    let avro: Value = serde_json::from_str(BarRoster::schema().text()).expect("an Avro schema is JSON");
    let lists = avro["fields"].as_array().into_iter().flatten().map(|field| &field["type"]["items"]);
    schema(json_schema(lists.into_iter().find(|items| items.is_object()).expect("a roster has lists of entries")))
}

/// Translates those Avro types that the records shown over HTTP use.
fn json_schema(avro: &Value) -> Value {
    // A union of null and another type.
    if let Some([_, present]) = avro.as_array().map(Vec::as_slice) {
        return json!({ "oneOf": [{ "type": "null" }, json_schema(present)] });
    }
    match avro.as_str().or_else(|| avro["logicalType"].as_str()).or_else(|| avro["type"].as_str()) {
        Some("record") => {
            let fields = avro["fields"].as_array().map_or(&[][..], Vec::as_slice);
            let names: Vec<&Value> = fields.iter().map(|field| &field["name"]).collect();
            let property = |field: &Value| {
                let mut property = json_schema(&field["type"]);
                if let Value::String(doc) = &field["doc"] {
                    property["description"] = doc.as_str().into();
                }
                (field["name"].as_str().unwrap_or_default().to_owned(), property)
            };
            let properties: Map<String, Value> = fields.iter().map(property).collect();
            json!({ "type": "object", "description": avro["doc"], "properties": properties, "required": names })
        }
        Some("array") => json!({ "type": "array", "items": json_schema(&avro["items"]) }),
        Some("enum") => json!({ "type": "string", "enum": avro["symbols"] }),
        Some("timestamp-millis") => json!({ "type": "string", "format": "date-time" }),
        Some("int") => json!({ "type": "integer", "format": "int32" }),
        Some("long") => json!({ "type": "integer", "format": "int64" }),
        Some("double") => json!({ "type": "number", "format": "double" }),
        Some(same @ ("string" | "boolean")) => json!({ "type": same }),
        other => unreachable!("{other:?} has no translation to JSON Schema yet"),
    }
}

/// Implements `ToSchema` by an expression.
macro_rules! to_schema {
    ($($type:ty: $schema:expr),+ $(,)?) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $schema
            }
        }
        impl ToSchema for $type {}
    )+};
}

to_schema! {
    BarReport: record::<Self>(),
    BeatFrame: record::<Self>(),
    BeatIndex: schema(json!({ "type": "integer", "format": "int64", "minimum": 0, "description": "A beat, from 0." })),
    RosterEntry: roster_entry(),
    RosterKind: schema(json!({ "type": "string", "enum": RosterKind::ALL.map(RosterKind::as_str),
        "description": "A reason to be on a roster." })),
    StatusClaim: record::<Self>(),
    Tempo: schema(json!({ "type": "number", "format": "double", "exclusiveMinimum": 0, "description": "Beats per minute." })),
    Timestamp: schema(json!({ "type": "string", "format": "date-time" })),
    Verdict: schema(json!({ "type": "string", "enum": ["written", "rewritten", "verified", "dropped", "skipped"],
        "description": "The outcome of a window." })),
    WindowId: schema(json!({ "type": "string", "pattern": "^[0-9a-f]{32}$" })),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_has_the_avro_schemas_fields_and_docs() {
        let report = serde_json::to_value(<BarReport as PartialSchema>::schema()).expect("a schema serializes as JSON");
        assert_eq!(report["properties"]["tasks_failed"]["type"], "integer");
        assert_eq!(report["properties"]["closed_at"]["format"], "date-time");
        assert_eq!(report["properties"]["to_beat"]["description"], "Inclusive.");
        let required = report["required"].as_array().expect("a list").len();
        assert_eq!(required, report["properties"].as_object().expect("an object").len());
    }
}
