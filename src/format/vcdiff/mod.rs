//! VCDIFF (RFC 3284): one window, the default code table, no secondary compression. That is all that delta files of
//! 2008 hold.
//!
//! | part | bytes |
//! |---|---|
//! | header | `d6 c3 c4 00`, an indicator; an application header if bit 2 of that is set |
//! | window | an indicator, the source segment, lengths, an Adler-32 of the target if bit 2 of the indicator is set |
//! | sections | data, instructions, addresses |
//!
//! Numbers are base 128, most significant digit first, the top bit set in all but the last byte.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod decode;
mod encode;

pub use decode::decode;
pub use encode::encode;

const MAGIC: [u8; 4] = [0xd6, 0xc3, 0xc4, 0x00];
/// The bit of the header that announces an application header.
const HAS_APPLICATION_HEADER: u8 = 4;
/// The bit of a window that says that it copies from the source.
const HAS_SOURCE: u8 = 1;
/// The bit of a window that says that an Adler-32 follows the lengths.
const HAS_ADLER: u8 = 4;

const NEAR: usize = 4;
const SAME: usize = 3;
/// Address modes: from the start, from here, then the near and the same ones.
const MODES: u8 = 9;

/// What one half of an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Add,
    Run,
    Copy { mode: u8 },
}

/// One half of an instruction; size 0 stands for one that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Half {
    action: Action,
    size: u8,
}

/// What a code of the default table means: one or two halves.
fn meaning(code: u8) -> (Half, Option<Half>) {
    let add = |size| Half { action: Action::Add, size };
    let copy = |mode, size| Half { action: Action::Copy { mode }, size };
    let parts = |from: u8, by: u8| {
        let index = code.saturating_sub(from);
        (index.checked_div(by).unwrap_or(0), index.checked_rem(by).unwrap_or(0))
    };
    match code {
        0 => (Half { action: Action::Run, size: 0 }, None),
        1..=18 => (add(code.saturating_sub(1)), None),
        19..=162 => {
            let (mode, size) = parts(19, 16);
            (copy(mode, if size == 0 { 0 } else { size.saturating_add(3) }), None)
        }
        163..=234 => {
            let (mode, rest) = parts(163, 12);
            let (added, copied) = (rest / 3, rest % 3);
            (add(added.saturating_add(1)), Some(copy(mode, copied.saturating_add(4))))
        }
        235..=246 => {
            let (mode, size) = parts(235, 4);
            (add(size.saturating_add(1)), Some(copy(mode.saturating_add(6), 4)))
        }
        247..=255 => (copy(code.saturating_sub(247), 4), Some(add(1))),
    }
}

/// Addresses used lately, by which a copy may name its own.
struct Cache {
    near: [usize; NEAR],
    next: usize,
    same: [usize; SAME * 256],
}

impl Cache {
    fn new() -> Self {
        Self { near: [0; NEAR], next: 0, same: [0; SAME * 256] }
    }

    fn remember(&mut self, address: usize) {
        if let Some(slot) = self.near.get_mut(self.next) {
            *slot = address;
        }
        self.next = self.next.wrapping_add(1) % NEAR;
        if let Some(slot) = self.same.get_mut(address % (SAME * 256)) {
            *slot = address;
        }
    }
}

/// Appends a number.
fn put_number(out: &mut Vec<u8>, number: usize) {
    let mut digits = [0u8; 10];
    let (mut rest, mut at) = (number, digits.len());
    loop {
        at = at.saturating_sub(1);
        let more = if at.saturating_add(1) == digits.len() { 0 } else { 0x80 };
        if let Some(digit) = digits.get_mut(at) {
            *digit = u8::try_from(rest & 0x7f).unwrap_or(0) | more;
        }
        rest >>= 7;
        if rest == 0 {
            out.extend_from_slice(digits.get(at..).unwrap_or(&[]));
            return;
        }
    }
}

fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    // So many sums of bytes cannot overflow.
    for piece in bytes.chunks(5552) {
        for byte in piece {
            a = a.wrapping_add(u32::from(*byte));
            b = b.wrapping_add(a);
        }
        a %= 65521;
        b %= 65521;
    }
    b << 16 | a
}

#[cfg(test)]
mod tests;
