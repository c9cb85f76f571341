//! Who holds a device, asked of the real kernel.

use crate::harness::{Dir, skip};
use ddsnap::block::WriteAt;
use ddsnap::block::file::FileWriter;
use ddsnap::block::mount::held_by;
use ddsnap::error::Kind;
use std::path::Path;

#[test]
fn a_loop_device_with_a_mounted_file_system_is_held() {
    let dir = Dir::new();
    dir.write("image", &vec![0; 16 << 20]);
    let made = dir.shell("mkfs.ext4 -q image && mkdir point && losetup -f --show image");
    if made.code != Some(0) {
        return skip("no leave to make a loop device, or no mkfs.ext4");
    }
    let device = made.text().trim().to_owned();
    let (device_path, image, point) = (Path::new(&device), dir.path("image"), dir.path("point"));
    let attached = (held_by(device_path), held_by(&image));
    let mounted = dir.shell(&format!("mount {device} point"));
    let (of_device, of_image) = (held_by(device_path), held_by(&image));
    let exclusive = FileWriter::open(device_path);
    dir.shell("umount point");
    let again = FileWriter::open(device_path);
    dir.shell(&format!("losetup -d {device}")).expect(0);
    assert_eq!((attached.0.unwrap(), attached.1.unwrap()), (None, None));
    if mounted.code != Some(0) {
        return skip("no leave to mount a file system");
    }
    let held = format!("mounted on {}", point.canonicalize().unwrap().display());
    assert_eq!(of_device.unwrap().unwrap(), held);
    assert_eq!(of_image.unwrap().unwrap(), format!("attached to {device}, which is {held}"));
    assert_eq!(exclusive.unwrap_err().kind(), Kind::Busy);
    let again = again.unwrap();
    assert!(again.is_device());
    assert_eq!(again.set_size(1).unwrap_err().kind(), Kind::Mismatch);
}
