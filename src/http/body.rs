//! Receiving a request's body: one buffer, bounded in bytes, memory and time.
//!
//! Invariant: no more is read, or inflated, than may be, and what is held counts against the memory budget.

use std::error::Error as _;
use std::io::{ErrorKind, Read};
use std::pin::Pin;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::BodyExt;
use tokio::time::Sleep;

use super::error::ApiError;
use crate::inference::Reservation;
use crate::net::connection::DeclaredTooLarge;
use crate::wire::json::quote;

/// How far the buffer is grown on a client's word alone; beyond, only bytes that arrived make it grow. An image in JSON
/// fits. What is never written to takes addresses and no memory.
const TRUSTED_CAPACITY: usize = 4 << 20;

/// Bodies up to this size are copied: one that waits in the queue would hold all of the connection's buffer, of which
/// nobody counts more than the body.
const SMALL_BODY: usize = 4096;

/// Bytes that are inflated between two looks at the limits.
const INFLATE_STEP: usize = 64 << 10;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Not at all.
    Identity,
    /// gzip.
    Gzip,
    /// zlib, which HTTP calls deflate.
    Deflate,
}

/// A body that was compressed more than once.
fn several() -> ApiError {
    ApiError::UnsupportedMediaType(
        "several codings in Content-Encoding are not supported; send the body plain, or with one of gzip and deflate".to_owned(),
    )
}

impl Coding {
    /// The coding that `headers` state.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut codings = headers.get_all(CONTENT_ENCODING).iter();
        let Some(coding) = codings.next() else {
            return Ok(Self::Identity);
        };
        let coding = if codings.next().is_some() {
            None
        } else {
            coding.to_str().ok()
        };
        match coding
            .map(|text| text.trim().to_ascii_lowercase())
            .as_deref()
        {
            Some("identity" | "") => Ok(Self::Identity),
            Some("gzip" | "x-gzip") => Ok(Self::Gzip),
            Some("deflate") => Ok(Self::Deflate),
            Some(list) if list.contains(',') => Err(several()),
            None => Err(several()),
            Some(other) => Err(ApiError::UnsupportedMediaType(format!(
                "Content-Encoding '{}' is not supported; send the body plain, or as gzip or deflate",
                quote(other)
            ))),
        }
    }
}

/// Receives `body` until the timer `expired` ends, and at most `max_bytes` of it.
///
/// # Errors
/// When it is too large, too slow, broken off, or does not fit into the budget of `reservation`.
pub(super) async fn receive(
    body: Body,
    headers: &HeaderMap,
    max_bytes: usize,
    expired: Pin<&mut Sleep>,
    reservation: &mut Reservation,
) -> Result<Bytes, ApiError> {
    let declared = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if declared.is_some_and(|length| length > max_bytes as u64) {
        // Answered before the first byte is asked for, so `Expect: 100-continue` never invites it.
        return Err(ApiError::BodyTooLarge(max_bytes));
    }
    let declared = declared.and_then(|length| usize::try_from(length).ok());
    tokio::select! {
        biased;
        body = collect(body, declared, max_bytes, reservation) => body,
        () = expired => Err(ApiError::BodyTimeout),
    }
}

/// Why a body does not come to its end. Of a client that has reset the connection nothing is said: it is gone, and the
/// connection, which has seen it too, ends with all that it was about.
async fn broken(error: axum::Error, max_bytes: usize) -> ApiError {
    if let Some(source) = error.source()
        && source.is::<DeclaredTooLarge>()
    {
        return ApiError::BodyTooLarge(max_bytes);
    }
    match io_kind(&error) {
        Some(ErrorKind::ConnectionReset) => std::future::pending().await,
        Some(ErrorKind::InvalidInput | ErrorKind::InvalidData) => ApiError::Invalid(
            "the chunks of the request's body are not framed as RFC 9112 has it: expected a size in hexadecimal digits, as many bytes, and an end of line, again and again up to the size 0".to_owned(),
        ),
        _ => ApiError::Invalid("the request's body broke off".to_owned()),
    }
}

/// What kind of failure of reading caused `error`, if one did.
fn io_kind(error: &axum::Error) -> Option<ErrorKind> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

