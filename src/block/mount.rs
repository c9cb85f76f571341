//! Who holds a device or file already: mounts, swap, mappings and RAID on it, its partitions, or a loop device
//! over it. A file system that is mounted changes behind our back, so offline commands refuse its device.
//!
//! Sources: `/proc/self/mountinfo` (proc(5)), `/proc/swaps`, `/sys/dev/block/MAJ:MIN/holders` and
//! `/sys/block/loop*/loop/backing_file`. Mounts of other mount namespaces cannot be seen; opening the block
//! device exclusively catches those.

use crate::error::{Error, Result};
use rustix::fs::{major, minor};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Says what holds the device or file at `path`: `Some("mounted on /home")`, `Some("used by dm-0")`. `None` if
/// nothing was found, also for a path that is neither a block device nor a regular file.
///
/// # Errors
/// `Kind::NotFound` if there is nothing at `path`; `Kind::Io` if it or the mount table cannot be read.
pub fn held_by(path: &Path) -> Result<Option<String>> {
    Kernel { proc: PathBuf::from("/proc"), sys: PathBuf::from("/sys") }.held_by(path)
}

/// Where the kernel tells; other folders in tests.
struct Kernel {
    proc: PathBuf,
    sys: PathBuf,
}

/// A block device number as the kernel prints it, "8:1".
type Number = String;

fn number_of(rdev: u64) -> Number {
    format!("{}:{}", major(rdev), minor(rdev))
}

/// Where the kernel tells of block device `number`.
pub(super) fn sys_block(number: u64) -> PathBuf {
    Path::new("/sys/dev/block").join(number_of(number))
}

/// The file behind loop device `number`, or behind the one that it is a partition of. None if it is no loop device.
#[must_use]
pub fn backing_file(number: u64) -> Option<PathBuf> {
    let sys = sys_block(number);
    let names = ["loop/backing_file", "../loop/backing_file"];
    let name = names.iter().find_map(|name| fs::read(sys.join(name)).ok())?;
    Some(PathBuf::from(OsString::from_vec(name.trim_ascii_end().to_vec())))
}

impl Kernel {
    fn held_by(&self, path: &Path) -> Result<Option<String>> {
        let meta =
            fs::metadata(path).map_err(|e| Error::io(format!("cannot look at it: {e}"), e).at_path(path))?;
        if meta.file_type().is_block_device() {
            return self.device_held(&number_of(meta.rdev()));
        }
        if !meta.is_file() {
            return Ok(None);
        }
        let same =
            |other: &fs::Metadata| other.is_file() && (other.dev(), other.ino()) == (meta.dev(), meta.ino());
        if self.swaps()?.iter().any(|swap| fs::metadata(swap).is_ok_and(|other| same(&other))) {
            return Ok(Some("in use as swap space".into()));
        }
        for (name, number, backing) in self.loops() {
            if fs::metadata(&backing).is_ok_and(|other| same(&other))
                && let Some(holder) = self.device_held(&number)?
            {
                return Ok(Some(format!("attached to /dev/{name}, which is {holder}")));
            }
        }
        Ok(None)
    }

    /// What holds the device with this number or one of its partitions.
    fn device_held(&self, number: &str) -> Result<Option<String>> {
        let folder = self.sys.join("dev/block").join(number);
        if let Some(holder) = self.one_held(number, &folder)? {
            return Ok(Some(holder));
        }
        for entry in list(&folder) {
            let partition = folder.join(&entry);
            // Only partitions have both files; other subfolders (queue, holders, …) do not.
            if !partition.join("partition").exists() {
                continue;
            }
            let Ok(number) = fs::read_to_string(partition.join("dev")) else { continue };
            if let Some(holder) = self.one_held(number.trim(), &partition)? {
                return Ok(Some(format!("partitioned, and {} is {holder}", Path::new(&entry).display())));
            }
        }
        Ok(None)
    }

