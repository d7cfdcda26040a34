//! Avro bodies in the Confluent wire format: magic 0, schema id (4 bytes, big endian), body.

use std::marker::PhantomData;
use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest value that is decoded, in bytes: the largest record. The length of a string or of an array is a number in the
/// body, for which the Avro library allocates memory before it reads on.
const MAX_ALLOCATION_BYTES: usize = 2 * 1024 * 1024;
const MAX_FLAT_SCHEMA_BYTES: usize = 16 * 1024;
const MAX_FLAT_FIELDS: usize = 100;

/// A record type with an embedded Avro schema.
pub trait Record: Serialize + DeserializeOwned {
    /// Returns the schema that this program writes with. It is also the reader schema, into which records of other writer
    /// schemas are resolved.
    fn schema() -> &'static RecordSchema;

    /// Appends the record's Avro body, in the schema that this program writes with, to `body`.
    fn encode(&self, body: &mut Vec<u8>) {
        Self::schema().encode(self, body);
    }
}

/// An embedded schema: its text, and a reader and a writer that are built once.
pub struct RecordSchema {
    text: &'static str,
    schema: &'static Schema,
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

impl RecordSchema {
    pub(crate) fn new(text: &'static str, schema: &'static LazyLock<Schema>) -> Self {
        let schema: &'static Schema = schema;
        // It is the process's limit, and stays what it is set to first.
        apache_avro::util::max_allocation_bytes(MAX_ALLOCATION_BYTES);
        Self {
            text,
            schema,
            reader: GenericDatumReader::builder(schema).build().expect("an embedded schema resolves"),
            writer: GenericDatumWriter::builder(schema).build().expect("an embedded schema resolves"),
        }
    }

    /// Returns the schema's JSON text, which is registered with the schema registry.
    pub fn text(&self) -> &'static str {
        self.text
    }

    fn name(&self) -> String {
        full_name(self.schema)
    }

    /// Appends the Avro body of `record` to `body`, by the Avro library.
    ///
    /// Every record type matches its embedded schema: a failure to encode would be a bug of this crate, which its
    /// round-trip tests would show.
    pub(crate) fn encode(&self, record: &impl Serialize, body: &mut Vec<u8>) {
        self.writer.write_ser(body, record).expect("a record type matches its embedded schema");
    }
}

fn full_name(schema: &Schema) -> String {
    schema.name().map_or_else(|| "not a named type".to_owned(), |name| name.fullname(None).clone())
}

/// Embeds the schema file, and on first use parses it and builds its reader and writer.
macro_rules! record_schema {
    ($file:literal) => {{
        use std::sync::LazyLock;
        static SCHEMA: LazyLock<apache_avro::Schema> =
            LazyLock::new(|| apache_avro::Schema::parse_str(include_str!($file)).expect("an embedded schema parses"));
        static RECORD: LazyLock<$crate::RecordSchema> =
            LazyLock::new(|| $crate::RecordSchema::new(include_str!($file), &SCHEMA));
        &RECORD
    }};
}
pub(crate) use record_schema;

