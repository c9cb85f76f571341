//! Devices of ublk. These tests run in a machine of their own, and count as skipped where its kernel has none:
//! `cargo xtask vmtest` takes one that has where somebody has put it into its cache.

use crate::harness::{Dir, skip};
use crate::vm_attach::{FIO, Server, sh, volume};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A volume, if this kernel has ublk.
fn volume_for_ublk() -> Option<Dir> {
    if Path::new("/dev/ublk-control").exists() {
        return Some(volume());
    }
    skip("the virtual machine's kernel has no ublk");
    None
}

/// Waits for `path` to be there, or to be gone.
fn wait_for(path: &str, is_there: bool) {
    let begun = Instant::now();
    while Path::new(path).exists() != is_there {
        assert!(begun.elapsed() < Duration::from_secs(60), "{path}: {is_there} was awaited");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn load(dir: &Dir, device: &str, secs: u32) -> Child {
    let line = format!("exec {FIO} --filename={device} --runtime={secs} --fsync=32");
    Command::new("bash").args(["-c", &line]).current_dir(dir.path("")).spawn().unwrap()
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_ublk_a_file_system_lives_on_it() {
    let Some(dir) = volume_for_ublk() else { return };
    let server = Server::start(&dir, "/dev/vmdisk2");
    // Where nobody asks for it, only on kernels that outlive a killed server.
    sh(
        &dir,
        "case $(uname -r) in 6.[789].* | 6.1[0-4].*) n=nbd0;; *) n=ublkb0;; esac; ddsnap attach vol.sock && \
        test \"$(dmsetup deps -o devname vol)\" = \"$(printf '1 dependencies\\t: (%s)' $n)\" && ddsnap detach vol",
    );
    assert_eq!(sh(&dir, "ddsnap attach vol.sock --by ublk"), "origin /dev/mapper/vol");
    assert_eq!(sh(&dir, "dmsetup deps -o devname vol"), "1 dependencies\t: (ublkb0)");
    assert_eq!(sh(&dir, "blockdev --getsize64 /dev/ublkb0"), sh(&dir, "blockdev --getsize64 /dev/vmdisk1"));
    assert_eq!(sh(&dir, "cat /sys/block/ublkb0/queue/{write_cache,fua}"), "write back\n1");
    // Again is the same.
    assert_eq!(sh(&dir, "ddsnap attach vol.sock && ls /dev/ublkb*"), "origin /dev/mapper/vol\n/dev/ublkb0");
    sh(&dir, "mkfs.ext4 -q /dev/mapper/vol && mkdir m s && mount /dev/mapper/vol m && echo one >m/file");
    sh(&dir, "fsfreeze -f m && ddsnap create vol.sock 1 && fsfreeze -u m");
    sh(&dir, "echo two >m/file && sync && cp -r /usr/share/perl5 m/ && sync && fstrim m");
    assert_eq!(
        sh(&dir, "ddsnap attach vol.sock --by ublk --snap 1"),
        "origin /dev/mapper/vol\n1 /dev/mapper/vol(1)"
    );
    sh(&dir, "mount -o ro,noload '/dev/mapper/vol(1)' s");
    assert_eq!(sh(&dir, "cat s/file m/file && ls s"), "one\ntwo\nfile\nlost+found");
    assert_eq!(sh(&dir, "cat /sys/block/ublkb1/ro && blockdev --getro '/dev/mapper/vol(1)'"), "1\n1");
    // What is in use stays, all of it; a snapshot that is attached is not deleted.
    dir.run("detach vol").expect(4).says("mounted on");
    dir.run("delete vol.sock 1").expect(4);
    sh(&dir, "umount m s && ddsnap detach 'vol(1)' && ! test -e /dev/ublkb1 && test -e /dev/ublkb0");
    sh(
        &dir,
        "ddsnap delete vol.sock 1 && ddsnap detach vol && ! ls /dev/ublkb* /dev/ublkc* /dev/mapper/vol*",
    );
    sh(&dir, "e2fsck -fn /dev/vmdisk1 2>&1 && ddsnap stop vol.sock && ddsnap fsck -n --data /dev/vmdisk2");
    drop(server);
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_ublk_reads_writes_flushes_and_zeroes() {
    let Some(dir) = volume_for_ublk() else { return };
    let server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    wait_for("/dev/ublkb0", true);
    sh(&dir, "head -c 8M /dev/urandom >data");
    // In one piece that the kernel cuts, past its cache; and made durable each time.
    sh(&dir, "dd if=data of=/dev/ublkb0 bs=8M oflag=direct status=none");
    sh(&dir, "cmp -n 8388608 data /dev/ublkb0 && cmp -n 8388608 data /dev/vmdisk1");
    sh(&dir, "ddsnap create vol.sock 7 && cp data before");
    sh(&dir, "dd if=/dev/urandom of=data bs=12k count=9 seek=5 conv=notrunc status=none");
    sh(&dir, "dd if=data of=/dev/ublkb0 bs=12k skip=5 seek=5 count=9 oflag=direct,dsync status=none");
    // Zeroes are zeroes; what is discarded stays as it is.
    sh(&dir, "dd if=/dev/zero of=data bs=64k count=3 seek=20 conv=notrunc status=none");
    sh(&dir, "blkdiscard -z -o $((20 * 65536)) -l $((3 * 65536)) /dev/ublkb0");
    sh(&dir, "blkdiscard -f -o 4M -l 1M /dev/ublkb0 && blockdev --flushbufs /dev/ublkb0");
    sh(&dir, "cmp -n 8388608 data /dev/ublkb0 && cmp data <(ddsnap read vol.sock origin --length 8M)");
    sh(&dir, "cmp before <(ddsnap read vol.sock 7 --length 8M)");
    // One of a snapshot cannot be written.
    sh(
        &dir,
        "ddsnap attach vol.sock --by ublk --name v --snap 7 && cmp -n 8388608 before '/dev/mapper/v(7)'",
    );
    sh(&dir, "! dd if=data of=/dev/ublkb1 bs=4k count=1 oflag=direct status=none");
    // The end, and nothing past it.
    sh(&dir, "dd if=data of=/dev/ublkb0 bs=4k count=1 seek=65535 oflag=direct status=none");
    sh(&dir, "! dd if=data of=/dev/ublkb0 bs=4k count=1 seek=65536 oflag=direct status=none");
    // Many at a time, with what was written checked.
    assert!(load(&dir, "/dev/ublkb0 --iodepth=1 --numjobs=1", 3).wait().unwrap().success());
    let many = "fio --name=v --rw=randrw --bs=4k-256k --size=32M --direct=1 --ioengine=libaio --iodepth=64 \
        --verify=crc32c --verify_fatal=1 --filename=/dev/ublkb0 --output=/dev/null";
    sh(&dir, many);
    sh(&dir, "cmp -n 8388608 before '/dev/mapper/v(7)' && ddsnap detach v && ddsnap stop vol.sock");
    drop(server);
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2 && ! ls /dev/ublkb* /dev/ublkc*");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_ublk_a_server_that_is_killed_and_started_again_is_no_error() {
    let Some(dir) = volume_for_ublk() else { return };
    let server = Server::start(&dir, "/dev/vmdisk2");
    sh(&dir, "ddsnap create vol.sock 1 && ddsnap attach vol.sock --by ublk --name data --snap 1");
    let mut load = load(&dir, "/dev/mapper/data", 14);
    std::thread::sleep(Duration::from_secs(2));
    server.kill();
    std::thread::sleep(Duration::from_secs(2));
    assert!(load.try_wait().unwrap().is_none(), "it waits");
    let server = Server::start(&dir, "/dev/vmdisk2");
    assert_eq!(sh(&dir, "ddsnap attach vol.sock"), "origin /dev/mapper/data\n1 /dev/mapper/data(1)");
    std::thread::sleep(Duration::from_secs(2));
    // Ended in peace, too; and the next one takes up what waits by itself.
    sh(&dir, "ddsnap stop vol.sock");
    drop(server);
    let server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    sh(&dir, "cmp <(dd if='/dev/mapper/data(1)' bs=1M status=none) <(ddsnap read vol.sock 1)");
    assert!(load.wait().unwrap().success(), "fio has met an error");
    assert_eq!(sh(&dir, "ls /dev/ublkb*"), "/dev/ublkb0\n/dev/ublkb1");
    // A server that does not come back: the devices can still be taken away.
    server.kill();
    sh(&dir, "ddsnap detach data && ! ls /dev/mapper/data* /dev/ublkb* /dev/ublkc*");
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_ublk_servers_that_end_under_load_lose_nothing() {
    let Some(dir) = volume_for_ublk() else { return };
    let mut server = Server::start(&dir, "/dev/vmdisk2");
    sh(&dir, "ddsnap attach vol.sock --by ublk --name data");
    // Many at a time: the kernel takes back what the server waits for while more comes.
    let line = "exec fio --name=v --rw=randrw --bs=4k-64k --size=32M --direct=1 --ioengine=libaio --iodepth=16 \
        --verify=crc32c --verify_backlog=64 --verify_fatal=1 --time_based --runtime=14 --output=/dev/null \
        --filename=/dev/mapper/data";
    let mut load = Command::new("bash").args(["-c", line]).current_dir(dir.path("")).spawn().unwrap();
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(700));
        sh(&dir, "ddsnap stop vol.sock");
        drop(server);
        server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    }
    assert!(load.wait().unwrap().success(), "fio has met an error");
    sh(&dir, "ddsnap detach data && ddsnap stop vol.sock && ! ls /dev/ublkb* /dev/ublkc*");
    drop(server);
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_ublk_many_small_reads_and_servers_that_end_meanwhile() {
    let Some(dir) = volume_for_ublk() else { return };
    let mut server = Server::start(&dir, "/dev/vmdisk2");
    sh(&dir, "ddsnap attach vol.sock --by ublk --name data");
    let fio = "fio --name=v --bs=4k --size=32M --direct=1 --ioengine=libaio --iodepth=32 --verify=crc32c \
        --verify_fatal=1 --filename=/dev/mapper/data --output=/dev/null";
    sh(&dir, &format!("{fio} --rw=write --do_verify=0"));
    let line = format!("exec {fio} --rw=randread --time_based --runtime=12");
    let mut load = Command::new("bash").args(["-c", &line]).current_dir(dir.path("")).spawn().unwrap();
    for round in 0..8 {
        std::thread::sleep(Duration::from_millis(600));
        // Most of what is read lies in the cache of the system else.
        sh(&dir, "echo 1 >/proc/sys/vm/drop_caches");
        match round % 4 {
            3 => server.kill(),
            _ => {
                sh(&dir, "ddsnap stop vol.sock");
                drop(server);
            }
        }
        server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    }
    assert!(load.wait().unwrap().success(), "fio has met an error");
    // What is held is newer than what the origin has.
    let mixed = fio.replace("--bs=4k", "--bs=512-8k");
    for tag in 1..4 {
        sh(&dir, &format!("ddsnap create vol.sock {tag} && {mixed} --rw=randrw --verify_backlog=16"));
    }
    sh(&dir, "ddsnap detach data && ddsnap stop vol.sock && ! ls /dev/ublkb* /dev/ublkc*");
    drop(server);
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_ublk_reads_that_fail_are_told_and_work_again() {
    let Some(dir) = volume_for_ublk() else { return };
    let sectors: u64 = sh(&dir, "blockdev --getsz /dev/vmdisk1").parse().unwrap();
    let (good, rest) = (format!("0 {sectors} linear /dev/vmdisk1 0"), sectors - 2056);
    let bad = format!("0 2048 linear /dev/vmdisk1 0\n2048 8 error\n2056 {rest} linear /dev/vmdisk1 2056");
    let swap = |table: &str| {
        let swap = format!("printf '{table}\n' | dmsetup load under && dmsetup resume under");
        sh(&dir, &format!("{swap} && echo 1 >/proc/sys/vm/drop_caches"));
    };
    sh(&dir, &format!("dmsetup create under --table '{good}' && head -c 2M /dev/urandom >data"));
    sh(&dir, "ddsnap initialize -y /dev/vmdisk2 /dev/mapper/under");
    let server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    wait_for("/dev/ublkb0", true);
    sh(&dir, "dd if=data of=/dev/ublkb0 bs=1M oflag=direct status=none && blockdev --flushbufs /dev/ublkb0");
    let read = |block: u32| format!("dd if=/dev/ublkb0 bs=4k skip={block} count=1 iflag=direct status=none");
    let compare =
        |block: u32| format!("cmp <({}) <(dd if=data bs=4k skip={block} count=1 status=none)", read(block));
    swap(&bad);
    sh(&dir, &format!("! {} && {} && {}", read(256), compare(255), compare(257)));
    sh(&dir, &format!("grep 'reads fail' {}", Server::SAYS));
    swap(&good);
    sh(&dir, &format!("{} && grep 'reads work again' {}", compare(256), Server::SAYS));
    sh(&dir, "ddsnap stop vol.sock && dmsetup remove under");
    drop(server);
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_ublk_what_nobody_holds_ends_with_its_server() {
    let Some(dir) = volume_for_ublk() else { return };
    let server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    wait_for("/dev/ublkb0", true);
    sh(&dir, "mkfs.ext4 -q /dev/ublkb0 && mkdir m && ddsnap stop vol.sock");
    drop(server);
    wait_for("/dev/ublkc0", false);
    let server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    wait_for("/dev/ublkb0", true);
    sh(&dir, "mount /dev/ublkb0 m && echo one >m/file && sync && ddsnap stop vol.sock");
    drop(server);
    // What is mounted waits.
    sh(&dir, "test -e /dev/ublkb0 && echo two >>m/file");
    let mut sync = Command::new("sync").arg(dir.path("m")).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(sync.try_wait().unwrap().is_none(), "it waits");
    let server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    assert!(sync.wait().unwrap().success());
    // Without a name, by the socket, and by its own path where a server tells whose it is.
    dir.run("detach vol.sock").expect(4).says("mounted on");
    sh(&dir, "cat m/file && umount m && ddsnap detach vol.sock && ! ls /dev/ublkb* /dev/ublkc*");
    sh(&dir, "ddsnap stop vol.sock");
    drop(server);
    sh(&dir, "e2fsck -fn /dev/vmdisk1 2>&1 && ddsnap fsck -n --data /dev/vmdisk2");
    // Killed before anybody used it: found again. The kernel has looked for partitions by then: this one may not
    // outlive that a server is killed meanwhile.
    let server = Server::start(&dir, "/dev/vmdisk2 --ublk");
    sh(
        &dir,
        "for moment in $(seq 600); do test $(grep -c 'origin is' server.err) = 4 && break; sleep 0.1; done",
    );
    wait_for("/dev/ublkb0", true);
    server.kill();
    let server = Server::start(&dir, "/dev/vmdisk2");
    assert_eq!(sh(&dir, "ddsnap attach vol.sock && ls /dev/ublkb*"), "origin /dev/mapper/vol\n/dev/ublkb0");
    sh(&dir, "ddsnap detach vol && ddsnap stop vol.sock && ! ls /dev/ublkb*");
    drop(server);
}
