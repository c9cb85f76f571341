//! Block maps, version 2.0: which blocks of a sparse image hold data, and the SHA-256 of each run of them.
//!
//! XML text. The whole file carries its own SHA-256, computed while that field is 64 zeros. The last block may be
//! partial; its bytes inside the image count. Source: the files and messages of bmap-tools.

/// Bytes of one block.
pub const BLOCK_BYTES: u64 = 4096;

/// What the head of a map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// Blocks that hold data.
    pub mapped_blocks: u64,
    /// SHA-256 of the whole map while this is zero.
    pub checksum: [u8; 32],
}

impl Head {
    /// Everything before the ranges.
    #[must_use]
    pub fn encode(&self) -> String {
        format!(
            "<?xml version=\"1.0\" ?>\n\
             <bmap version=\"2.0\">\n    \
                 <ImageSize> {} </ImageSize>\n    \
                 <BlockSize> {BLOCK_BYTES} </BlockSize>\n    \
                 <BlocksCount> {} </BlocksCount>\n    \
                 <MappedBlocksCount> {} </MappedBlocksCount>\n    \
                 <ChecksumType> sha256 </ChecksumType>\n    \
                 <BmapFileChecksum> {} </BmapFileChecksum>\n    \
                 <BlockMap>\n",
            self.image_bytes,
            self.image_bytes.div_ceil(BLOCK_BYTES),
            self.mapped_blocks,
            hex::encode(self.checksum),
        )
    }
}

/// The blocks `first..end`, not empty, whose bytes have this SHA-256.
#[must_use]
pub fn range(first: u64, end: u64, checksum: &[u8; 32]) -> String {
    let last = end.saturating_sub(1);
    let blocks = if first == last { first.to_string() } else { format!("{first}-{last}") };
    format!("        <Range chksum=\"{}\"> {blocks} </Range>\n", hex::encode(checksum))
}

/// Everything after the ranges.
pub const TAIL: &str = "    </BlockMap>\n</bmap>\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_and_named_inclusively() {
        let head = Head { image_bytes: 3 * BLOCK_BYTES + 1, mapped_blocks: 2, checksum: [0; 32] }.encode();
        assert!(head.contains("<ImageSize> 12289 </ImageSize>"), "{head}");
        assert!(head.contains("<BlocksCount> 4 </BlocksCount>"), "{head}");
        assert!(
            head.contains(&format!("<BmapFileChecksum> {} </BmapFileChecksum>", "0".repeat(64))),
            "{head}"
        );
        assert!(range(3, 4, &[1; 32]).ends_with("\"> 3 </Range>\n"));
        assert!(range(3, 6, &[1; 32]).ends_with("\"> 3-5 </Range>\n"));
    }
}
