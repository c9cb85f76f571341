//! The kernel of the guest: Debian's package user-mode-linux, fetched by apt and kept in the user's cache, or a
//! binary that somebody has built and may have put there, too.

use crate::shell::has;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What tests of block devices need, where the kernel has it as a module.
const MODULES: [&str; 10] =
    ["overlay", "dm-mod", "dm-delay", "dm-flakey", "dm-log-writes", "loop", "nbd", "ext4", "xfs", "fuse"];

/// Debian's package, and where it is kept.
const PACKAGED: &str = "user-mode-linux";

/// Something that boots.
pub struct Kernel {
    /// The program.
    pub image: PathBuf,
    /// A folder with `lib/modules`, unless everything is built in.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// The kernel `image`, with everything built in.
    pub fn built(image: &Path) -> Result<Self> {
        let image = image.canonicalize().with_context(|| format!("no kernel at {}", image.display()))?;
        Ok(Self { image, modules: None })
    }

    /// Those that somebody has built and put into the cache, as `NAME/linux`.
    pub fn cached() -> Result<Vec<Self>> {
        let mut folders: Vec<_> =
            std::fs::read_dir(cache()?).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        folders.sort();
        folders.retain(|folder| !folder.ends_with(PACKAGED) && folder.join("linux").is_file());
        folders.iter().map(|folder| Self::built(&folder.join("linux"))).collect()
    }

    /// Debian's; fetched where it is not there yet.
    pub fn packaged() -> Result<Self> {
        let folder = cache()?.join(PACKAGED);
        if !folder.join("linux").exists() {
            fetch(&folder)?;
        }
        Ok(Self { image: folder.join("linux"), modules: Some(folder) })
    }

    /// The command of the guest that loads what it needs.
    pub fn modprobe(&self) -> String {
        let Some(folder) = &self.modules else { return String::new() };
        format!("modprobe -d '{}' -a {}", folder.display(), MODULES.join(" "))
    }
}

fn cache() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("ddsnap-vm"))
}

/// Fetches and unpacks the package; the folder appears whole.
fn fetch(folder: &Path) -> Result<()> {
    for (program, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("depmod", "kmod")] {
        if !has(program) {
            bail!("{program} is not installed (package {package})");
        }
    }
    let parent = folder.parent().context("no folder for kernels")?;
    std::fs::create_dir_all(parent)?;
    let temporary = tempfile::tempdir_in(parent)?;
    let work = temporary.path();
    let download = || {
        let mut get = Command::new("apt-get");
        get.args(["-q", "-o", "APT::Sandbox::User=root", "download", PACKAGED]).current_dir(work);
        quietly(&mut get)
    };
    if download().is_err() {
        // A fresh machine has no lists yet.
        quietly(Command::new("apt-get").args(["-q", "update"]))?;
        download()?;
    }
    let package = std::fs::read_dir(work)?.flatten().map(|entry| entry.path());
    let package = package.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
    let package = package.context("apt-get has brought no package")?;
    let root = work.join("root");
    quietly(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
    let made = work.join("made");
    std::fs::create_dir_all(made.join("lib"))?;
    std::fs::rename(root.join("usr/lib/uml/modules"), made.join("lib/modules"))?;
    std::fs::rename(root.join("usr/bin/linux.uml"), made.join("linux"))?;
    for release in std::fs::read_dir(made.join("lib/modules"))?.flatten() {
        quietly(Command::new("/usr/sbin/depmod").arg("-b").arg(&made).arg(release.file_name()))?;
    }
    match std::fs::rename(&made, folder) {
        // Somebody else was faster.
        Err(_) if folder.join("linux").exists() => Ok(()),
        renamed => renamed.context("cannot keep the kernel"),
    }
}

fn quietly(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run `{command:?}`"))?;
    if !output.status.success() {
        bail!("`{command:?}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