    fn one_held(&self, number: &str, folder: &Path) -> Result<Option<String>> {
        if let Some(target) = self.mount_point(number)? {
            return Ok(Some(format!("mounted on {}", target.display())));
        }
        if self.swaps()?.iter().any(|swap| device_number(swap).as_deref() == Some(number)) {
            return Ok(Some("in use as swap space".into()));
        }
        let holders = list(&folder.join("holders"));
        Ok(holders.first().map(|name| format!("used by {}", Path::new(name).display())))
    }

    /// The first place where the device is mounted.
    fn mount_point(&self, number: &str) -> Result<Option<PathBuf>> {
        let path = self.proc.join("self/mountinfo");
        let table = fs::read(&path)
            .map_err(|e| Error::io(format!("cannot read the mount table: {e}"), e).at_path(&path))?;
        let mount = table.split(|&b| b == b'\n').filter_map(Mount::parse).find(|mount| {
            // btrfs and others mount under an anonymous number; their source still names the device.
            mount.number == number || device_number(&mount.source).as_deref() == Some(number)
        });
        Ok(mount.map(|mount| mount.target))
    }

    fn swaps(&self) -> Result<Vec<PathBuf>> {
        let path = self.proc.join("swaps");
        match fs::read(&path) {
            // The first line is the heading.
            Ok(table) => Ok(table
                .split(|&b| b == b'\n')
                .skip(1)
                .filter_map(|line| line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()))
                .map(unescape)
                .collect()),
            // A kernel without swap has no such file.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(Error::io(format!("cannot read the swap table: {e}"), e).at_path(&path)),
        }
    }

    /// Name, number and backing file of every loop device in use.
    fn loops(&self) -> Vec<(String, Number, PathBuf)> {
        let block = self.sys.join("block");
        list(&block)
            .into_iter()
            .filter_map(|name| {
                let folder = block.join(&name);
                let mut backing = fs::read(folder.join("loop/backing_file")).ok()?;
                if backing.last() == Some(&b'\n') {
                    backing.pop();
                }
                let number = fs::read_to_string(folder.join("dev")).ok()?.trim().to_owned();
                Some((name.to_string_lossy().into_owned(), number, OsString::from_vec(backing).into()))
            })
            .collect()
    }
}

/// The number of the block device at `path`, if it is one.
fn device_number(path: &Path) -> Option<Number> {
    let meta = path.is_absolute().then(|| fs::metadata(path).ok()).flatten()?;
    meta.file_type().is_block_device().then(|| number_of(meta.rdev()))
}

/// Names in a folder, sorted; nothing if it does not exist.
fn list(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

/// One line of mountinfo: "36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw".
struct Mount {
    number: Number,
    target: PathBuf,
    source: PathBuf,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        // Any number of optional words stand before the lone "-".
        let dash = words.iter().position(|word| *word == b"-")?;
        Some(Self {
            number: String::from_utf8(words.get(2)?.to_vec()).ok()?,
            target: unescape(words.get(4)?),
            source: unescape(words.get(dash + 2)?),
        })
    }
}

