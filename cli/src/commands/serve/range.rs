//! Ranges as headers spell them.

use std::ops::Range;

/// Why a range cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadRange {
    /// It is no range of bytes.
    Malformed,
    /// It is more than one.
    Several,
    /// It holds no byte of the file.
    Beyond,
}

/// The bytes of a file of `length` bytes that a `Range` header asks for; never none.
pub(super) fn asked(header: &str, length: u64) -> Result<Range<u64>, BadRange> {
    let (unit, list) = header.split_once('=').ok_or(BadRange::Malformed)?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Err(BadRange::Malformed);
    }
    if list.contains(',') {
        return Err(BadRange::Several);
    }
    let (first, last) = list.trim().split_once('-').ok_or(BadRange::Malformed)?;
    let (start, end) = match (first, last) {
        ("", count) => (length.saturating_sub(number(count)?), length),
        (first, "") => (number(first)?, length),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(BadRange::Malformed);
            }
            (first, last.saturating_add(1).min(length))
        }
    };
    if start >= end { Err(BadRange::Beyond) } else { Ok(start..end) }
}

/// The bytes that a `Content-Range` header of a change names: `bytes FIRST-LAST/*`. Files end before 2^63.
pub(super) fn changed(header: &str) -> Option<Range<u64>> {
    let (unit, rest) = header.trim().split_once(' ')?;
    let (first, last) = rest.strip_suffix("/*")?.split_once('-')?;
    let (first, last) = (number(first).ok()?, number(last).ok()?);
    let fits = unit.eq_ignore_ascii_case("bytes") && first <= last && last < i64::MAX as u64;
    fits.then_some(first..last + 1)
}

/// A number in digits. One that is too large to count is larger than every file.
fn number(text: &str) -> Result<u64, BadRange> {
    if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(BadRange::Malformed);
    }
    Ok(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_the_end_of_the_file() {
        for (header, expected) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-99", 0..100),
            ("bytes=99-99", 99..100),
            ("bytes=99-100", 99..100),
            ("bytes=10-", 10..100),
            ("bytes=-1", 99..100),
            ("bytes=-100", 0..100),
            ("bytes=-1000", 0..100),
            ("BYTES=5-18446744073709551615", 5..100),
            ("bytes=5-99999999999999999999999", 5..100),
            ("bytes= 5-6 ", 5..7),
        ] {
            assert_eq!(asked(header, 100), Ok(expected), "{header}");
        }
    }

    #[test]
    fn what_is_no_range_of_the_file_is_told_apart() {
        for header in
            ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-4", "bytes=+1-2", "lines=1-2", "bytes=1-2-3"]
        {
            assert_eq!(asked(header, 100), Err(BadRange::Malformed), "{header}");
        }
        for header in ["bytes=0-1,3-4", "bytes=0-0,"] {
            assert_eq!(asked(header, 100), Err(BadRange::Several), "{header}");
        }
        for header in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=18446744073709551615-"] {
            assert_eq!(asked(header, 100), Err(BadRange::Beyond), "{header}");
        }
        assert_eq!(asked("bytes=0-0", 0), Err(BadRange::Beyond));
        assert_eq!(asked("bytes=-5", 0), Err(BadRange::Beyond));
    }

    #[test]
    fn a_change_names_first_and_last_byte() {
        assert_eq!(changed("bytes 0-0/*"), Some(0..1));
        assert_eq!(changed("bytes 512-1023/*"), Some(512..1024));
        assert_eq!(changed("bytes 0-9223372036854775806/*"), Some(0..i64::MAX as u64));
        for header in
            ["", "bytes 5-4/*", "bytes 0-0", "bytes 0-0/1", "bytes */5", "bytes -1/*", "bytes 0-9223372036854775807/*"]
        {
            assert_eq!(changed(header), None, "{header}");
        }
    }
}
