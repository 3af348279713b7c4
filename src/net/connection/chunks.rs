//! What a chunked body declares, read beside hyper, which hands out data and keeps the sizes of chunks to itself.
//!
//! A chunk may declare more bytes than a body may have, and then send them slowly or never. Invariant: nothing is kept of
//! what is read; whatever is not understood is left to hyper, which refuses it.

use memchr::memchr;

/// Finds the chunked bodies among the bytes of a connection.
pub(super) struct ChunkWatch {
    max_body: u64,
    head: Head,
    chunks: Option<Chunks>,
}

impl ChunkWatch {
    pub(super) fn new(max_body: u64) -> Self {
        Self {
            max_body,
            head: Head::default(),
            chunks: None,
        }
    }

    /// Reads bytes of a head, `first` if they are its first ones, and of what follows it. Whether a body declares to be
    /// too large.
    pub(super) fn in_head(&mut self, bytes: &[u8], first: bool) -> bool {
        if first {
            self.head = Head::default();
            self.chunks = None;
        }
        let Some(end) = self.head.end(bytes) else {
            // What stands on both sides of a break is not looked at: it may be chunked.
            self.head.may_be_chunked = true;
            return false;
        };
        let (head, body) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
        if !self.head.may_be_chunked && !names_chunked(head) {
            return false;
        }
        self.chunks = Some(Chunks::new(self.max_body));
        self.in_body(body)
    }

    /// Reads bytes that follow the head. Whether the body declares to be too large.
    pub(super) fn in_body(&mut self, bytes: &[u8]) -> bool {
        let Some(chunks) = &mut self.chunks else {
            return false;
        };
        let too_large = chunks.read(bytes) == Declared::TooMuch;
        if too_large || matches!(chunks.position, In::Unknown) {
            self.chunks = None;
        }
        too_large
    }
}

/// Whether a head may be that of a chunked body. The header itself is hyper's to read.
fn names_chunked(head: &[u8]) -> bool {
    let name = b"chunked";
    let mut rest = head;
    while let Some(at) = memchr::memchr2(b'k', b'K', rest) {
        let word = at
            .checked_sub(4)
            .and_then(|start| rest.get(start..start + name.len()));
        if word.is_some_and(|word| word.eq_ignore_ascii_case(name)) {
            return true;
        }
        // The next one is no nearer than this.
        rest = rest.get(at + 1..).unwrap_or_default();
    }
    false
}

/// The search for the empty line that ends a head.
#[derive(Default)]
struct Head {
    /// Bytes of the line so far, without its end.
    line: usize,
    /// Whether there was a line that is not empty: hyper skips those before the first one.
    begun: bool,
    may_be_chunked: bool,
}

impl Head {
    /// Where the head ends in `bytes`, the next ones of it.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut start = 0;
        loop {
            let rest = bytes.get(start..)?;
            let Some(length) = memchr(b'\n', rest) else {
                self.line += rest.iter().filter(|byte| **byte != b'\r').count();
                return None;
            };
            let content = rest.get(..length)?;
            let empty = self.line == 0 && matches!(content, [] | [b'\r']);
            self.line = 0;
            start += length + 1;
            if empty && self.begun {
                return Some(start);
            }
            self.begun |= !empty;
        }
    }
}

/// What a piece of a body says of its size.
#[derive(Debug, PartialEq, Eq)]
enum Declared {
    Enough,
    TooMuch,
}

/// The place in a chunked body.
#[derive(Debug)]
enum In {
    /// The hexadecimal size of a chunk, so far.
    Size(u64),
    /// What follows it in its line.
    Extension(u64),
    /// Data of a chunk, so many bytes of which are to come, and the end of its line.
    Data(u64),
    /// Behind the last chunk, or in what is no chunk.
    Unknown,
}

/// The sizes of a body's chunks.
struct Chunks {
    /// The bytes that the body may still declare.
    left: u64,
    position: In,
}

impl Chunks {
    fn new(max_body: u64) -> Self {
        Self {
            left: max_body,
            position: In::Size(0),
        }
    }

