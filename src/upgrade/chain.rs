//! Which snapshots share an exception, and which get a chunk of their own.

use crate::format::record::EntryClass;

/// What the new store keeps for one chunk: for the snapshot at `at`, and if it is an exception for all older ones
/// down to the next exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// Place of the snapshot in the table.
    pub at: usize,
    /// An exception, or an overlay.
    pub class: EntryClass,
    /// One bit for each snapshot that reads it.
    pub readers: u64,
}

/// What a snapshot has for a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Has<V> {
    /// Nothing: it ends before, or is squashed.
    Nothing,
    /// What the origin has.
    Shared,
    /// This.
    Own(V),
}

/// Turns what each snapshot has, oldest first, into exceptions and overlays, newest first.
///
/// The copy-outs of 2008 went to all snapshots that shared with the origin then, so they serve neighbours, and all of
/// them become exceptions. What only one snapshot has, out of line, was written there: it becomes an overlay. In other
/// patterns, which only a deletion that was cut short left, a version can become more than one exception; so can that
/// of the origin.
pub(super) fn links<V: PartialEq + Copy>(has: &[Has<V>]) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    // What the newest snapshots down to here read, and which link that is.
    let (mut current, mut link) = (Has::Shared, None::<usize>);
    for (at, value) in has.iter().enumerate().rev().filter(|(_, value)| **value != Has::Nothing) {
        if *value != current {
            let older = || has.iter().take(at);
            let alone = older().any(|older| *older == current) && older().all(|older| older != value);
            let class = if alone { EntryClass::Overlay } else { EntryClass::Exception };
            links.push(Link { at, class, readers: 1 << at });
            if !alone {
                (current, link) = (*value, Some(links.len() - 1));
            }
        } else if let Some(link) = link.and_then(|link| links.get_mut(link)) {
            link.readers |= 1 << at;
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Strategy, prop_oneof, proptest};

    fn told(has: &[Has<u8>]) -> Vec<(usize, EntryClass, u64)> {
        links(has).into_iter().map(|link| (link.at, link.class, link.readers)).collect()
    }

    #[test]
    fn copy_outs_are_exceptions_and_writes_overlays() {
        use EntryClass::{Exception, Overlay};
        use Has::{Nothing, Own, Shared};
        for (has, expected) in [
            (&[Shared, Shared][..], &[][..]),
            (&[Own(1), Own(1), Shared], &[(1, Exception, 0b11)]),
            (&[Own(1), Own(2), Own(2)], &[(2, Exception, 0b110), (0, Exception, 1)]),
            // Written on a snapshot: the newest, one between sharers, the oldest.
            (&[Shared, Own(9)], &[(1, Overlay, 0b10)]),
            (&[Own(1), Own(9), Own(1), Shared], &[(2, Exception, 0b101), (1, Overlay, 0b10)]),
            (&[Own(9), Shared, Shared], &[(0, Exception, 1)]),
            (&[Shared, Own(8), Own(9), Shared], &[(2, Overlay, 0b100), (1, Overlay, 0b10)]),
            (&[Own(1), Nothing, Own(1)], &[(2, Exception, 0b101)]),
            (&[Nothing, Own(9)], &[(1, Exception, 0b10)]),
            // No copy-out and no write left this behind.
            (&[Shared, Own(1), Own(1)], &[(2, Exception, 0b110), (0, Exception, 1)]),
            (
                &[Own(1), Own(2), Own(1), Own(2)],
                &[(3, Exception, 0b1000), (2, Exception, 0b101), (1, Overlay, 0b10)],
            ),
        ] {
            assert_eq!(told(has), expected, "{has:?}");
        }
    }

    /// What each snapshot reads by the rules of the store: its overlay, else the first exception from it on.
    fn read(has: &[Has<u8>], links: &[Link], at: usize) -> Has<u8> {
        let of = |link: Option<&Link>| link.and_then(|link| has.get(link.at)).copied();
        let overlay = links.iter().find(|link| link.class == EntryClass::Overlay && link.at == at);
        let exceptions = links.iter().filter(|link| link.class == EntryClass::Exception && link.at >= at);
        of(overlay).or(of(exceptions.min_by_key(|link| link.at))).unwrap_or(Has::Shared)
    }

    proptest! {
        #[test]
        fn every_snapshot_reads_what_it_had(has in proptest::collection::vec(
            prop_oneof![
                proptest::strategy::Just(Has::Nothing),
                proptest::strategy::Just(Has::Shared),
                (0u8..4).prop_map(Has::Own),
            ], 0..65)
        ) {
            let links = links(&has);
            for (at, value) in has.iter().enumerate().filter(|(_, value)| **value != Has::Nothing) {
                assert_eq!(read(&has, &links, at), *value);
                let reads = links.iter().filter(|link| link.readers >> at & 1 == 1);
                let readers: Vec<_> = reads.map(|link| has[link.at]).collect();
                assert!(readers == [*value] || readers.is_empty() && *value == Has::Shared);
            }
        }
    }
}
