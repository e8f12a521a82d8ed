//! Numbers on the command line.

use std::ops::RangeInclusive;

use diskette::wire::parse_size;

use crate::Failure;

/// Largest size and offset there is.
pub(crate) const MAX_OFFSET: u64 = i64::MAX as u64;

/// A number with an optional binary suffix, within limits. `what` says what it is for.
///
/// # Errors
/// It is no number, or not within the limits.
pub(crate) fn parse(text: &str, what: &str, limits: RangeInclusive<u64>) -> Result<u64, Failure> {
    let beyond =
        || Failure::new(format!("Invalid {what} specified. Must be between {} and {}.", limits.start(), limits.end()));
    match parse_size(text) {
        Some(number) if limits.contains(&number) => Ok(number),
        Some(_) => Err(beyond()),
        None if is_number(text) => Err(beyond()),
        None => Err(Failure::new(format!("Invalid {what} specified: '{text}'."))),
    }
}

/// Whether it would be a number if it were not negative or too large.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let digits = digits.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T', 'p', 'P', 'e', 'E']).unwrap_or(digits);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_nonsense_from_numbers_out_of_range() {
        let message = |text| parse(text, "start offset", 0..=MAX_OFFSET).unwrap_err().message;
        assert_eq!(parse("64k", "start offset", 0..=MAX_OFFSET).unwrap(), 65536);
        assert_eq!(message("x"), "Invalid start offset specified: 'x'.");
        assert_eq!(message("1Z"), "Invalid start offset specified: '1Z'.");
        for text in ["-1", "8E", "16E", "99999999999999999999"] {
            assert_eq!(message(text), "Invalid start offset specified. Must be between 0 and 9223372036854775807.");
        }
    }
}
