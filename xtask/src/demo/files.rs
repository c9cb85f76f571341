//! A volume with something in it, and a day of work on it, both without root: `mkfs.ext4 -d` fills a file system
//! from a folder, `debugfs` changes it. Without these tools the volume is made of random pieces.

use super::sbin;
use crate::shell::{has, root};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One photo; incompressible, as photos are.
const PHOTO_BYTES: usize = 1 << 20;
/// One letter; it compresses well.
const LETTER_BYTES: usize = 24 << 10;
const LETTERS: u64 = 200;

pub struct Volume {
    /// What it is, for the transcript.
    pub description: String,
    /// Whether file system tools apply.
    pub is_ext4: bool,
    size: u64,
}

impl Volume {
    /// Makes `vol.img` in `folder`.
    pub fn make(folder: &Path, size: u64, file_system: bool) -> Result<Self> {
        let image = folder.join("vol.img");
        let has_tools = has("mkfs.ext4") && has("debugfs");
        if !file_system || !has_tools {
            let why = if has_tools { "As asked," } else { "mkfs.ext4 and debugfs are not installed, so" };
            let description = format!("{why} vol.img is {} MiB of random pieces and holes.", size >> 20);
            write_pieces(&image, size, 1, size / 2)?;
            return Ok(Self { description, is_ext4: false, size });
        }
        let tree = folder.join("tree");
        let files = fill(&tree, size)?;
        File::create(&image)?.set_len(size)?;
        let args = ["-q", "-F", "-b", "4096", "-d"];
        let output = Command::new(sbin("mkfs.ext4")).args(args).arg(&tree).arg(&image).output()?;
        ensure!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
        fs::remove_dir_all(&tree)?;
        let description = format!("vol.img is an ext4 file system of {} MiB with {files} files.", size >> 20);
        Ok(Self { description, is_ext4: true, size })
    }

    /// Makes `tuesday.img`, which is `vol.img` after a day of work, and tells what happened.
    pub fn change(&self, folder: &Path) -> Result<String> {
        let image = folder.join("tuesday.img");
        fs::copy(folder.join("vol.img"), &image)?;
        if !self.is_ext4 {
            write_pieces(&image, self.size, 2, self.size / 100)?;
            return Ok("One part in a hundred is overwritten, in random places: tuesday.img.".into());
        }
        let news = folder.join("news");
        fs::create_dir_all(&news)?;
        let photos = (self.size >> 20) / 50 + 1;
        let mut script = String::new();
        for i in 0..photos {
            fs::write(news.join(format!("photo{i}")), noise(1000 + i, PHOTO_BYTES))?;
            script.push_str(&format!("write {}/photo{i} photos/new{i}\n", news.display()));
        }
        for i in (0..LETTERS).step_by(10) {
            fs::write(news.join(format!("letter{i}")), letter(5000 + i))?;
            script.push_str(&format!("rm letters/{i}\nwrite {}/letter{i} letters/{i}\n", news.display()));
        }
        script.push_str("rm photos/0\n");
        let path = folder.join("script");
        fs::write(&path, script)?;
        let output = Command::new(sbin("debugfs")).args(["-w", "-f"]).arg(&path).arg(&image).output()?;
        // debugfs reports a failed line on standard error, behind its banner, and still succeeds.
        let complaints =
            String::from_utf8_lossy(&output.stderr).lines().skip(1).collect::<Vec<_>>().join("\n");
        ensure!(output.status.success() && complaints.is_empty(), "debugfs: {complaints}");
        fs::remove_dir_all(&news)?;
        Ok(format!(
            "{photos} photos arrive, one goes, every tenth of {LETTERS} letters is rewritten: tuesday.img."
        ))
    }
}

/// Fills a folder with the project's own sources, letters and photos, up to about half of `size`.
fn fill(tree: &Path, size: u64) -> Result<u64> {
    let mut files = 0;
    for folder in ["src", "docs", "man"] {
        files += copy_tree(&root().join(folder), &tree.join(folder))?;
    }
    fs::create_dir_all(tree.join("letters"))?;
    for i in 0..LETTERS {
        fs::write(tree.join(format!("letters/{i}")), letter(i))?;
    }
    fs::create_dir_all(tree.join("photos"))?;
    let photos = (size / 2) / PHOTO_BYTES as u64;
    for i in 0..photos {
        fs::write(tree.join(format!("photos/{i}")), noise(i, PHOTO_BYTES))?;
    }
    Ok(files + LETTERS + photos)
}

fn copy_tree(from: &Path, to: &Path) -> Result<u64> {
    fs::create_dir_all(to)?;
    let mut files = 0;
    let entries = fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))?;
    for entry in entries {
        let path: PathBuf = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            files += copy_tree(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
            files += 1;
        }
    }
    Ok(files)
}

/// Writes random pieces of 64 KiB in random places until `bytes` are written.
fn write_pieces(path: &Path, size: u64, seed: u64, bytes: u64) -> Result<()> {
    const PIECE: u64 = 64 << 10;
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.set_len(size)?;
    let mut random = Random(seed);
    for i in 0..(bytes / PIECE).max(1) {
        let place = random.next() % (size / PIECE);
        file.write_all_at(&noise(seed << 32 | i, 64 << 10), place * PIECE)?;
    }
    Ok(())
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Words in random order.
pub fn letter(seed: u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "chunk", "snapshot", "origin", "store", "delta", "epoch", "the", "of", "and", "a", "changes",
        "keeps", "is", "volume", "never", "copy",
    ];
    let mut random = Random(seed);
    let mut text = Vec::with_capacity(LETTER_BYTES + 16);
    while text.len() < LETTER_BYTES {
        let index = usize::try_from(random.next() % 16).unwrap_or(0);
        text.extend_from_slice(WORDS[index].as_bytes());
        text.push(if random.next().is_multiple_of(12) { b'\n' } else { b' ' });
    }
    text
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_seed_gives_the_same_file() {
        assert_eq!(noise(3, 1001), noise(3, 1001));
        assert_eq!(noise(3, 1001).len(), 1001);
        let different: BTreeSet<Vec<u8>> = (0..20).map(|seed| noise(seed, 64)).collect();
        assert_eq!(different.len(), 20);
        assert_ne!(letter(1), letter(2));
    }

    #[test]
    fn a_day_without_tools_changes_about_a_hundredth() {
        let dir = tempfile::TempDir::new().unwrap();
        let size = 32 << 20;
        write_pieces(&dir.path().join("vol.img"), size, 1, size / 2).unwrap();
        let volume = Volume { description: String::new(), is_ext4: false, size };
        volume.change(dir.path()).unwrap();
        let (a, b) = (
            fs::read(dir.path().join("vol.img")).unwrap(),
            fs::read(dir.path().join("tuesday.img")).unwrap(),
        );
        assert_eq!(a.len(), b.len());
        let pieces = a.chunks(64 << 10).zip(b.chunks(64 << 10)).filter(|(a, b)| a != b).count();
        assert!((1..=5).contains(&pieces), "{pieces} pieces changed");
    }
}