/// The writer schema of records: the schema that they were written with.
///
/// A writer schema that differs from the reader schema, [`Record::schema`], costs a schema resolution for each record.
pub struct WriterSchema<R> {
    /// The writer schema, if it differs from the reader schema.
    to_resolve: Option<Schema>,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> WriterSchema<R> {
    /// Returns the writer schema of this program's own records, which equals the reader schema.
    pub fn own() -> Self {
        Self { to_resolve: None, record: PhantomData }
    }

    /// Parses a schema's JSON text; it must describe a record with `R`'s full name.
    pub fn parse(text: &str) -> Result<Self, DecodeError> {
        let schema = Schema::parse_str(text).map_err(|error| DecodeError::Schema(error.to_string()))?;
        let reader = R::schema();
        if full_name(&schema) != reader.name() {
            return Err(DecodeError::OtherRecord { found: full_name(&schema), expected: reader.name() });
        }
        Ok(Self { to_resolve: (&schema != reader.schema).then_some(schema), record: PhantomData })
    }

    /// Parses a schema's JSON text like [`WriterSchema::parse`], and refuses whatever makes records cost more than their bytes:
    /// nested, repeated and recursive types. For records that anybody may write.
    pub fn parse_flat(text: &str) -> Result<Self, DecodeError> {
        if text.len() > MAX_FLAT_SCHEMA_BYTES {
            let bytes = text.len();
            return Err(DecodeError::Schema(format!(
                "it has {bytes} bytes, at most {MAX_FLAT_SCHEMA_BYTES} are allowed"
            )));
        }
        let parsed = Self::parse(text)?;
        if let Some(Schema::Record(record)) = &parsed.to_resolve {
            if record.fields.len() > MAX_FLAT_FIELDS {
                let fields = record.fields.len();
                return Err(DecodeError::Schema(format!(
                    "it has {fields} fields, at most {MAX_FLAT_FIELDS} are allowed"
                )));
            }
            if let Some(field) = record.fields.iter().find(|field| !is_flat(&field.schema)) {
                return Err(DecodeError::NotFlat { field: field.name.clone() });
            }
        }
        Ok(parsed)
    }

    /// Returns true if the writer schema equals the reader schema.
    pub(crate) fn equals_reader_schema(&self) -> bool {
        self.to_resolve.is_none()
    }

    /// Decodes the record in `body` and resolves it into the reader schema.
    pub fn decode(&self, body: &[u8]) -> Result<R, DecodeError> {
        let mut rest = body;
        let record = match &self.to_resolve {
            None => R::schema().reader.read_deser(&mut rest),
            Some(writer) => GenericDatumReader::builder(writer)
                .reader_schema(R::schema().schema)
                .build()
                .and_then(|reader| reader.read_value(&mut rest))
                .and_then(|value| apache_avro::from_value(&value)),
        }
        .map_err(|error| DecodeError::Body(error.to_string()))?;
        if rest.is_empty() { Ok(record) } else { Err(DecodeError::LeftOver { bytes: rest.len() }) }
    }
}

/// Returns true if values of `schema` take no more memory than a constant and their bytes.
fn is_flat(schema: &Schema) -> bool {
    match schema {
        Schema::Null
        | Schema::Boolean
        | Schema::Int
        | Schema::Long
        | Schema::Float
        | Schema::Double
        | Schema::Bytes
        | Schema::String
        | Schema::Enum(_) => true,
        Schema::Union(union) => union.variants().iter().all(is_flat),
        // Logical types, too: no field of ours has one.
        _ => false,
    }
}

/// An error of decoding an Avro body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The text of the writer's schema is not an Avro schema.
    #[error("the writer's schema does not parse: {0}")]
    Schema(String),
    /// The writer's schema nests or repeats types, although anybody may write such records.
    #[error(
        "field {field} of the writer's schema is nested or repeated; allowed are null, boolean, numbers, strings, bytes, \
         enums and unions of these"
    )]
    NotFlat {
        /// The field's name.
        field: String,
    },
    /// The writer's schema describes another record.
    #[error("the writer's schema is of {found}, expected {expected}")]
    OtherRecord {
        /// The full name of the writer's schema.
        found: String,
        /// The full name of the expected record.
        expected: String,
    },
    /// The body is not a valid datum of the writer's schema.
    #[error("the body does not decode: {0}")]
    Body(String),
    /// Bytes follow the record.
    #[error("{bytes} bytes are left over after the record")]
    LeftOver {
        /// The number of bytes left over.
        bytes: usize,
    },
}

/// The header of the Confluent wire format: the five bytes before every body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The writer schema's id in the schema registry.
    pub schema_id: u32,
}

/// An error of parsing the Confluent wire format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The value has fewer than five bytes.
    #[error("{0} bytes are too few for the wire format: magic 0, schema id, body")]
    TooShort(usize),
    /// The first byte is not 0.
    #[error("magic byte is {0}, expected 0")]
    Magic(u8),
}

impl Header {
    /// Splits `value` into its header and its body.
    pub fn split(value: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        match value {
            [0, a, b, c, d, body @ ..] => Ok((Self { schema_id: u32::from_be_bytes([*a, *b, *c, *d]) }, body)),
            [magic, _, _, _, _, ..] => Err(HeaderError::Magic(*magic)),
            _ => Err(HeaderError::TooShort(value.len())),
        }
    }
}

/// Encodes `record` in the Confluent wire format. `schema_id` is the registry's id of `R`'s embedded schema.
pub fn wire<R: Record>(schema_id: u32, record: &R) -> Vec<u8> {
    let mut value = Vec::with_capacity(256);
    value.push(0);
    value.extend(schema_id.to_be_bytes());
    record.encode(&mut value);
    value
}
