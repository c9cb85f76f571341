//! What a store means, told without any tree: for each device and each chunk, which version of the data it has.
//!
//! Two devices share a chunk if they have the same version of it.

/// A snapshot of the model.
#[derive(Clone)]
pub(crate) struct Held {
    pub tag: u32,
    pub bit: u8,
    /// Size in chunks when it was created.
    pub chunks: u64,
    /// The version of each chunk of the origin; none for a squashed snapshot.
    pub versions: Option<Vec<u64>>,
}

/// An origin with its snapshots, in order of creation.
#[derive(Clone)]
pub(crate) struct Model {
    pub origin: Vec<u64>,
    pub snapshots: Vec<Held>,
    next: u64,
}

impl Model {
    pub fn new(chunks: u64) -> Self {
        Self { origin: (1..=chunks).collect(), snapshots: Vec::new(), next: chunks + 1 }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn create(&mut self, tag: u32) {
        let is_free = |bit: &u8| self.snapshots.iter().all(|snapshot| snapshot.bit != *bit);
        let bit = (0..64).find(is_free).unwrap();
        let versions = Some(self.origin.clone());
        self.snapshots.push(Held { tag, bit, chunks: self.origin.len() as u64, versions });
    }

    pub fn write_origin(&mut self, chunk: usize) {
        self.origin[chunk] = self.fresh();
    }

    pub fn write_snapshot(&mut self, at: usize, chunk: usize) {
        let version = self.fresh();
        self.snapshots[at].versions.as_mut().unwrap()[chunk] = version;
    }

    pub fn delete(&mut self, at: usize) {
        self.snapshots.remove(at);
    }

    pub fn squash(&mut self, at: usize) {
        self.snapshots[at].bit = 64;
        self.snapshots[at].versions = None;
    }

    /// Makes the origin larger; the snapshots keep their sizes, but the tree knows of no ends.
    pub fn grow(&mut self, chunks: u64) {
        for _ in 0..chunks {
            let version = self.fresh();
            self.origin.push(version);
            for versions in self.snapshots.iter_mut().filter_map(|snapshot| snapshot.versions.as_mut()) {
                versions.push(version);
            }
        }
    }

    /// Which snapshots have their own version of `chunk`: mask and version, the newest version first.
    pub fn exceptions(&self, chunk: usize) -> Vec<(u64, u64)> {
        let mut found: std::collections::BTreeMap<u64, u64> = std::collections::BTreeMap::new();
        for snapshot in &self.snapshots {
            let Some(versions) = &snapshot.versions else { continue };
            if versions[chunk] != self.origin[chunk] {
                *found.entry(versions[chunk]).or_default() |= 1 << snapshot.bit;
            }
        }
        found.into_iter().rev().map(|(version, mask)| (mask, version)).collect()
    }

    /// Sharing counts of each snapshot that is not squashed.
    pub fn sharing(&self) -> Vec<Vec<u64>> {
        let mut rows = vec![vec![0; self.snapshots.len()]; self.snapshots.len()];
        for chunk in 0..self.origin.len() {
            for (mask, _) in self.exceptions(chunk) {
                for (row, snapshot) in rows.iter_mut().zip(&self.snapshots) {
                    if snapshot.bit < 64 && mask >> snapshot.bit & 1 == 1 {
                        row[mask.count_ones() as usize - 1] += 1;
                    }
                }
            }
        }
        let live = rows.into_iter().zip(&self.snapshots).filter(|(_, snapshot)| snapshot.bit < 64);
        live.map(|(row, _)| row).collect()
    }
}

/// The bytes of a version of a chunk.
pub(crate) fn content(version: u64, size: usize) -> Vec<u8> {
    let seed = version.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..size as u64).map(|at| (seed.wrapping_mul(at + 1) >> 24).to_le_bytes()[0]).collect()
}

/// The bytes of a device.
pub(crate) fn image(versions: &[u64], chunk_size: usize) -> Vec<u8> {
    versions.iter().flat_map(|version| content(*version, chunk_size)).collect()
}

/// A small generator of numbers for models and damages.
pub(crate) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound.max(1)
    }

    /// A history of `steps` operations on `chunks` chunks.
    pub fn model(&mut self, chunks: u64, steps: usize) -> Model {
        let mut model = Model::new(chunks);
        model.create(100);
        for step in 0..steps {
            let (chunk, at) = (self.below(model.origin.len()), self.below(model.snapshots.len()));
            let is_usable = model.snapshots.get(at).is_some_and(|snapshot| snapshot.versions.is_some());
            match self.below(20) {
                0..=10 => model.write_origin(chunk),
                11..=14 if is_usable => model.write_snapshot(at, chunk),
                15..=17 if model.snapshots.len() < 64 => {
                    model.create(u32::try_from(1000 + step * 7 % 501).unwrap());
                }
                18 if at < model.snapshots.len() && model.snapshots.len() > 3 => model.delete(at),
                19 if is_usable && step % 5 == 0 => model.squash(at),
                19 => model.grow(1),
                _ => {}
            }
            let mut tags: Vec<_> = model.snapshots.iter().map(|snapshot| snapshot.tag).collect();
            tags.sort_unstable();
            if tags.windows(2).any(|pair| pair[0] == pair[1]) {
                model.snapshots.pop();
            }
        }
        model
    }
}
