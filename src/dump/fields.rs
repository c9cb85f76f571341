//! Any structure by its table: one walker for all of them, with or without the bytes beside the values.

use super::node::{Field, Node};
use crate::format::field::{Field as TableField, Table};
use crate::format::legacy::SNAPSHOTS_MAX;
use crate::format::legacy::superblock::{RawSnapshot as RawLegacySnapshot, RawSnapshot04, RawSpace};
use crate::format::superblock::RawExtent;
use crate::units::Uuid;

/// Zero bytes beyond this many are told by their number.
const ZEROS_MAX: usize = 16;

/// Walks along bytes that lie at an address, structure by structure.
pub struct Walker<'a> {
    bytes: &'a [u8],
    address: u64,
    hex: bool,
}

impl<'a> Walker<'a> {
    /// A walk over `bytes`, which lie at byte `address`; with `hex` every value comes with its bytes.
    pub fn new(bytes: &'a [u8], address: u64, hex: bool) -> Self {
        Self { bytes, address, hex }
    }

    /// What is left, and where it lies.
    pub fn rest(&self) -> (&'a [u8], u64) {
        (self.bytes, self.address)
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        self.address = self.address.saturating_add(length as u64);
        Some(taken)
    }

    /// The next structure with the texts that follow it; `None` if it is cut short.
    pub fn structure(&mut self, table: &Table) -> Option<Node> {
        let address = self.address;
        let bytes = self.take(table.size)?;
        let mut fields = Vec::new();
        let mut tails = Vec::new();
        for field in table.fields {
            let own = bytes.get(field.offset..field.offset.checked_add(field.width)?)?;
            let value = decode(field, own);
            tails.extend(tail(field, &value));
            match self.hex {
                true => {
                    fields.push(with_bytes(field, value, address.saturating_add(field.offset as u64), own));
                }
                false => fields.push((field.name, value)),
            }
        }
        for tail in tails {
            let (name, value) = self.tail(tail)?;
            match self.hex {
                true => fields.push((name, Node::Map(vec![("value", value)]))),
                false => fields.push((name, value)),
            }
        }
        Some(Node::Map(fields))
    }

    fn tail(&mut self, tail: Tail) -> Option<Field> {
        match tail {
            Tail::Text(name, length) => Some((name, text(self.take(length)?))),
            Tail::List(name, count) => {
                let mut texts = Vec::new();
                for _ in 0..count {
                    let length = usize::from(*self.take(1)?.first()?);
                    texts.push(text(self.take(length)?));
                }
                Some((name, Node::List(texts)))
            }
        }
    }
}

