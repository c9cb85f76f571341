//! Field tables: one source for layout checks, `dump`, `docs/format.md` and the reader of this code.

/// One field of a structure on disk or in a stream.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Name, as in the code.
    pub name: &'static str,
    /// Byte offset inside the structure.
    pub offset: usize,
    /// Width in bytes.
    pub width: usize,
    /// Type or unit, as the documentation prints it ("u64 bytes", "crc32", "bytes").
    pub unit: &'static str,
    /// What it means, bounds included.
    pub meaning: &'static str,
}

/// A fixed-size structure. All integers are little endian.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Heading in the documentation.
    pub title: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// The fields, in order, without gaps.
    pub fields: &'static [Field],
}

impl Table {
    /// True if the fields cover the structure exactly, in order, without gaps or overlaps.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        let mut at = 0;
        let mut i = 0;
        while i < self.fields.len() {
            let Some(field) = get(self.fields, i) else { return false };
            if field.offset != at {
                return false;
            }
            at = match at.checked_add(field.width) {
                Some(next) => next,
                None => return false,
            };
            i = match i.checked_add(1) {
                Some(next) => next,
                None => return false,
            };
        }
        at == self.size
    }
}

const fn get<T>(items: &[T], index: usize) -> Option<&T> {
    if index < items.len() { items.split_at(index).1.first() } else { None }
}

/// Declares a `#[repr(C)]` struct of unaligned little-endian fields together with its [`Table`], and proves
/// at compile time that the two agree and leave no byte unnamed.
///
/// ```text
/// raw_struct! {
///     /// Doc comment.
///     pub struct RawThing, "Title in the documentation", 16 {
///         magic: [u8; 8], "bytes", "what it means";
///         count: U64, "u64", "what it means";
///     }
/// }
/// ```
macro_rules! raw_struct {
    ($(#[$meta:meta])* pub struct $name:ident, $title:literal, $size:literal {
        $($field:ident : $ty:ty, $unit:literal, $meaning:literal;)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned)]
        #[repr(C)]
        pub struct $name {
            $(#[doc = $meaning] pub $field: $ty,)+
        }

        impl $name {
            /// The layout, for documentation and dumps.
            pub const TABLE: $crate::format::field::Table = $crate::format::field::Table {
                title: $title,
                size: $size,
                fields: &[$($crate::format::field::Field {
                    name: stringify!($field),
                    offset: core::mem::offset_of!($name, $field),
                    width: core::mem::size_of::<$ty>(),
                    unit: $unit,
                    meaning: $meaning,
                },)+],
            };
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        const _: () = assert!($name::TABLE.is_complete());
    };
}

pub(crate) use raw_struct;
