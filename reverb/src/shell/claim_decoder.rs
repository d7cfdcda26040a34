//! Decodes records of `statusclaims`.

use std::sync::Arc;

use backbeat_broker::{Lookup, SubjectSchemas};
use backbeat_schemas::{Header, InvalidClaim, MAX_CLAIM_BYTES, StatusClaim, WriterSchema, check_claim};

use crate::core::{Claim, DecodedClaim, RawRecord};

/// Decodes and validates records of `statusclaims`.
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
        match self.try_decode(key, value) {
            Ok(claim) => claim.map(DecodedClaim::Valid),
            Err(reason) => Some(DecodedClaim::Invalid(reason)),
        }
    }

    /// Decodes a record that was copied, like [`ClaimDecoder::decode`] the record itself.
    pub(crate) fn decode_raw<'r>(&mut self, raw: &'r RawRecord) -> Option<DecodedClaim<'r>> {
        match raw.cut_value {
            Some(cut) => Some(DecodedClaim::Invalid(InvalidClaim::Size(cut.bytes))),
            None => self.decode(raw.key.as_deref(), raw.value.as_deref()),
        }
    }

    fn try_decode<'r>(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&'r [u8]>,
    ) -> Result<Option<Claim<'r>>, InvalidClaim> {
        let value = value.ok_or(InvalidClaim::NoValue)?;
        if value.len() > MAX_CLAIM_BYTES {
            return Err(InvalidClaim::Size(value.len()));
        }
        let (header, body) = Header::split(value)?;
        let Some(schema) = self.schema(header.schema_id)? else {
            return Ok(None);
        };
        let claim = schema.decode_borrowed(body)?;
        check_claim(key, &claim)?;
        Ok(Some(claim.into()))
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
