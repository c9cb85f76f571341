//! Times as people read them.

use crate::error::{Error, Kind, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Seconds since 1970 UTC, now.
#[must_use]
pub fn now_secs() -> i64 {
    Timestamp::now().as_second()
}

/// The time that a document bears: `SOURCE_DATE_EPOCH` if that is set, so that it can be made again, else now.
///
/// # Errors
/// `Kind::Usage` if it is set to something else than seconds since 1970 UTC.
pub fn made_secs() -> Result<i64> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(now_secs()) };
    text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
        let what = format!("SOURCE_DATE_EPOCH is '{}', expected seconds since 1970", text.display());
        Error::new(Kind::Usage, what)
    })
}

/// Local time in the words of 2008 (`ctime`): `Sat Nov 21 03:02:35 2026`.
#[must_use]
pub fn ctime(secs: i64) -> String {
    local(secs, "%a %b %e %H:%M:%S %Y")
}

/// Local time, sortable: `2026-11-21 03:02:35`.
#[must_use]
pub fn short(secs: i64) -> String {
    local(secs, "%Y-%m-%d %H:%M:%S")
}

/// UTC as RFC 3339, for machines; `None` outside the calendar's range.
#[must_use]
pub fn rfc3339(secs: i64) -> Option<String> {
    Timestamp::from_second(secs).ok().map(|time| time.to_string())
}

/// UTC for people, to the minute, the same everywhere: `2026-11-21 03:02 UTC`.
#[must_use]
pub fn utc(secs: i64) -> String {
    match Timestamp::from_second(secs) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => format!("@{secs}"),
    }
}

fn local(secs: i64, format: &str) -> String {
    match Timestamp::from_second(secs) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime(format).to_string(),
        // Outside the years that a calendar has; the number is all there is to show.
        Err(_) => format!("@{secs}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_get_utc() {
        assert_eq!(rfc3339(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(rfc3339(i64::MAX), None);
    }

    #[test]
    fn a_day_below_ten_is_padded_with_a_blank() {
        let text = ctime(1_767_571_200); // 5 January 2026, noon UTC give or take a zone
        assert_eq!(text.len(), 24, "{text}");
        assert_eq!(ctime(i64::MAX), format!("@{}", i64::MAX));
    }
}
