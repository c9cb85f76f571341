#!/bin/bash
# A monitor and an OSD in memory on 127.0.0.1, and diffs to and from them. Usage: interop.sh DDSNAP
set -euo pipefail
ddsnap=$1
dir=$(mktemp -d)
cd "$dir"
finish() {
    status=$?
    for pid in osd.0.pid mon.a.pid; do
        if [ -f "$dir/$pid" ]; then kill "$(cat "$dir/$pid")" 2>/dev/null || true; fi
    done
    [ $status = 0 ] && rm -rf "$dir" || echo "failed; logs are in $dir"
    exit $status
}
trap finish EXIT

fsid=$(cat /proc/sys/kernel/random/uuid)
port=$((20000 + RANDOM % 20000))
cat > ceph.conf <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$port]
mon initial members = a
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
mon allow pool size one = true
mon data avail crit = 1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
run dir = $dir
admin socket = $dir/\$name.\$pid.asok
log file = $dir/\$name.log
pid file = $dir/\$name.pid
mon data = $dir/mon
osd data = $dir/osd
CONF
rbd() { timeout 60 env rbd -c "$dir/ceph.conf" "$@"; }
ceph() { timeout 60 env ceph -c "$dir/ceph.conf" "$@"; }
{
    monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$port]" monmap
    ceph-mon -c ceph.conf -i a --mkfs --monmap monmap
    ceph-mon -c ceph.conf -i a
    # Without a uuid: an OSD in memory has none, and with another it is never let in.
    ceph osd create
    mkdir osd
    ceph-osd -c ceph.conf -i 0 --mkfs
    ceph-osd -c ceph.conf -i 0
    ceph osd pool create rbd 8
} > setup.log 2>&1

equal() { cmp "$1" "$2"; echo "ok: $3"; }
head -c 20000000 /dev/urandom > data.img
truncate -s 40000000 data.img
"$ddsnap" initialize -q --size 256M data.snap data.img
"$ddsnap" create data.snap 1 --name monday
head -c 3000000 /dev/urandom | "$ddsnap" write data.snap --offset 1234567
head -c 5000000 /dev/zero | "$ddsnap" write data.snap --offset 8000001
"$ddsnap" create data.snap 2
head -c 70000 /dev/urandom | "$ddsnap" write data.snap --offset 39000000
"$ddsnap" create data.snap 3
for snap in 1 2 3; do "$ddsnap" export data.snap $snap $snap.img; done

# Ours to Ceph.
rbd create --size 1M rbd/v
"$ddsnap" create-delta --format rbd data.snap 1 - | rbd import-diff --no-progress - rbd/v
rm -f out; rbd export --no-progress rbd/v out
equal out 1.img "a whole volume into an image, which grows"
"$ddsnap" create-delta --format rbd data.snap 1 2 -o 12.diff
rbd import-diff --no-progress 12.diff rbd/v
rm -f out; rbd export --no-progress rbd/v out
equal out 2.img "a diff between two snapshots"
"$ddsnap" create-delta --format rbd data.snap 2 3 -o 23.diff
rbd merge-diff --no-progress 12.diff 23.diff 13.diff
rbd create --size 1M rbd/m
"$ddsnap" create-delta --format rbd data.snap 1 - | rbd import-diff --no-progress - rbd/m
rbd import-diff --no-progress 13.diff rbd/m
rm -f out; rbd export --no-progress rbd/m out
equal out 3.img "two of our diffs, merged by Ceph"

# Ceph's to us.
rbd import-diff --no-progress 23.diff rbd/v
cp 1.img t.img
rbd export-diff --no-progress --from-snap monday rbd/v@3 - > c13.diff
"$ddsnap" apply-delta -q --force - t.img < c13.diff
equal t.img 3.img "a diff of Ceph's onto a file"
: > t.img
rbd export-diff --no-progress rbd/v@2 - | "$ddsnap" apply-delta - t.img
equal t.img 2.img "a whole image of Ceph's onto an empty file"
cp 1.img r.img
"$ddsnap" initialize -q --size 256M r.snap r.img
"$ddsnap" create r.snap 9
"$ddsnap" apply-delta -q --force c13.diff r.snap
equal r.img 3.img "a diff of Ceph's into a volume"
"$ddsnap" read r.snap 9 > out
equal out 1.img "whose snapshots stay"
rbd resize --no-progress --size 20M --allow-shrink rbd/v
rbd snap create --no-progress rbd/v@small 2>/dev/null || rbd snap create rbd/v@small
rbd export --no-progress rbd/v@small small.img
cp 3.img t.img
rbd export-diff --no-progress --from-snap 3 rbd/v@small - |
    "$ddsnap" apply-delta -q --force --undo back.delta - t.img
equal t.img small.img "an image that shrank"
"$ddsnap" apply-delta back.delta t.img
equal t.img 3.img "and back"
rbd resize --no-progress --size 60M rbd/v
rbd snap create --no-progress rbd/v@big 2>/dev/null || rbd snap create rbd/v@big
rbd export --no-progress rbd/v@big big.img
cp small.img t.img
rbd export-diff --no-progress --from-snap small rbd/v@big - | "$ddsnap" apply-delta -q --force - t.img
equal t.img big.img "an image that grew"
rbd export --no-progress --export-format 2 rbd/v v2
if "$ddsnap" apply-delta --force v2 t.img 2> refused; then echo "version 2 was accepted"; exit 1; fi
grep -q "expected 'rbd diff v1'" refused
equal t.img big.img "version 2 is refused and changes nothing"
