//! Chance that can be repeated: seeds and how deep to search.

use ddsnap::units::index;

/// SplitMix64: the same everywhere for the same seed.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn pick(&mut self, length: usize) -> usize {
        index(self.below(length as u64))
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// The seeds to run: that of `DDSNAP_SEED` alone, or `count` fixed ones (times `DDSNAP_DEPTH`).
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("DDSNAP_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=count * depth()).collect(),
    }
}

/// How much to try: `DDSNAP_DEPTH`, 6 by default.
pub fn depth() -> u64 {
    std::env::var("DDSNAP_DEPTH").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}
