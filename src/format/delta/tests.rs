use super::*;
use crate::error::Error;
use crate::error::Kind;
use crate::units::{Tag, Uuid};
use proptest::prelude::*;

fn label(size_bytes: u64, name: Option<&str>) -> PointLabel {
    PointLabel {
        volume: Uuid([7; 16]),
        id: 3,
        generation: 1,
        size_bytes,
        tag: Tag(9),
        name: name.map(str::to_owned),
    }
}

fn header() -> Header {
    Header {
        chunk_bits: 12,
        encoding: Encoding::Best,
        level: 3,
        undoes: None,
        source: Some(label(10_000, Some("monday"))),
        target: label(20_000, None),
    }
}

fn decode(bytes: &[u8]) -> crate::error::Result<Header> {
    let preamble = bytes.first_chunk().ok_or_else(|| Error::damaged("short"))?;
    let length = Header::length(preamble)?;
    Header::decode(bytes.get(..length).ok_or_else(|| Error::damaged("short"))?)
}

#[test]
fn header_comes_back() {
    let full = Header { source: None, undoes: Some([4; 32]), ..header() };
    for header in [header(), full] {
        assert_eq!(decode(&header.encode().unwrap()).unwrap(), header);
    }
}

#[test]
fn every_flipped_byte_of_a_header_is_seen() {
    let bytes = header().encode().unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert_eq!(decode(&bad).unwrap_err().kind(), Kind::Damaged, "byte {at}");
    }
}

#[test]
fn a_newer_version_is_not_damage() {
    let mut bytes = header().encode().unwrap();
    bytes[8] = 2;
    let at = bytes.len() - 4;
    let sum = crc(&bytes[..at]);
    bytes[at..].copy_from_slice(&sum.to_le_bytes());
    let error = decode(&bytes).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(error.to_string(), "delta is of version 2, this program knows version 1");
}

fn extent() -> Extent {
    Extent { kind: ExtentKind::Zstd, chunk: 2, chunks: 3, base_crcs: true, payload_bytes: 77, body_crc: 5 }
}

#[test]
fn extent_comes_back_and_knows_its_place() {
    let geometry = header().geometry();
    assert_eq!(geometry.target_chunks(), 5);
    let bytes = extent().encode();
    assert_eq!(Extent::decode(&bytes, &geometry, 2).unwrap(), extent());
    assert_eq!(Extent::decode(&bytes, &geometry, 3).unwrap_err().kind(), Kind::Damaged);
    let past = Extent { chunk: 3, ..extent() };
    assert_eq!(Extent::decode(&past.encode(), &geometry, 0).unwrap_err().kind(), Kind::Damaged);
    let huge = Extent { chunk: u64::MAX, chunks: u32::MAX, ..extent() };
    assert_eq!(Extent::decode(&huge.encode(), &geometry, 0).unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn unknown_kind_is_not_damage() {
    let mut bytes = extent().encode();
    bytes[4] = 4;
    let sum = crc(&bytes[..32]);
    bytes[32..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(Extent::decode(&bytes, &header().geometry(), 0).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn lying_lengths_are_refused() {
    let geometry = Geometry { chunk_bits: 12, source_size: Some(1 << 40), target_size: 1 << 40 };
    for bad in [
        Extent { chunks: 257, ..extent() },
        Extent { payload_bytes: 3 << 12, ..extent() },
        Extent { payload_bytes: 0, ..extent() },
        Extent { kind: ExtentKind::Zero, ..extent() },
        Extent { kind: ExtentKind::Raw, ..extent() },
        Extent { kind: ExtentKind::ZstdBase, base_crcs: false, ..extent() },
        Extent { kind: ExtentKind::Zero, payload_bytes: 0, chunks: 257, ..extent() },
    ] {
        assert_eq!(Extent::decode(&bad.encode(), &geometry, 0).unwrap_err().kind(), Kind::Damaged, "{bad:?}");
    }
    let long =
        Extent { kind: ExtentKind::Zero, payload_bytes: 0, chunks: 1 << 20, base_crcs: false, ..extent() };
    assert!(Extent::decode(&long.encode(), &geometry, 0).is_ok());
}

#[test]
fn end_comes_back() {
    let end = End { extents: 1, chunks: 2, data_bytes: 3, payload_bytes: 4, digest: [5; 32] };
    assert_eq!(End::decode(&end.encode()).unwrap(), end);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
        let _ = Header::decode(&bytes);
        if let Some(bytes) = bytes.first_chunk() {
            let _ = Extent::decode(bytes, &header().geometry(), 0);
        }
        if let Some(bytes) = bytes.first_chunk() {
            let _ = End::decode(bytes);
        }
    }

    #[test]
    fn geometry_never_panics(bits in 9u32..=20, source: Option<u64>, target: u64, start: u64, chunks: u64) {
        let geometry = Geometry { chunk_bits: bits, source_size: source, target_size: target };
        prop_assert!(geometry.base_bytes(start, chunks) <= geometry.result_bytes(start, chunks));
        prop_assert!(geometry.extent_chunks_max() >= 1);
        prop_assert!(geometry.target_chunks() >= geometry.chunks_of(geometry.base_size()));
    }
}
