//! The records of a batch, read in place.

use bytes::Bytes;

use crate::record::varint::{take_i32, take_i64};
use crate::record::{BatchHeader, Error, RecordFault};
use crate::types::{Offset, Timestamp, TimestampType};

/// One record of a batch, borrowed from its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its offset in the partition.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Its key, `None` is the null key.
    pub key: Option<&'a [u8]>,
    /// Its value, `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// The headers of a record, in order; a name may repeat.
///
/// They were checked when the record was read, so iterating them cannot fail.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Headers<'a> {
    /// Takes `count` headers that must fill `bytes`.
    fn checked(bytes: &'a [u8], count: usize) -> Result<Self, RecordFault> {
        let mut rest = bytes;
        for _ in 0..count {
            take_header(&mut rest)?;
        }
        if rest.is_empty() { Ok(Self { bytes, count }) } else { Err(RecordFault::Length) }
    }

    /// Returns the number of headers.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the bytes that they take in their batch.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Iterates over name and value; a null value is `None`.
    pub fn iter(&self) -> HeaderIter<'a> {
        HeaderIter { bytes: self.bytes }
    }
}

impl<'a> IntoIterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);
    type IntoIter = HeaderIter<'a>;

    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

/// Iterates over the headers of a record.
#[derive(Debug, Clone)]
pub struct HeaderIter<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        take_header(&mut self.bytes).ok()
    }
}

/// The records of one batch, decompressed. Iterate with [`Records::iter`].
#[derive(Debug, Clone)]
pub struct Records {
    bytes: Bytes,
    count: u32,
    base_offset: Offset,
    last_offset_delta: u32,
    base_timestamp: Timestamp,
    append_time: Option<Timestamp>,
}

impl Records {
    pub(crate) fn new(bytes: Bytes, header: &BatchHeader) -> Self {
        let append_time = match header.attributes.timestamp_type {
            TimestampType::CreateTime => None,
            TimestampType::LogAppendTime => Some(header.max_timestamp),
        };
        Self {
            bytes,
            count: header.record_count,
            base_offset: header.base_offset,
            last_offset_delta: header.last_offset_delta,
            base_timestamp: header.base_timestamp,
            append_time,
        }
    }

    /// Returns the bytes of all records, uncompressed.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Iterates over the records in offset order. The first error is the last item.
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter { rest: &self.bytes, next_index: 0, next_delta: 0, batch: self }
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<Record<'a>, Error>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> RecordIter<'a> {
        self.iter()
    }
}

/// Iterates over the records of a batch.
#[derive(Debug, Clone)]
pub struct RecordIter<'a> {
    rest: &'a [u8],
    /// Position of the record that comes next; the batch's count when all came, or one failed.
    next_index: u32,
    /// Smallest offset delta that the next record may have.
    next_delta: u32,
    batch: &'a Records,
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, Error>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next_index == self.batch.count {
            return self.finish();
        }
        match self.decode() {
            Ok(record) => {
                self.next_index += 1;
                Some(Ok(record))
            }
            Err(fault) => Some(Err(self.fail(fault))),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // The count from the wire alone must not decide how much a caller allocates. One more
        // than the records that fit, for the error at the end.
        let left = self.batch.count.saturating_sub(self.next_index);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        (0, Some(left.min(self.rest.len() / RECORD_BYTES_MIN) + 1))
    }
}

impl std::iter::FusedIterator for RecordIter<'_> {}

/// Length, attributes, two deltas, null key, null value and no headers.
const RECORD_BYTES_MIN: usize = 7;

impl<'a> RecordIter<'a> {
    #[inline]
    fn decode(&mut self) -> Result<Record<'a>, RecordFault> {
        // length varint | attributes i8 | timestamp delta varlong | offset delta varint
        // | key length varint, -1 null | key | value length varint, -1 null | value
        // | header count varint | headers. The length counts the bytes after itself.
        let length = take_i32(&mut self.rest).ok_or(RecordFault::Number)?;
        let length = usize::try_from(length).map_err(|_| RecordFault::Number)?;
        let (body, rest) = self.rest.split_at_checked(length).ok_or(RecordFault::Truncated)?;
        self.rest = rest;
        // The attributes have no meaning yet and are skipped, as Kafka does.
        let (_, mut body) = body.split_first().ok_or(RecordFault::Length)?;
        let timestamp_delta = take_i64(&mut body).ok_or(RecordFault::Number)?;
        let offset_delta = take_i32(&mut body).ok_or(RecordFault::Number)?;
        let key = take_nullable(&mut body)?;
        let value = take_nullable(&mut body)?;
        let headers = match body {
            [0] => Headers::default(),
            _ => take_headers(body)?,
        };

        let delta = u32::try_from(offset_delta).map_err(|_| RecordFault::Offset)?;
        if delta < self.next_delta || delta > self.batch.last_offset_delta {
            return Err(RecordFault::Offset);
        }
        self.next_delta = delta + 1;
        let timestamp = match self.batch.append_time {
            Some(time) => time,
            // Wraps like the writer, so that any two timestamps may share a batch.
            None => Timestamp::from_millis(
                self.batch.base_timestamp.as_millis().wrapping_add(timestamp_delta),
            ),
        };
        let offset = self.batch.base_offset.saturating_add(u64::from(delta));
        Ok(Record { offset, timestamp, key, value, headers })
    }

    #[cold]
    fn finish(&mut self) -> Option<Result<Record<'a>, Error>> {
        if self.rest.is_empty() { None } else { Some(Err(self.fail(RecordFault::TrailingBytes))) }
    }

    #[cold]
    fn fail(&mut self, fault: RecordFault) -> Error {
        let index = self.next_index;
        self.next_index = self.batch.count;
        self.rest = &[];
        Error::Record { index, fault }
    }
}

#[inline]
fn take_nullable<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RecordFault> {
    let length = take_i32(bytes).ok_or(RecordFault::Number)?;
    let Ok(length) = usize::try_from(length) else {
        return if length == -1 { Ok(None) } else { Err(RecordFault::Number) };
    };
    let whole: &'a [u8] = bytes;
    let (taken, rest) = whole.split_at_checked(length).ok_or(RecordFault::Truncated)?;
    *bytes = rest;
    Ok(Some(taken))
}

fn take_headers(mut bytes: &[u8]) -> Result<Headers<'_>, RecordFault> {
    let count = take_i32(&mut bytes).ok_or(RecordFault::Number)?;
    let count = usize::try_from(count).map_err(|_| RecordFault::Number)?;
    Headers::checked(bytes, count)
}

fn take_header<'a>(bytes: &mut &'a [u8]) -> Result<(&'a str, Option<&'a [u8]>), RecordFault> {
    let name = take_nullable(bytes)?.ok_or(RecordFault::Number)?;
    let name = std::str::from_utf8(name).map_err(|_| RecordFault::HeaderName)?;
    Ok((name, take_nullable(bytes)?))
}