    fn read(&mut self, mut bytes: &[u8]) -> Declared {
        while let Some((&byte, rest)) = bytes.split_first() {
            let mut next = rest;
            self.position = match self.position {
                In::Size(size) => match (byte as char).to_digit(16) {
                    Some(digit) => In::Size(size.saturating_mul(16).saturating_add(digit.into())),
                    None if byte == b'\n' => self.line_ends(size),
                    None => In::Extension(size),
                },
                In::Extension(size) if byte == b'\n' => self.line_ends(size),
                In::Extension(size) => In::Extension(size),
                // The data, and CR and LF behind it.
                In::Data(to_come) => {
                    let here = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(to_come);
                    let skipped = usize::try_from(here).unwrap_or(usize::MAX);
                    next = bytes.get(skipped..).unwrap_or_default();
                    match to_come - here {
                        0 => In::Size(0),
                        to_come => In::Data(to_come),
                    }
                }
                In::Unknown => return Declared::Enough,
            };
            if let In::Size(size) | In::Extension(size) = self.position
                && size > self.left
            {
                return Declared::TooMuch;
            }
            bytes = next;
        }
        Declared::Enough
    }

    fn line_ends(&mut self, size: u64) -> In {
        self.left = self.left.saturating_sub(size);
        match size {
            0 => In::Unknown,
            size => In::Data(size.saturating_add(2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";

    /// Whether a body is found too large for 100 bytes that arrives in these pieces: the first one with the head.
    fn too_large(body: &[&str]) -> bool {
        let mut watch = ChunkWatch::new(100);
        let (first, others) = body.split_first().unwrap();
        let mut found = watch.in_head(&[HEAD, first.as_bytes()].concat(), true);
        for piece in others {
            found |= watch.in_body(piece.as_bytes());
        }
        found
    }

    #[test]
    fn a_body_is_too_large_as_soon_as_a_size_says_so() {
        let data = "x".repeat(96);
        let most = format!("60\r\n{data}\r\n");
        for body in [
            &["65"][..],
            &["", "6", "5"],
            &["ffffffff\r\n"],
            &["100000000;name=value\r\n"],
            &["ffffffffffffffffffffffffffffffff"],
            &[&most, "5\r\n"],
            &[&most, "4\r\n1234\r\n1"],
            &["60\r\n", &data, "\r", "\n5\r\n"],
            &["000065\n"],
        ] {
            assert!(too_large(body), "{body:?}");
        }
    }

    #[test]
    fn whatever_fits_or_is_no_chunk_passes() {
        let data = "x".repeat(100);
        let whole = format!("64\r\n{data}\r\n0\r\n\r\n");
        for body in [
            &[""][..],
            &["64\r\n"],
            &[&whole],
            &[&whole, "GET /ffffffff HTTP/1.1\r\n"],
            &[
                "32\r\n",
                &data[..50],
                "\r\n32\r\n",
                &data[..50],
                "\r\n0\r\n\r\n",
            ],
            &["5\r\nfffff\r\n3\r\nfff\r\n"],
            &["0\r\nffffffff: ffffffff\r\n\r\n"],
            &["-1\r\nx"],
            &["+5\r\nx"],
            &["\r\nffffff"],
        ] {
            assert!(!too_large(body), "{body:?}");
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_it_is_cut() {
        let request = [HEAD, b"65\r\n"].concat();
        for cut in 1..request.len() - 2 {
            let mut watch = ChunkWatch::new(100);
            let (first, second) = request.split_at(cut);
            let found = watch.in_head(first, true)
                || if cut < HEAD.len() {
                    watch.in_head(second, false)
                } else {
                    watch.in_body(second)
                };
            assert!(found, "{cut}");
        }
        let mut watch = ChunkWatch::new(100);
        assert!(watch.in_head(b"\r\n\nGET / HTTP/1.1\nx: chunked\n\n65\n", true));
    }

    #[test]
    fn other_bodies_are_not_looked_at() {
        let mut watch = ChunkWatch::new(100);
        for head in [
            "Content-Length: 9",
            "Connection: keep-alive",
            "X: k, chunke, hunked",
        ] {
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\nffffffff\r\n");
            assert!(!watch.in_head(request.as_bytes(), true), "{head}");
            assert!(!watch.in_body(b"ffffffff\r\n"));
        }
    }
}
