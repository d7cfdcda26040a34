//! Avro bodies in the Confluent wire format: magic 0, schema id (4 bytes, big endian), body.

use std::marker::PhantomData;
use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A record with a schema of ours.
pub trait Record: Serialize + DeserializeOwned {
    /// The schema that this program writes, and into which it resolves what others wrote.
    fn schema() -> &'static RecordSchema;
}

/// One of our schemas, with its text and a reader and a writer made once.
pub struct RecordSchema {
    text: &'static str,
    schema: &'static Schema,
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

impl RecordSchema {
    pub(crate) fn new(text: &'static str, schema: &'static LazyLock<Schema>) -> Self {
        let schema: &'static Schema = schema;
        Self {
            text,
            schema,
            reader: GenericDatumReader::builder(schema).build().expect("our schema resolves"),
            writer: GenericDatumWriter::builder(schema).build().expect("our schema resolves"),
        }
    }

    /// The schema as the registry gets it.
    pub fn text(&self) -> &'static str {
        self.text
    }

    fn name(&self) -> String {
        full_name(self.schema)
    }
}

fn full_name(schema: &Schema) -> String {
    schema.name().map_or_else(|| "not a named type".to_owned(), |name| name.fullname(None).clone())
}

/// Parses the schema file once and gives it a reader and a writer.
macro_rules! record_schema {
    ($file:literal) => {{
        use std::sync::LazyLock;
        static SCHEMA: LazyLock<apache_avro::Schema> =
            LazyLock::new(|| apache_avro::Schema::parse_str(include_str!($file)).expect("our schema parses"));
        static RECORD: LazyLock<$crate::RecordSchema> =
            LazyLock::new(|| $crate::RecordSchema::new(include_str!($file), &SCHEMA));
        &RECORD
    }};
}
pub(crate) use record_schema;

/// The schema that a record was written with.
///
/// A foreign schema costs a resolution for each record; our own does not.
pub struct WriterSchema<R> {
    foreign: Option<Schema>,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> WriterSchema<R> {
    /// Our own schema.
    pub fn ours() -> Self {
        Self { foreign: None, record: PhantomData }
    }

    /// The schema of the registry's `text`, which must be of a record with `R`'s name.
    pub fn parse(text: &str) -> Result<Self, DecodeError> {
        let schema = Schema::parse_str(text).map_err(|error| DecodeError::Schema(error.to_string()))?;
        let ours = R::schema();
        if full_name(&schema) != ours.name() {
            return Err(DecodeError::OtherRecord { found: full_name(&schema), expected: ours.name() });
        }
        Ok(Self { foreign: (&schema != ours.schema).then_some(schema), record: PhantomData })
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.foreign.is_none()
    }

    /// The record in `body`, resolved into our schema.
    pub fn decode(&self, body: &[u8]) -> Result<R, DecodeError> {
        let mut rest = body;
        let record = match &self.foreign {
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

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The registry's text is not an Avro schema.
    #[error("the writer's schema does not parse: {0}")]
    Schema(String),
    /// The schema is of another record.
    #[error("the writer's schema is of {found}, expected {expected}")]
    OtherRecord {
        /// Its full name.
        found: String,
        /// The full name that it should have.
        expected: String,
    },
    /// The bytes are not a record of the writer's schema.
    #[error("the body does not decode: {0}")]
    Body(String),
    /// The record ends before its bytes do.
    #[error("{bytes} bytes are left over after the record")]
    LeftOver {
        /// How many.
        bytes: usize,
    },
}

/// The five bytes before every body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The registry's id of the writer's schema.
    pub schema_id: u32,
}

/// A value that is not in the Confluent wire format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than five bytes.
    #[error("{0} bytes are too few for the wire format: magic 0, schema id, body")]
    TooShort(usize),
    /// Another first byte than 0.
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

/// `record` in the wire format, written with our schema under the registry's `schema_id`.
///
/// Our own types always fit our own schemas: a failure here is a defect of this crate, shown by its
/// round-trip tests.
pub fn wire<R: Record>(schema_id: u32, record: &R) -> Vec<u8> {
    let mut value = Vec::with_capacity(256);
    value.push(0);
    value.extend(schema_id.to_be_bytes());
    R::schema().writer.write_ser(&mut value, record).expect("our types fit our schemas");
    value
}
