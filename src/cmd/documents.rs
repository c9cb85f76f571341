//! What several commands tell in the same words: pieces of JSON documents, warnings.

use super::common::{TAINT, state_word, title};
use crate::point::Identity;
use crate::point::volume::Legacy;
use crate::store::{PendingOperation, SnapshotInfo, StoreInfo};
use crate::ui::{Ui, escape, time};
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Warns of what the store did by itself since it had the events `before`, and of snapshots that may lie.
pub fn warn_of_events(before: &[(i64, String)], info: &StoreInfo, snapshots: &[SnapshotInfo], ui: &Ui) {
    for event in info.events.iter().filter(|event| !before.contains(event)) {
        ui.warn(&escape::line(&event.1));
    }
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.tainted) {
        ui.warn(&format!("{} {TAINT}", title(snapshot)));
    }
}

/// Warns of a store that an upgrade in place has made and nobody has committed.
pub fn warn_uncommitted(store: &Path, ui: &Ui) {
    let store = store.display();
    ui.warn(&format!(
        "upgraded in place and not committed: it can only be read until 'ddsnap upgrade --commit {store}' or \
         'ddsnap upgrade --rollback {store}'"
    ));
}

/// A snapshot.
#[must_use]
pub fn snapshot(snapshot: &SnapshotInfo) -> Value {
    json!({
        "tag": snapshot.tag.0,
        "name": snapshot.name,
        "id": snapshot.id.0,
        "size_bytes": snapshot.size_bytes,
        "created_secs": snapshot.created_secs,
        "created": time::rfc3339(snapshot.created_secs),
        "priority": snapshot.priority,
        "use_count": snapshot.use_count,
        "generation": snapshot.generation,
        "state": state_word(snapshot.state),
        "tainted": snapshot.tainted,
        "holds": snapshot.holds,
    })
}

/// Automatic deletes and squashes.
#[must_use]
pub fn events(events: &[(i64, String)]) -> Value {
    events
        .iter()
        .map(|(secs, text)| json!({ "secs": secs, "time": time::rfc3339(*secs), "text": text }))
        .collect()
}

/// What makes a point the same point anywhere.
#[must_use]
pub fn identity(identity: &Identity) -> Value {
    json!({
        "volume": identity.volume.to_string(),
        // The origin's id is 2^64-1, which not every JSON reader can hold.
        "id": (identity.id != u64::MAX).then_some(identity.id),
        "generation": identity.generation,
    })
}

/// An incomplete operation.
#[must_use]
pub fn pending(pending: &PendingOperation) -> Value {
    json!({ "label": pending.label, "token": hex::encode(pending.token) })
}

/// A path: a string, or an array of bytes if it is not UTF-8.
#[must_use]
pub fn path(path: &Path) -> Value {
    match path.to_str() {
        Some(text) => json!(text),
        None => json!(path.as_os_str().as_bytes()),
    }
}

/// What only a store of 2008 has.
pub fn legacy(legacy: &Legacy) -> Value {
    json!({
        "release": legacy.release,
        "clean": legacy.is_clean,
        "separate_metadata": legacy.separate.map(|(block_size, blocks, free)| json!({
            "block_size": block_size,
            "blocks": blocks,
            "free_blocks": free,
        })),
        "notices": legacy.notices,
    })
}
