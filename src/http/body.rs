//! Receiving a request's body: one buffer, bounded in bytes, memory and time.
//!
//! Invariant: no more is read, or inflated, than may be, and what is held counts against the memory budget.

use std::error::Error as _;
use std::io::Read;
use std::pin::Pin;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::BodyExt;
use tokio::time::Sleep;

use super::connection::DeclaredTooLarge;
use super::error::ApiError;
use super::wire::json::quote;
use crate::batching::Reservation;

/// How far the buffer is grown on a client's word alone; beyond, only bytes that arrived make it grow. An image in JSON
/// fits. What is never written to takes addresses and no memory.
const TRUSTED_CAPACITY: usize = 4 << 20;

/// Bodies up to this size are copied. What is held of the connection's buffer keeps it from being filled again, and
/// another one costs more than such a copy, which also suits every element type of a raw tensor.
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
            other => Err(ApiError::UnsupportedMediaType(format!(
                "Content-Encoding '{}' is not supported; send the body plain, or as gzip or deflate",
                quote(other.unwrap_or("(several)"))
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

/// Why a body does not come to its end.
fn broken(error: &axum::Error, max_bytes: usize) -> ApiError {
    match error.source() {
        Some(source) if source.is::<DeclaredTooLarge>() => ApiError::BodyTooLarge(max_bytes),
        _ => ApiError::Invalid("the request's body broke off".to_owned()),
    }
}

async fn collect(
    mut body: Body,
    declared: Option<usize>,
    max_bytes: usize,
    reservation: &mut Reservation,
) -> Result<Bytes, ApiError> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error, max_bytes))?;
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
    let mut decoder: Box<dyn Read> = match coding {
        Coding::Identity => return Ok(body),
        Coding::Gzip => Box::new(MultiGzDecoder::new(body.as_ref())),
        Coding::Deflate => Box::new(ZlibDecoder::new(body.as_ref())),
    };
    let mut inflated = Vec::new();
    loop {
        let before = inflated.len();
        let step = decoder
            .by_ref()
            .take(INFLATE_STEP as u64)
            .read_to_end(&mut inflated);
        step.map_err(|_| {
            ApiError::Invalid("the body is not what its Content-Encoding says".to_owned())
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::batching::MemoryBudget;

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
        assert_eq!(error, ApiError::MemoryTooLarge);
        assert_eq!(budget.used(), 0);
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