/// What follows a structure, by what the table says of the field that tells its length.
enum Tail {
    Text(&'static str, usize),
    List(&'static str, u64),
}

fn tail(field: &TableField, value: &Node) -> Option<Tail> {
    let (Node::Count(number) | Node::Bytes(number)) = value else { return None };
    if field.meaning.contains("each a length (u8)") {
        return Some(Tail::List("names_of_holds", *number));
    }
    let (_, named) = field.meaning.split_once("length of the ")?;
    let (name, _) = named.split_once(" that follows")?;
    Some(Tail::Text(name, usize::try_from(*number).ok()?))
}

fn text(bytes: &[u8]) -> Node {
    match std::str::from_utf8(bytes) {
        Ok(text) => Node::Text(text.to_owned()),
        Err(_) => Node::Hex(hex::encode(bytes)),
    }
}

fn with_bytes(field: &TableField, value: Node, address: u64, bytes: &[u8]) -> Field {
    let raw = vec![("value", value), ("at", Node::Bytes(address)), ("bytes", Node::Hex(hex::encode(bytes)))];
    (field.name, Node::Map(raw))
}

/// The value of one field by its unit.
fn decode(field: &TableField, bytes: &[u8]) -> Node {
    let (kind, unit) = field.unit.split_once(' ').unwrap_or((field.unit, ""));
    match (kind, unit) {
        ("crc32", _) => Node::Hex(format!("{:08x}", unsigned(bytes))),
        (_, "bits") => Node::Hex(format!("{:x}", unsigned(bytes))),
        (_, "extents") => array(&RawExtent::TABLE, bytes),
        ("uuid", _) => match bytes.first_chunk() {
            Some(uuid) => Node::uuid(Uuid(*uuid)),
            None => Node::Hex(hex::encode(bytes)),
        },
        ("64", "snapshots") => legacy_snapshots(bytes),
        ("space", _) => nested(&RawSpace::TABLE, bytes),
        ("u64", "mask") => Node::mask(unsigned(bytes)),
        ("i64", "seconds") => Node::Time(signed(bytes)),
        ("u64" | "u32", "seconds") => Node::Time(unsigned(bytes).cast_signed()),
        ("i64" | "i8", _) => Node::Signed(signed(bytes)),
        ("u64" | "u32" | "u16" | "u8", "bytes") => Node::Bytes(unsigned(bytes)),
        ("u64" | "u32" | "u16" | "u8", _) => Node::Count(unsigned(bytes)),
        _ if bytes.len() > ZEROS_MAX && bytes.iter().all(|byte| *byte == 0) => {
            Node::Text(format!("{} zeros", bytes.len()))
        }
        _ => Node::Hex(hex::encode(bytes)),
    }
}

/// The entries of an array, up to the last one in use.
fn array(table: &Table, bytes: &[u8]) -> Node {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last / table.size + 1);
    Node::List(bytes.chunks_exact(table.size).take(used).map(|bytes| nested(table, bytes)).collect())
}

fn nested(table: &Table, bytes: &[u8]) -> Node {
    Walker::new(bytes, 0, false).structure(table).unwrap_or(Node::None)
}

/// The table of a superblock of 2008: the entries of both layouts are told apart by their size.
fn legacy_snapshots(bytes: &[u8]) -> Node {
    match bytes.len() / SNAPSHOTS_MAX == RawSnapshot04::TABLE.size {
        true => array(&RawSnapshot04::TABLE, bytes),
        false => array(&RawLegacySnapshot::TABLE, bytes),
    }
}

fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn signed(bytes: &[u8]) -> i64 {
    let bits = 8 * bytes.len().clamp(1, 8);
    let shift = 64 - bits;
    (unsigned(bytes) << shift).cast_signed() >> shift
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::table::{RawSnapshot, Snapshot};
    use crate::format::tables;

    fn get<'a>(node: &'a Node, name: &str) -> &'a Node {
        let Node::Map(fields) = node else { panic!("no map: {node:?}") };
        &fields.iter().find(|field| field.0 == name).unwrap().1
    }

    #[test]
    fn a_structure_and_the_texts_behind_it_are_walked_by_its_table() {
        let snapshot = Snapshot {
            id: 7,
            tag: 5,
            name: "monday".into(),
            use_count: 1,
            size_bytes: 1 << 30,
            created_secs: -1,
            generation: 0,
            created_at: 4096,
            created_sequence: 2,
            priority: -3,
            squashed: false,
            tainted: true,
            hidden: false,
            holds: vec!["offsite".into(), "usb".into()],
        };
        let mut bytes = Vec::new();
        snapshot.encode(&mut bytes);
        for hex in [false, true] {
            let mut walker = Walker::new(&bytes, 1 << 20, hex);
            let node = walker.structure(&RawSnapshot::TABLE).unwrap();
            assert!(walker.rest().0.is_empty());
            let value = |name| match hex {
                true => get(get(&node, name), "value").clone(),
                false => get(&node, name).clone(),
            };
            assert_eq!(value("tag"), Node::Count(5));
            assert_eq!(value("priority"), Node::Signed(-3));
            assert_eq!(value("created"), Node::Time(-1));
            assert_eq!(value("flags"), Node::Hex("2".into()));
            assert_eq!(value("name"), Node::Text("monday".into()));
            let holds = ["offsite", "usb"].map(|name| Node::Text(name.into())).to_vec();
            assert_eq!(value("names_of_holds"), Node::List(holds));
            if hex {
                assert_eq!(get(get(&node, "tag"), "at"), &Node::Bytes((1 << 20) + 8));
                assert_eq!(get(get(&node, "tag"), "bytes"), &Node::Hex("05000000".into()));
            }
        }
        for cut in 0..bytes.len() {
            assert_eq!(Walker::new(&bytes[..cut], 0, false).structure(&RawSnapshot::TABLE), None);
        }
    }

    #[test]
    fn every_field_of_every_table_shows_whatever_bytes_it_has() {
        for table in tables() {
            for byte in [0, 0xff] {
                let bytes = vec![byte; table.size];
                let mut walker = Walker::new(&bytes, 0, true);
                // Lengths of 0xff promise a text that is not there.
                let Some(Node::Map(fields)) = walker.structure(&table) else { continue };
                assert!(fields.len() >= table.fields.len(), "{}", table.title);
                let own = fields.iter().take(table.fields.len());
                let shown: usize = own
                    .map(|(_, node)| match get(node, "bytes") {
                        Node::Hex(hex) => hex.len() / 2,
                        _ => 0,
                    })
                    .sum();
                assert_eq!(shown, table.size, "{}", table.title);
            }
        }
    }
}
