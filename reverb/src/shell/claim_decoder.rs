//! Finds the schemas of records of `statusclaims`, and lets the core decode them.

use std::sync::Arc;

use backbeat_broker::{Lookup, SubjectSchemas};
use backbeat_schemas::{Header, InvalidClaim, StatusClaim, WriterSchema};

use crate::core::{DecodedClaim, RawRecord};

/// Decodes records of `statusclaims`.
pub(crate) struct ClaimDecoder {
    schemas: SubjectSchemas<StatusClaim>,
    /// The schema of the last claim, because the next claim nearly always has the same.
    last: Option<(u32, Arc<WriterSchema<StatusClaim>>)>,
}

impl ClaimDecoder {
    pub(crate) fn new(schemas: SubjectSchemas<StatusClaim>) -> Self {
        Self { schemas, last: None }
    }

    /// Decodes one record. Returns `None` while its schema is being fetched.
    pub(crate) fn decode<'r>(&mut self, key: Option<&[u8]>, value: Option<&'r [u8]>) -> Option<DecodedClaim<'r>> {
        DecodedClaim::decode(key, value, |id| self.schema(id))
    }

    /// Decodes a record that was copied, like [`ClaimDecoder::decode`] the record itself.
    pub(crate) fn decode_raw<'r>(&mut self, raw: &'r RawRecord) -> Option<DecodedClaim<'r>> {
        match raw.cut_value {
            Some(cut) => Some(DecodedClaim::Invalid(InvalidClaim::Size(cut.bytes))),
            None => self.decode(raw.key.as_deref(), raw.value.as_deref()),
        }
    }

    /// Returns all fields of a record whose schema is known; `None` if it cannot be decoded.
    pub(crate) fn claim(&mut self, raw: &RawRecord) -> Option<StatusClaim> {
        let (header, body) = Header::split(raw.value.as_deref()?).ok()?;
        self.schema(header.schema_id).ok()??.decode(body).ok()
    }

    fn schema(&mut self, id: u32) -> Result<Option<&WriterSchema<StatusClaim>>, InvalidClaim> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != id) {
            match self.schemas.lookup(id) {
                Lookup::Known(schema) => self.last = Some((id, schema)),
                Lookup::Incompatible(error) => return Err(error.into()),
                Lookup::Unknown => return Err(InvalidClaim::UnknownSchema(id)),
                Lookup::Pending => return Ok(None),
            }
        }
        Ok(self.last.as_ref().map(|(_, schema)| &**schema))
    }
}
