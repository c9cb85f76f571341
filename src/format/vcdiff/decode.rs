//! A window back into the bytes that it stands for.

use super::{
    Action, Cache, HAS_ADLER, HAS_APPLICATION_HEADER, HAS_SOURCE, Half, MAGIC, MODES, NEAR, adler32, meaning,
};
use crate::error::{Error, Kind, Result, ensure};

/// Decodes the one window of `delta`, which must make `length` bytes of `source`.
///
/// Memory is bounded by `length`, time by `length` and the length of `delta`, whatever the bytes say.
///
/// # Errors
/// `Kind::Damaged`; `Kind::Unsupported` for a secondary compression, another code table or a target window.
pub fn decode(delta: &[u8], source: &[u8], length: usize) -> Result<Vec<u8>> {
    let mut input = Input(delta);
    header(&mut input)?;
    let indicator = input.byte("the indicator of a window")?;
    if indicator & !(HAS_SOURCE | HAS_ADLER) != 0 {
        return Err(unsupported(format!("VCDIFF window has indicator {indicator:#04x}")));
    }
    let mut segment: &[u8] = &[];
    if indicator & HAS_SOURCE != 0 {
        let (len, start) = (input.number("a length")?, input.number("a position")?);
        segment = start.checked_add(len).and_then(|end| source.get(start..end)).ok_or_else(|| {
            Error::damaged(format!("VCDIFF window copies {len} bytes at {start} of {}", source.len()))
        })?;
    }
    let (whole, before) = (input.number("a length")?, input.0.len());
    ensure(whole == before, || format!("VCDIFF window has {before} bytes, expected {whole}"))?;
    let makes = input.number("a length")?;
    ensure(makes == length, || format!("VCDIFF window makes {makes} bytes, expected {length}"))?;
    let compressed = input.byte("the indicator of the sections")?;
    if compressed != 0 {
        return Err(unsupported(format!("VCDIFF sections are compressed ({compressed:#04x})")));
    }
    let (data, code, addresses) =
        (input.number("a length")?, input.number("a length")?, input.number("a length")?);
    let sum = match indicator & HAS_ADLER {
        0 => None,
        _ => Some(input.take(4, "a sum")?.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte))),
    };
    let data = Input(input.take(data, "data")?);
    let mut code = Input(input.take(code, "instructions")?);
    let addresses = Input(input.take(addresses, "addresses")?);
    let after = input.0.len();
    ensure(after == 0, || format!("{after} bytes follow the sections of a VCDIFF window"))?;
    let (cache, out) = (Cache::new(), Vec::with_capacity(length));
    let mut window = Window { segment, length, data, addresses, cache, out };
    window.run(&mut code)?;
    match sum {
        Some(sum) if sum != adler32(&window.out) => {
            let found = adler32(&window.out);
            Err(Error::damaged(format!("VCDIFF window has Adler-32 {found:08x}, expected {sum:08x}")))
        }
        _ => Ok(window.out),
    }
}

fn header(input: &mut Input<'_>) -> Result<()> {
    let magic = input.take(MAGIC.len(), "the magic")?;
    ensure(magic == MAGIC.as_slice(), || {
        format!("not a VCDIFF: magic is {}, expected {}", hex::encode(magic), hex::encode(MAGIC))
    })?;
    let indicator = input.byte("the indicator of the header")?;
    if indicator & !HAS_APPLICATION_HEADER != 0 {
        return Err(unsupported(format!("VCDIFF header has indicator {indicator:#04x}")));
    }
    if indicator & HAS_APPLICATION_HEADER != 0 {
        let length = input.number("a length")?;
        input.take(length, "an application header")?;
    }
    Ok(())
}

struct Window<'a> {
    segment: &'a [u8],
    length: usize,
    data: Input<'a>,
    addresses: Input<'a>,
    cache: Cache,
    out: Vec<u8>,
}

impl Window<'_> {
    fn run(&mut self, code: &mut Input<'_>) -> Result<()> {
        while let [number, rest @ ..] = code.0 {
            code.0 = rest;
            let (first, second) = meaning(*number);
            self.half(first, code)?;
            if let Some(second) = second {
                self.half(second, code)?;
            }
        }
        let left = self.data.0.len().saturating_add(self.addresses.0.len());
        ensure(self.out.len() == self.length && left == 0, || {
            let made = self.out.len();
            format!("VCDIFF window makes {made} bytes of {}, {left} bytes of it left over", self.length)
        })
    }

    fn half(&mut self, half: Half, code: &mut Input<'_>) -> Result<()> {
        let size = match half.size {
            0 => code.number("a size")?,
            size => usize::from(size),
        };
        let room = self.length.saturating_sub(self.out.len());
        ensure(size <= room, || format!("VCDIFF instruction makes {size} bytes where {room} are left"))?;
        match half.action {
            Action::Add => self.out.extend_from_slice(self.data.take(size, "data to add")?),
            Action::Run => {
                let byte = self.data.byte("the byte of a run")?;
                self.out.resize(self.out.len().saturating_add(size), byte);
            }
            Action::Copy { mode } => {
                let from = self.address(mode)?;
                self.copy(from, size);
            }
        }
        Ok(())
    }

    fn address(&mut self, mode: u8) -> Result<usize> {
        let here = self.segment.len().saturating_add(self.out.len());
        let kind = usize::from(mode);
        let address = match kind {
            0 => Some(self.addresses.number("an address")?),
            1 => here.checked_sub(self.addresses.number("an address")?),
            2..6 => {
                let near = self.cache.near.get(kind.saturating_sub(2)).copied().unwrap_or(0);
                near.checked_add(self.addresses.number("an address")?)
            }
            _ => {
                let row = kind.saturating_sub(NEAR.saturating_add(2)).saturating_mul(256);
                let slot = row.saturating_add(usize::from(self.addresses.byte("an address")?));
                self.cache.same.get(slot).copied()
            }
        };
        let address = address.filter(|address| *address < here && mode < MODES).ok_or_else(|| {
            Error::damaged(format!("VCDIFF copy has an address outside the {here} bytes there are"))
        })?;
        self.cache.remember(address);
        Ok(address)
    }

    /// Copies from an address that exists; what the copy itself makes may be its source.
    fn copy(&mut self, from: usize, size: usize) {
        let end = from.saturating_add(size).min(self.segment.len());
        let old = self.segment.get(from..end).unwrap_or(&[]);
        self.out.extend_from_slice(old);
        let mut at = from.saturating_add(old.len()).saturating_sub(self.segment.len());
        let mut left = size.saturating_sub(old.len());
        while left > 0 {
            let have = self.out.len().saturating_sub(at).min(left);
            self.out.extend_from_within(at..at.saturating_add(have));
            at = at.saturating_add(have);
            left = left.saturating_sub(have.max(1));
        }
    }
}

/// Bytes that are taken from the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| {
            Error::damaged(format!("VCDIFF ends in {what}: {count} bytes wanted, {} left", self.0.len()))
        })?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self, what: &str) -> Result<u8> {
        Ok(self.take(1, what)?.first().copied().unwrap_or(0))
    }

    fn number(&mut self, what: &str) -> Result<usize> {
        let mut number = 0usize;
        loop {
            let byte = self.byte(what)?;
            // Far beyond every length that an extent can have, and far from an overflow.
            ensure(number < 1 << 40, || format!("VCDIFF has {what} out of bounds"))?;
            number = number << 7 | usize::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
    }
}

fn unsupported(what: String) -> Error {
    Error::new(Kind::Unsupported, what)
}
