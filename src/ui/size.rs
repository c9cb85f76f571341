//! Sizes as people write and read them.

/// Reads `512`, `4k`, `1M`, `2G`, `1T` (powers of 1024, either case).
///
/// # Errors
/// A sentence that says what is wrong with `text`.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size: write bytes as 512, 4k, 1M, 2G or 1T");
    let (digits, bits) = match text.chars().last() {
        Some('k' | 'K') => (text.get(..text.len() - 1), 10),
        Some('m' | 'M') => (text.get(..text.len() - 1), 20),
        Some('g' | 'G') => (text.get(..text.len() - 1), 30),
        Some('t' | 'T') => (text.get(..text.len() - 1), 40),
        _ => (Some(text), 0),
    };
    let digits =
        digits.filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit())).ok_or_else(wrong)?;
    let too_large = || format!("'{text}' is too large: sizes end at 2^64-1 bytes");
    let number: u64 = digits.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << bits).ok_or_else(too_large)
}

/// A size for people, always with its unit: `17 bytes`, `4.0 KiB`, `1.5 GiB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10 / 1024;
    while tenths >= 10240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A number with thousands separators, as `status` of 2008 prints it.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_in_either_case() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("4K", 4096),
            ("1M", 1 << 20),
            ("2g", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "k",
            "-1",
            "+1",
            "1.5G",
            "1q",
            "0x10",
            "1 k",
            "1kk",
            "18446744073709551616",
            "16777216T",
            "é",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_with_their_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1024, "1,024"), (1_048_576, "1,048,576")] {
            assert_eq!(grouped(number), text);
        }
    }
}
