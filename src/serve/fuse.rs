//! FUSE: exports as files, which loop devices, virtual machines and `dd` take.
//!
//! Files are read and written directly, so that nothing is kept twice and nobody reads what is outdated. A name with a
//! slash lies in a folder. Names come and go with snapshots; what is open stays.

use super::export::{Export, Exports};
use super::front::Serve;
use crate::error::{Error, Kind, Result};
use crate::units::index;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Threads that serve requests.
const THREADS: usize = 8;
/// Bytes of one write, and of one read, at most.
const PIECE: u32 = 1 << 20;
/// Answers are not kept: snapshots come and go.
const TTL: Duration = Duration::ZERO;
/// The folder that is mounted.
const ROOT: u64 = 1;
/// `fallocate`: the size stays.
const KEEP_SIZE: i32 = 1;
/// `fallocate`: zeroes.
const ZERO_RANGE: i32 = 16;

/// Exports that are mounted at a folder.
pub struct Fuse {
    tree: Arc<Tree>,
    folder: PathBuf,
    session: Mutex<Option<BackgroundSession>>,
    stopped: Mutex<bool>,
    stop: Condvar,
}

impl Fuse {
    /// Mounts `exports` at `folder`: only this process's user sees them. `read_only` takes no writes at all.
    ///
    /// # Errors
    /// As [`ensure_empty_folder`]; `Kind::Unsupported` where FUSE is not to be had; `Kind::Io`.
    pub fn mount(exports: Arc<dyn Exports>, folder: &Path, read_only: bool) -> Result<Self> {
        let folder = std::fs::canonicalize(folder)
            .map_err(|error| Error::io(format!("cannot mount there: {error}"), error).at_path(folder))?;
        ensure_empty_folder(&folder)?;
        let tree = Arc::new(Tree::new(exports));
        let mut config = Config::default();
        let access = if read_only { MountOption::RO } else { MountOption::RW };
        let name = |text: &str| text.to_owned();
        config.mount_options = vec![
            MountOption::FSName(name("ddsnap")),
            MountOption::Subtype(name("ddsnap")),
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            MountOption::DefaultPermissions,
            access,
        ];
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
                let what = format!("cannot mount there: {error}");
                Error::new(Kind::Unsupported, what)
                    .at_path(&folder)
                    .hint("this needs /dev/fuse, and root or fusermount3 (package fuse3)")
            }
            _ => Error::io(format!("cannot mount there: {error}"), error).at_path(&folder),
        };
        let session = Session::new(Front(Arc::clone(&tree)), &folder, &config).map_err(failed)?;
        let session = session.spawn().map_err(failed)?;
        let (session, stopped) = (Mutex::new(Some(session)), Mutex::new(false));
        Ok(Self { tree, folder, session, stopped, stop: Condvar::new() })
    }

    /// True if somebody has unmounted it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        lock(&self.session).as_ref().is_none_or(|session| session.guard.is_finished())
    }
}

/// Refuses to mount where that would hide something.
///
/// # Errors
/// `Kind::NotFound` if there is nothing; `Kind::Usage` if it is no folder, or not empty; `Kind::Io`.
pub fn ensure_empty_folder(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotADirectory => Error::new(Kind::Usage, "this is no folder to mount at"),
        _ => Error::io(format!("cannot mount there: {error}"), error),
    });
    match entries.map_err(|error| error.at_path(folder))?.next() {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::Usage, "the folder is not empty: what lies in it would be hidden")
            .at_path(folder)
            .hint("name an empty folder")),
    }
}

