//! Pseudonyms: what takes the place of names, identifiers and checksums in a dump that is shown to others.
//!
//! They are made with a key that comes from the store's salt, which such a dump does not hold. So nobody can try
//! names or contents against them, and the same name has the same pseudonym in every dump of the store.

use crate::format::run::{Key, Value};
use crate::format::superblock::Superblock;
use crate::units::Uuid;

/// Makes pseudonyms.
pub struct Scrub {
    key: [u8; 32],
}

/// Shortest pseudonym of a text that is not empty.
const LENGTH_MIN: usize = 8;

impl Scrub {
    /// The pseudonyms of one store.
    #[must_use]
    pub fn new(sb: &Superblock) -> Self {
        let secret = [&sb.salt.to_le_bytes()[..], &sb.uuid.0].concat();
        Self { key: blake3::derive_key("ddsnap 2026 pseudonyms of a dump", &secret) }
    }

    fn fill(&self, purpose: u8, bytes: &[u8], out: &mut [u8]) {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&[purpose]).update(bytes);
        hasher.finalize_xof().fill(out);
    }

    /// In place of `bytes` of a text: a name that begins with `prefix`, about as long, at most `max` bytes.
    #[must_use]
    pub fn text(&self, prefix: &str, bytes: &[u8], max: usize) -> String {
        if bytes.is_empty() {
            return String::new();
        }
        let length = bytes.len().clamp(LENGTH_MIN, max);
        let mut digest = vec![0; length.div_ceil(2)];
        self.fill(1, bytes, &mut digest);
        let mut text = prefix.to_owned() + &hex::encode(digest);
        text.truncate(length.max(prefix.len() + LENGTH_MIN).min(max));
        text
    }

    /// In place of an identifier.
    #[must_use]
    pub fn uuid(&self, uuid: Uuid) -> Uuid {
        let mut bytes = [0; 16];
        self.fill(2, &uuid.0, &mut bytes);
        // Version 4, variant 1: a random UUID by RFC 9562.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }

    /// In place of a number that only identifies.
    #[must_use]
    pub fn word(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.fill(3, &word.to_le_bytes(), &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// In place of a digest.
    #[must_use]
    pub fn digest(&self, digest: [u8; 32]) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.fill(4, &digest, &mut bytes);
        bytes
    }

    /// In place of the checksum of data. It depends on the place too: two chunks with the same content must not
    /// look the same, or a known one among them would tell of all others.
    #[must_use]
    pub fn data_crc(&self, key: Key, value: &Value) -> u32 {
        let mut input = vec![key.class];
        input.extend_from_slice(&key.a.to_le_bytes());
        input.extend_from_slice(&key.b.to_le_bytes());
        input.extend_from_slice(&value.crc.to_le_bytes());
        let mut bytes = [0; 4];
        self.fill(5, &input, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Encoding;

    fn scrub(salt: u64) -> Scrub {
        let mut sb = crate::dump::tests::superblock();
        sb.salt = salt;
        Scrub::new(&sb)
    }

    #[test]
    fn the_same_text_has_the_same_pseudonym_and_nothing_else_does() {
        let (a, b) = (scrub(1), scrub(2));
        assert_eq!(a.text("s", b"monday", 255), a.text("s", b"monday", 255));
        assert_ne!(a.text("s", b"monday", 255), a.text("s", b"tuesday", 255));
        assert_ne!(a.text("s", b"monday", 255), b.text("s", b"monday", 255));
        assert_eq!(a.text("s", b"", 255), "");
        assert_eq!(a.text("s", b"x", 255).len(), 9);
        assert_eq!(a.text("s", &[b'x'; 100], 255).len(), 100);
        assert_eq!(a.text("s", &[b'x'; 4096], 64).len(), 64);
    }

    #[test]
    fn equal_contents_do_not_look_equal() {
        let value = Value { word: 0, crc: 7, raw_length: 1, stored_length: 1, encoding: Encoding::Raw };
        let crc = |chunk, epoch| scrub(1).data_crc(Key::exception(chunk, epoch), &value);
        assert_ne!(crc(1, 1), crc(2, 1));
        assert_ne!(crc(1, 1), crc(1, 2));
        assert_eq!(crc(1, 1), crc(1, 1));
    }
}