async fn collect(
    mut body: Body,
    declared: Option<usize>,
    max_bytes: usize,
    reservation: &mut Reservation,
) -> Result<Bytes, ApiError> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Err(broken(error, max_bytes).await),
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if buffer.len() + data.len() > max_bytes {
            return Err(ApiError::BodyTooLarge(max_bytes));
        }
        reservation.grow(data.len())?;
        if buffer.is_empty() && declared == Some(data.len()) {
            if data.len() <= SMALL_BODY {
                return Ok(Bytes::copy_from_slice(&data));
            }
            // A body of one piece is used where it lies.
            return Ok(data);
        }
        if buffer.capacity() == 0 {
            // One allocation for the whole body, and one that suits every element type of a raw tensor.
            buffer.reserve(
                declared
                    .unwrap_or(data.len())
                    .min(TRUSTED_CAPACITY)
                    .max(data.len()),
            );
        }
        buffer.extend_from_slice(&data);
    }
    Ok(buffer.freeze())
}

/// Inflates `body` to at most `max_bytes`.
///
/// # Errors
/// When it is not in the coding, inflates to more, or does not fit into the budget of `reservation`.
pub(super) fn inflate(
    body: Bytes,
    coding: Coding,
    max_bytes: usize,
    reservation: &mut Reservation,
) -> Result<Bytes, ApiError> {
    match coding {
        Coding::Identity => Ok(body),
        // Several members, one after the other, are one body, as RFC 1952 has it; the bounds are for all of them together.
        Coding::Gzip => grow(
            MultiGzDecoder::new(body.as_ref()),
            "gzip (RFC 1952)",
            max_bytes,
            reservation,
        ),
        Coding::Deflate => {
            if !has_zlib_header(&body) {
                return Err(ApiError::Invalid(
                    "the body is not in the coding deflate, which in HTTP is zlib's format (RFC 1950); raw deflate (RFC 1951) has no header and is not taken: send zlib, or gzip".to_owned(),
                ));
            }
            let mut stream = Zlib::new(&body);
            let inflated = grow(
                &mut stream,
                "deflate (zlib, RFC 1950)",
                max_bytes,
                reservation,
            )?;
            match stream.left() {
                0 => Ok(inflated),
                left => Err(ApiError::Invalid(format!(
                    "{left} bytes follow the end of the body's deflate stream"
                ))),
            }
        }
    }
}

/// Reads `decoder` to its end.
fn grow(
    mut decoder: impl Read,
    coding: &str,
    max_bytes: usize,
    reservation: &mut Reservation,
) -> Result<Bytes, ApiError> {
    let mut inflated = Vec::new();
    loop {
        let before = inflated.len();
        let step = decoder
            .by_ref()
            .take(INFLATE_STEP as u64)
            .read_to_end(&mut inflated);
        step.map_err(|error| {
            let what = match error.kind() {
                ErrorKind::UnexpectedEof => "is cut off, or other bytes follow its end",
                _ => "is damaged, or something else",
            };
            ApiError::Invalid(format!(
                "the body is to be {coding} by its Content-Encoding, but {what}"
            ))
        })?;
        if inflated.len() > max_bytes {
            return Err(ApiError::BodyTooLarge(max_bytes));
        }
        if inflated.len() == before {
            return Ok(inflated.into());
        }
        reservation.grow(inflated.len() - before)?;
    }
}

/// Whether `body` begins as a zlib stream does, by RFC 1950.
fn has_zlib_header(body: &[u8]) -> bool {
    match body {
        [method, flags, ..] => {
            method & 0x0f == 8 && (u16::from(*method) * 256 + u16::from(*flags)).is_multiple_of(31)
        }
        _ => false,
    }
}

/// A zlib stream in memory. `flate2`'s own reader takes the end of the bytes for the end of the stream, and says nothing of
/// bytes that follow.
struct Zlib<'a> {
    rest: &'a [u8],
    state: Decompress,
    ended: bool,
}

impl<'a> Zlib<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            state: Decompress::new(true),
            ended: false,
        }
    }

    /// The bytes after the end of the stream.
    fn left(&self) -> usize {
        self.rest.len()
    }
}

