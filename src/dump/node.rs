//! A tree of named values: what every structure becomes before it is written as text, YAML or JSON.

use crate::units::Uuid;

/// A value, or values with names. The kind says what a number is, so that each format can write it in its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// There is none.
    None,
    /// Yes or no.
    Flag(bool),
    /// A number without a unit.
    Count(u64),
    /// A number that may be negative.
    Signed(i64),
    /// A length or an address in bytes.
    Bytes(u64),
    /// Seconds since 1970 UTC.
    Time(i64),
    /// A word of ours.
    Word(&'static str),
    /// Text that came from the store.
    Text(String),
    /// Sums, masks and identifiers.
    Hex(String),
    /// Bytes as they lie at an address.
    Raw(u64, Vec<u8>),
    /// Values without names.
    List(Vec<Self>),
    /// Named values.
    Map(Vec<Field>),
}

/// A named value.
pub type Field = (&'static str, Node);

impl Node {
    /// A checksum.
    #[must_use]
    pub fn crc(crc: u32) -> Self {
        Self::Hex(format!("{crc:08x}"))
    }

    /// A mask, or a number that only identifies.
    #[must_use]
    pub fn mask(word: u64) -> Self {
        Self::Hex(format!("{word:016x}"))
    }

    /// An identifier.
    #[must_use]
    pub fn uuid(uuid: Uuid) -> Self {
        Self::Hex(uuid.to_string())
    }

    /// `make` of it, if there is one.
    pub fn option<T>(value: Option<T>, make: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::None, make)
    }
}

/// A piece of a dump that stands for itself: bounded, whatever the size of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is, for machines.
    pub name: &'static str,
    /// What it is, for people.
    pub heading: String,
    /// What is in it.
    pub fields: Vec<Field>,
}

impl Part {
    /// A part with these fields.
    #[must_use]
    pub fn new(name: &'static str, heading: impl Into<String>, fields: Vec<Field>) -> Self {
        Self { name, heading: heading.into(), fields }
    }
}
