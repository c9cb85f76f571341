//! Bytes only: every on-disk and on-wire structure, both ways. No I/O, no engine types.

pub mod bmap;
pub mod changelist;
pub mod checkpoint;
pub mod delta;
pub mod end;
pub mod field;
pub mod http;
pub mod legacy;
pub mod legacy_delta;
pub mod nbd;
pub mod netlink;
pub mod qcow2;
pub mod rbd;
pub mod record;
pub mod run;
pub mod salt;
pub mod superblock;
pub mod switch;
pub mod table;
pub mod ublk;
pub mod vcdiff;

/// Every layout table, in the order of `docs/format.md`, which is generated from them.
#[must_use]
pub fn tables() -> Vec<field::Table> {
    vec![
        superblock::RawSuperblock::TABLE,
        superblock::RawExtent::TABLE,
        switch::RawSwitch::TABLE,
        record::RawHeader::TABLE,
        record::RawEntry::TABLE,
        end::RawEnd::TABLE,
        table::RawSnapshot::TABLE,
        table::RawVolume::TABLE,
        table::RawOperation::TABLE,
        table::RawDelete::TABLE,
        table::RawOpen::TABLE,
        table::RawTaint::TABLE,
        table::RawFingerprint::TABLE,
        checkpoint::RawPart::TABLE,
        checkpoint::RawCheckpoint::TABLE,
        checkpoint::RawGrave::TABLE,
        checkpoint::RawSegment::TABLE,
        checkpoint::RawRun::TABLE,
        checkpoint::RawPiece::TABLE,
        checkpoint::RawEvent::TABLE,
        run::RawBlockHeader::TABLE,
        run::RawIndexEntry::TABLE,
        run::RawDirectoryEntry::TABLE,
        changelist::RawChangelist::TABLE,
        delta::RawHeader::TABLE,
        delta::RawPoint::TABLE,
        delta::RawExtent::TABLE,
        delta::RawEnd::TABLE,
        delta::RawContinuation::TABLE,
        legacy_delta::RawHeader::TABLE,
        legacy_delta::RawExtent::TABLE,
        qcow2::RawHeader::TABLE,
        legacy::superblock::RawSuperblock::TABLE,
        legacy::superblock::RawSnapshot::TABLE,
        legacy::superblock::RawSpace::TABLE,
        legacy::superblock::RawSuperblock04::TABLE,
        legacy::superblock::RawSnapshot04::TABLE,
        legacy::tree::RawNode::TABLE,
        legacy::tree::RawChild::TABLE,
        legacy::tree::RawLeaf::TABLE,
        legacy::tree::RawMapEntry::TABLE,
        legacy::tree::RawException::TABLE,
        legacy::journal::RawCommit::TABLE,
        legacy::repair::RawDecision::TABLE,
    ]
}