impl Read for Zlib<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.ended || out.is_empty() {
            return Ok(0);
        }
        loop {
            let (read, written) = (self.state.total_in(), self.state.total_out());
            let status = self
                .state
                .decompress(self.rest, out, FlushDecompress::None)?;
            let progress = |from: u64, to: u64| usize::try_from(to - from).unwrap_or(usize::MAX);
            let consumed = progress(read, self.state.total_in());
            let produced = progress(written, self.state.total_out());
            self.rest = self.rest.get(consumed..).unwrap_or_default();
            self.ended = status == Status::StreamEnd;
            if produced > 0 || self.ended {
                return Ok(produced);
            }
            if consumed == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::inference::MemoryBudget;
    use crate::service::error::ServeError;

    fn gzip(bytes: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap().into()
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = gzip(&vec![0; 10 << 20]);
        let budget = MemoryBudget::new(64 << 20);
        let error = inflate(
            bomb.clone(),
            Coding::Gzip,
            1 << 20,
            &mut budget.reservation(),
        )
        .unwrap_err();
        assert_eq!(error, ApiError::BodyTooLarge(1 << 20));
        let budget = MemoryBudget::new(1 << 20);
        let error = inflate(bomb, Coding::Gzip, 64 << 20, &mut budget.reservation()).unwrap_err();
        assert_eq!(error, ApiError::Serve(ServeError::RequestTooLarge));
        assert_eq!(budget.used(), 0);
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// The body, or the message.
    fn inflated(body: impl Into<Bytes>, coding: Coding) -> Result<Bytes, String> {
        inflate(body.into(), coding, 1 << 20, &mut Reservation::none())
            .map_err(|error| error.message())
    }

    #[test]
    fn a_compressed_body_is_complete_and_nothing_follows_it() {
        let text: Vec<u8> = (0..200_000_u32)
            .map(|number| number.to_le_bytes()[0])
            .collect();
        let (whole, packed) = (zlib(&text), gzip(&text));
        assert_eq!(inflated(whole.clone(), Coding::Deflate).unwrap(), text);
        assert_eq!(inflated(zlib(b""), Coding::Deflate).unwrap(), "");
        for cut in [2, 3, whole.len() / 2, whole.len() - 4, whole.len() - 1] {
            let told = inflated(whole[..cut].to_vec(), Coding::Deflate).unwrap_err();
            assert!(
                told.ends_with("but is cut off, or other bytes follow its end"),
                "{cut}: {told}"
            );
        }
        for cut in [1, 9, packed.len() / 2, packed.len() - 1] {
            let told = inflated(packed.slice(..cut), Coding::Gzip).unwrap_err();
            assert!(told.contains("but "), "{cut}: {told}");
        }
        let told = inflated([whole.as_slice(), b"more"].concat(), Coding::Deflate).unwrap_err();
        assert_eq!(told, "4 bytes follow the end of the body's deflate stream");
        for after in [b"more".as_slice(), &[0; 8], &[0x1f, 0x8b]] {
            let body = [&packed, after].concat();
            assert!(inflated(body, Coding::Gzip).is_err(), "{after:?}");
        }
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(inflated(damaged, Coding::Deflate).is_err());
    }

    #[test]
    fn several_gzip_members_are_one_body_within_the_same_bound() {
        let members = [&gzip(b"hel")[..], &gzip(b""), &gzip(b"lo")].concat();
        assert_eq!(inflated(members, Coding::Gzip).unwrap(), "hello");
        let half = gzip(&vec![0; 600 << 10]);
        assert!(inflated(half.clone(), Coding::Gzip).is_ok());
        let told = inflated([&half[..], &half].concat(), Coding::Gzip).unwrap_err();
        assert!(told.contains("larger than"), "{told}");
    }

    #[test]
    fn raw_deflate_is_refused_by_its_name() {
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"{\"inputs\": [[1, 2, 3, 4]]}").unwrap();
        let told = inflated(encoder.finish().unwrap(), Coding::Deflate).unwrap_err();
        assert!(told.contains("raw deflate (RFC 1951)"), "{told}");
        assert!(inflated(Bytes::new(), Coding::Deflate).is_err());
    }

    #[test]
    fn bodies_are_inflated_or_refused() {
        let mut reservation = Reservation::none();
        let mut inflate =
            |body: &Bytes, coding| inflate(body.clone(), coding, 100, &mut reservation);
        let packed = gzip(b"hello");
        assert_eq!(inflate(&packed, Coding::Gzip).unwrap(), "hello");
        assert!(inflate(&packed, Coding::Deflate).is_err());
        assert!(inflate(&packed.slice(..8), Coding::Gzip).is_err());
        assert_eq!(inflate(&packed, Coding::Identity).unwrap(), packed);
    }
}