/// Undoes the octal escapes of mountinfo and swaps ("\040" for a space).
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..3)
            .filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    Path::new(std::ffi::OsStr::from_bytes(&bytes)).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use tempfile::TempDir;

    /// A made-up /proc and /sys in a temporary folder.
    struct Fake {
        dir: TempDir,
        kernel: Kernel,
    }

    impl Fake {
        fn new(mountinfo: &str) -> Self {
            let dir = TempDir::new().unwrap();
            let kernel = Kernel { proc: dir.path().join("proc"), sys: dir.path().join("sys") };
            let fake = Self { dir, kernel };
            fake.put("proc/self/mountinfo", mountinfo);
            fake
        }

        fn put(&self, path: &str, text: &str) -> PathBuf {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }
    }

    const TABLE: &str = "22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw\n\
        27 1 254:0 / / rw,relatime - ext4 /dev/root rw,discard\n\
        40 27 8:17 / /mnt/my\\040disk rw shared:1 master:2 - xfs /dev/sdb1 rw\n\
        41 27 7:3 / /mnt/loop rw - ext4 /dev/loop3 rw\n";

    #[test]
    fn a_mounted_device_is_found_by_its_number() {
        let fake = Fake::new(TABLE);
        assert_eq!(fake.kernel.device_held("254:0").unwrap().unwrap(), "mounted on /");
        assert_eq!(fake.kernel.device_held("8:17").unwrap().unwrap(), "mounted on /mnt/my disk");
        assert_eq!(fake.kernel.device_held("8:1").unwrap(), None, "8:17 begins like 8:1");
    }

    #[test]
    fn a_disk_is_held_by_its_partitions() {
        let fake = Fake::new(TABLE);
        fake.put("sys/dev/block/8:16/sdb1/dev", "8:17\n");
        assert_eq!(fake.kernel.device_held("8:16").unwrap(), None, "not a partition without its file");
        fake.put("sys/dev/block/8:16/sdb1/partition", "1\n");
        let held = fake.kernel.device_held("8:16").unwrap().unwrap();
        assert_eq!(held, "partitioned, and sdb1 is mounted on /mnt/my disk");
    }

    #[test]
    fn mappings_hold_a_device() {
        let fake = Fake::new(TABLE);
        fs::create_dir_all(fake.dir.path().join("sys/dev/block/8:1/holders")).unwrap();
        assert_eq!(fake.kernel.device_held("8:1").unwrap(), None);
        fake.put("sys/dev/block/8:1/holders/dm-0/x", "");
        assert_eq!(fake.kernel.device_held("8:1").unwrap().unwrap(), "used by dm-0");
    }

    #[test]
    fn a_file_is_held_by_a_mounted_loop_device_only() {
        let fake = Fake::new(TABLE);
        let image = fake.put("image file", "x");
        let other = fake.put("other", "x");
        assert_eq!(fake.kernel.held_by(&image).unwrap(), None);
        let backing = format!("{}\n", image.display());
        fake.put("sys/block/loop2/loop/backing_file", &backing);
        fake.put("sys/block/loop2/dev", "7:2\n");
        assert_eq!(fake.kernel.held_by(&image).unwrap(), None, "attached, but not mounted");
        fake.put("sys/block/loop3/loop/backing_file", &backing);
        fake.put("sys/block/loop3/dev", "7:3\n");
        let expected = "attached to /dev/loop3, which is mounted on /mnt/loop";
        assert_eq!(fake.kernel.held_by(&image).unwrap().unwrap(), expected);
        assert_eq!(fake.kernel.held_by(&other).unwrap(), None);
    }

    #[test]
    fn a_swap_file_is_held() {
        let fake = Fake::new("");
        let image = fake.put("swap file", "x");
        assert_eq!(fake.kernel.held_by(&image).unwrap(), None);
        let escaped = image.display().to_string().replace(' ', "\\040");
        let table = format!("Filename\tType\tSize\tUsed\tPriority\n{escaped}  file\t\t1048572\t0\t-2\n");
        fake.put("proc/swaps", &table);
        assert_eq!(fake.kernel.held_by(&image).unwrap().unwrap(), "in use as swap space");
    }

    #[test]
    fn what_cannot_be_told_is_an_error_not_a_no() {
        let fake = Fake::new("");
        assert_eq!(fake.kernel.held_by(Path::new("/no/such/path")).unwrap_err().kind(), Kind::NotFound);
        fs::remove_file(fake.dir.path().join("proc/self/mountinfo")).unwrap();
        let error = fake.kernel.device_held("8:1").unwrap_err();
        assert!(error.to_string().contains("cannot read the mount table"), "{error}");
    }

    #[test]
    fn escapes_are_undone_and_nothing_else() {
        let cases = [(r"a\040b\011", "a b\t"), (r"a\04", r"a\04"), (r"\777x", r"\777x"), (r"\134", "\\")];
        for (word, expected) in cases {
            assert_eq!(unescape(word.as_bytes()), Path::new(expected), "{word}");
        }
    }
}
