#!/bin/sh
# First process of the guest, whose root is the host's, read-only. Few processes: each costs 15 ms in there.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
bail() { echo "init: $*" >&2; exit 1; }      # the end of the first process is the end of the machine
mount -t proc proc /proc
mount -t sysfs sysfs /sys
@MODPROBE@
# What is written lies in memory, over the host's files.
mount -t tmpfs tmpfs /mnt || bail "no tmpfs"
mkdir /mnt/up /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work root /mnt/root || bail "no overlay"
cd /mnt/root || bail "no root"
mkdir -p proc sys dev run mnt
mount -t devtmpfs devtmpfs dev
mkdir -p dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t devpts devpts dev/pts
mount -t tmpfs tmpfs run
# Shared for real; in step, for what the host reads from it.
mkdir -p ./@SHARE@
mount -t hostfs -o sync,@SHARE@ none ./@SHARE@ || bail "no hostfs"
pivot_root . mnt || bail "no pivot_root"
mount --move mnt/proc proc
mount --move mnt/sys sys
exec chroot . /bin/sh @SHARE@/command.sh </dev/null >>@SHARE@/console 2>&1
