//! Devices over files of FUSE, for kernels with neither ublk nor NBD. These tests run in a machine of their own:
//! `cargo xtask vmtest`.

use crate::harness::{Dir, skip};
use crate::vm_attach::{FIO, Server, sh, volume};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Loop devices, folders of FUSE and names that are left.
const LEFT: &str = "losetup -n -O NAME; ls -d /run/ddsnap/*/ 2>/dev/null; grep fuse.ddsnap /proc/mounts; \
    dmsetup ls | grep -v '^No'; true";

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_loop_a_file_system_lives_on_a_file_of_the_server() {
    let dir = volume();
    let server = Server::start(&dir, "/dev/vmdisk2");
    dir.run("attach vol.sock --by fuse --wait 5").expect(2).says("--by nbd");
    assert_eq!(sh(&dir, "ddsnap attach vol.sock --by fuse"), "origin /dev/mapper/vol");
    assert_eq!(sh(&dir, "dmsetup deps -o devname vol"), "1 dependencies\t: (loop0)");
    assert_eq!(sh(&dir, "cat /sys/block/loop0/loop/dio"), "1", "nothing is kept twice");
    let size = |device: &str| sh(&dir, &format!("blockdev --getsize64 {device}"));
    assert_eq!(size("/dev/mapper/vol"), size("/dev/vmdisk1"));
    // Again is the same.
    assert_eq!(
        sh(&dir, "ddsnap attach vol.sock && losetup -n -O NAME"),
        "origin /dev/mapper/vol\n/dev/loop0"
    );
    sh(&dir, "mkfs.ext4 -q /dev/mapper/vol && mkdir m s && mount /dev/mapper/vol m && echo one >m/file");
    sh(&dir, "fsfreeze -f m && ddsnap create vol.sock 1 && fsfreeze -u m");
    sh(&dir, "echo two >m/file && sync && cp -r /usr/share/perl5 m/ && sync");
    let both = "origin /dev/mapper/vol\n1 /dev/mapper/vol(1)";
    assert_eq!(sh(&dir, "ddsnap attach vol.sock --snap 1 --by fuse"), both);
    sh(&dir, "mount -o ro,noload '/dev/mapper/vol(1)' s");
    assert_eq!(sh(&dir, "cat s/file m/file && ls s"), "one\ntwo\nfile\nlost+found");
    assert_eq!(sh(&dir, "cat /sys/block/loop1/ro && blockdev --getro '/dev/mapper/vol(1)'"), "1\n1");
    // What is in use stays, all of it; a snapshot that is attached is not deleted.
    dir.run("detach vol").expect(4).says("mounted on");
    dir.run("delete vol.sock 1").expect(4);
    sh(
        &dir,
        "umount m s && ddsnap detach 'vol(1)' && ! test -e /sys/block/loop1/loop && test -e /dev/mapper/vol",
    );
    sh(&dir, "sleep 1; ddsnap delete vol.sock 1 && ddsnap detach vol");
    assert_eq!(sh(&dir, LEFT), "");
    sh(&dir, "e2fsck -fn /dev/vmdisk1 2>&1 && ddsnap stop vol.sock && ddsnap fsck -n --data /dev/vmdisk2");
    drop(server);
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_loop_a_server_that_is_ended_is_no_error_and_one_that_is_killed_can_be_replaced() {
    let dir = volume();
    let server = Server::start(&dir, "/dev/vmdisk2");
    sh(&dir, "ddsnap create vol.sock 1 && ddsnap attach vol.sock --name data --snap 1 --by fuse");
    let past = "dd if='/dev/mapper/data(1)' bs=1M status=none | md5sum";
    sh(&dir, &format!("{past} >past"));
    let line = format!("exec {FIO} --filename=/dev/mapper/data --runtime=10 --fsync=32");
    let mut load = Command::new("bash").args(["-c", &line]).current_dir(dir.path("")).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    sh(&dir, "ddsnap stop vol.sock");
    drop(server);
    // Who uses the device would have it changed beneath.
    dir.run("write /dev/vmdisk2").expect(4).says("it is attached");
    std::thread::sleep(Duration::from_secs(2));
    assert!(load.try_wait().unwrap().is_none(), "it waits");
    let server = Server::start(&dir, "/dev/vmdisk2");
    let both = "origin /dev/mapper/data\n1 /dev/mapper/data(1)";
    assert_eq!(sh(&dir, "ddsnap attach vol.sock --by fuse"), both);
    assert!(load.wait().unwrap().success(), "fio has met an error");
    sh(&dir, &format!("{past} | cmp - past"));
    // Nobody answers for one that is killed.
    server.kill();
    let read = "timeout 20 dd if=/dev/mapper/data of=/dev/null bs=4k count=1 iflag=direct status=none";
    sh(&dir, &format!("! {read}"));
    let server = Server::start(&dir, "/dev/vmdisk2");
    assert_eq!(sh(&dir, "ddsnap attach vol.sock"), both);
    sh(&dir, read);
    sh(&dir, &format!("{past} | cmp - past"));
    server.kill();
    sh(&dir, "ddsnap detach data");
    assert_eq!(sh(&dir, LEFT), "");
    sh(&dir, "printf x | ddsnap write /dev/vmdisk2 && ddsnap fsck -n --data /dev/vmdisk2");
}

/// A small file system on a served file, mounted; its devices are made `by` a way.
fn mounted(by: &str) -> (Dir, Server) {
    let dir = Dir::new();
    sh(&dir, "truncate -s 16M vol.img && ddsnap initialize --size 64M vol.snap vol.img");
    let server = Server::start(&dir, "vol.snap");
    sh(&dir, &format!("ddsnap attach vol.sock --by {by}"));
    sh(&dir, "mkfs.ext4 -q /dev/mapper/vol && mkdir m && mount /dev/mapper/vol m");
    sh(&dir, "ddsnap resize vol.sock -o 32M 2>&1 | grep \"'ddsnap attach'\"");
    assert_eq!(sh(&dir, "blockdev --getsize64 /dev/mapper/vol"), "16777216");
    (dir, server)
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_loop_and_nbd_devices_grow_while_they_are_mounted() {
    for by in ["fuse", "nbd"] {
        let (dir, server) = mounted(by);
        sh(&dir, "ddsnap attach vol.sock");
        assert_eq!(sh(&dir, "blockdev --getsize64 /dev/mapper/vol"), "33554432", "{by}");
        sh(
            &dir,
            "umount m; e2fsck -fp /dev/mapper/vol && resize2fs /dev/mapper/vol && mount /dev/mapper/vol m",
        );
        sh(&dir, "head -c 20M /dev/urandom >m/file && sync && umount m");
        sh(&dir, "e2fsck -fn /dev/mapper/vol 2>&1 && ddsnap detach vol && ddsnap stop vol.sock");
        drop(server);
        sh(&dir, "e2fsck -fn vol.img 2>&1 && ddsnap fsck -n --data vol.snap");
    }
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_ublk_a_device_that_cannot_grow_says_so() {
    if !Path::new("/dev/ublk-control").exists() {
        return skip("the virtual machine's kernel has no ublk");
    }
    let (dir, server) = mounted("ublk");
    let told = dir.run("attach vol.sock").expect(0).stderr.clone();
    let size = || sh(&dir, "blockdev --getsize64 /dev/mapper/vol");
    match told.contains("detach it and attach it again") {
        true => assert_eq!(size(), "16777216"),
        // Linux 6.16 can.
        false => assert_eq!(size(), "33554432"),
    }
    sh(&dir, "umount m && ddsnap detach vol && ddsnap attach vol.sock");
    assert_eq!(size(), "33554432");
    sh(&dir, "ddsnap detach vol && ddsnap stop vol.sock");
    drop(server);
}