impl Serve for Fuse {
    /// Whoever unmounts it by hand can have his reasons: that is no end.
    fn run(&self) -> Result<()> {
        let mut stopped = lock(&self.stopped);
        while !*stopped {
            stopped = self.stop.wait(stopped).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn stop(&self) {
        *lock(&self.stopped) = true;
        self.stop.notify_all();
        // Whoever still has a file open gets errors from now on.
        self.tree.close();
        let Some(session) = lock(&self.session).take() else { return };
        if session.guard.is_finished() {
            // Unmounted by somebody: what is mounted there now is another's, which dropping it would unmount. fuser
            // 0.18 takes a dead connection for a mounted one. This leaks a descriptor.
            std::mem::forget(session);
        } else if session.umount_and_join().is_err() {
            // In use. The name goes away now, the rest with the last user.
            let _ = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an inode stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// The names that begin so, up to the slash.
    Folder(String),
    File(String),
}

/// Names as folders and files, and what is open of them.
struct Tree {
    /// `None` once it is closed.
    exports: Mutex<Option<Arc<dyn Exports>>>,
    /// Inodes by their number from [`ROOT`] on. A name keeps its number.
    nodes: Mutex<Vec<Node>>,
    open: Mutex<Open>,
    begun: SystemTime,
}

#[derive(Default)]
struct Open {
    next: u64,
    files: BTreeMap<u64, Arc<dyn Export>>,
}

impl Tree {
    fn new(exports: Arc<dyn Exports>) -> Self {
        Self {
            exports: Mutex::new(Some(exports)),
            nodes: Mutex::new(vec![Node::Folder(String::new())]),
            open: Mutex::default(),
            begun: SystemTime::now(),
        }
    }

    fn close(&self) {
        drop(lock(&self.exports).take());
        drop(std::mem::take(&mut lock(&self.open).files));
    }

    fn exports(&self) -> std::result::Result<Arc<dyn Exports>, Errno> {
        lock(&self.exports).clone().ok_or(Errno::EIO)
    }

    fn node(&self, ino: INodeNo) -> std::result::Result<Node, Errno> {
        let number = ino.0.checked_sub(ROOT).and_then(|number| usize::try_from(number).ok());
        number.and_then(|number| lock(&self.nodes).get(number).cloned()).ok_or(Errno::ENOENT)
    }

    /// The number of a node, a new one if it has none.
    fn number(&self, node: &Node) -> INodeNo {
        let mut nodes = lock(&self.nodes);
        let at = nodes.iter().position(|known| known == node).unwrap_or_else(|| {
            nodes.push(node.clone());
            nodes.len() - 1
        });
        INodeNo(ROOT + at as u64)
    }

    /// What lies in a folder: names there, and what they are.
    fn children(&self, folder: &str) -> std::result::Result<BTreeMap<String, Node>, Errno> {
        let mut children = BTreeMap::new();
        for (name, _) in self.exports()?.names() {
            let Some(rest) = name.strip_prefix(folder) else { continue };
            match rest.split_once('/') {
                Some((below, _)) => {
                    children.insert(below.to_owned(), Node::Folder(format!("{folder}{below}/")));
                }
                None => {
                    children.insert(rest.to_owned(), Node::File(name));
                }
            }
        }
        Ok(children)
    }

    fn attributes(&self, node: &Node) -> std::result::Result<FileAttr, Errno> {
        let (kind, perm, size) = match node {
            Node::Folder(_) => (FileType::Directory, 0o500, 0),
            Node::File(name) => {
                let (size, is_read_only) = self.exports()?.look(name).map_err(|error| number(&error))?;
                (FileType::RegularFile, if is_read_only { 0o400 } else { 0o600 }, size)
            }
        };
        Ok(FileAttr {
            ino: self.number(node),
            size,
            blocks: size.div_ceil(512),
            atime: self.begun,
            mtime: self.begun,
            ctime: self.begun,
            crtime: self.begun,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn open(&self, ino: INodeNo, flags: OpenFlags) -> std::result::Result<FileHandle, Errno> {
        let Node::File(name) = self.node(ino)? else { return Err(Errno::EISDIR) };
        let export = self.exports()?.open(&name).map_err(|error| number(&error))?;
        if export.is_read_only() && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return Err(Errno::EROFS);
        }
        let mut open = lock(&self.open);
        open.next += 1;
        let handle = open.next;
        open.files.insert(handle, export);
        Ok(FileHandle(handle))
    }

    fn file(&self, handle: FileHandle) -> std::result::Result<Arc<dyn Export>, Errno> {
        lock(&self.open).files.get(&handle.0).cloned().ok_or(Errno::EIO)
    }

    fn read(&self, handle: FileHandle, offset: u64, size: u32) -> std::result::Result<Vec<u8>, Errno> {
        let export = self.file(handle)?;
        let left = export.size().saturating_sub(offset);
        let mut data = vec![0; index(left.min(u64::from(size)))];
        export.read(offset, &mut data).map_err(|error| number(&error))?;
        Ok(data)
    }

    fn write(&self, handle: FileHandle, offset: u64, data: &[u8]) -> std::result::Result<u32, Errno> {
        let export = self.file(handle)?;
        // A file that is a device has the size it has.
        let left = export.size().saturating_sub(offset);
        let data = data.get(..index(left.min(data.len() as u64))).unwrap_or(data);
        if data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        export.write(offset, data).map_err(|error| number(&error))?;
        Ok(u32::try_from(data.len()).unwrap_or(PIECE))
    }
}

/// What the kernel is told of an error.
fn number(error: &Error) -> Errno {
    match error.kind() {
        Kind::NotFound => Errno::ENOENT,
        Kind::Usage => Errno::EINVAL,
        Kind::NoSpace => Errno::ENOSPC,
        Kind::Refused => Errno::EROFS,
        Kind::Busy => Errno::EBUSY,
        _ => Errno::EIO,
    }
}

/// The kernel's side.
struct Front(Arc<Tree>);

impl Filesystem for Front {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Where the kernel wants less, it gets less.
        if let Err(most) = config.set_max_write(PIECE) {
            let _ = config.set_max_write(most);
        }
        let _ = config.set_max_background(64);
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    // Somebody has unmounted it: nothing is used any more.
    fn destroy(&mut self) {
        self.0.close();
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let look = || {
            let Node::Folder(folder) = self.0.node(parent)? else { return Err(Errno::ENOTDIR) };
            let children = self.0.children(&folder)?;
            let node = name.to_str().and_then(|name| children.get(name)).ok_or(Errno::ENOENT)?;
            self.0.attributes(node)
        };
        match look() {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(number) => reply.error(number),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.node(ino).and_then(|node| self.0.attributes(&node)) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(number) => reply.error(number),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Times are nobody's business here. What is written with `dd` or `cp` is not cut before.
        let is_kept = |attributes: &FileAttr| size.is_none_or(|size| size == attributes.size || size == 0);
        let change = mode.is_some() || uid.is_some() || gid.is_some();
        match self.0.node(ino).and_then(|node| self.0.attributes(&node)) {
            Ok(attributes) if is_kept(&attributes) && !change => reply.attr(&TTL, &attributes),
            Ok(_) => reply.error(Errno::EPERM),
            Err(number) => reply.error(number),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.0.open(ino, flags) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
            Err(number) => reply.error(number),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.read(handle, offset, size) {
            Ok(data) => reply.data(&data),
            Err(number) => reply.error(number),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(handle, offset, data) {
            Ok(length) => reply.written(length),
            Err(number) => reply.error(number),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is held back, and whoever closes a file has not asked for more.
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        match self.0.file(handle).and_then(|export| export.flush().map_err(|error| number(&error))) {
            Ok(()) => reply.ok(),
            Err(number) => reply.error(number),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // A hole must read as zeroes, which a discard does not promise; and zeroes where somebody only discards would
        // fill the store. So there are no holes, and the loop driver writes zeroes itself where it needs them.
        if mode & !KEEP_SIZE != ZERO_RANGE {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let zero =
            |export: Arc<dyn Export>| export.write_zeroes(offset, length).map_err(|error| number(&error));
        match self.0.file(handle).and_then(zero) {
            Ok(()) => reply.ok(),
            Err(number) => reply.error(number),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        drop(lock(&self.0.open).files.remove(&handle.0));
        reply.ok();
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let list = || {
            let Node::Folder(folder) = self.0.node(ino)? else { return Err(Errno::ENOTDIR) };
            self.0.children(&folder)
        };
        let children = match list() {
            Ok(children) => children,
            Err(number) => return reply.error(number),
        };
        let own = [".", ".."].map(|name| (ino, FileType::Directory, name.to_owned()));
        let children = children.into_iter().map(|(name, node)| {
            let kind =
                if matches!(node, Node::Folder(_)) { FileType::Directory } else { FileType::RegularFile };
            (self.0.number(&node), kind, name)
        });
        for (at, (ino, kind, name)) in own.into_iter().chain(children).enumerate().skip(index(offset)) {
            if reply.add(ino, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
