//! Sizes as people write them.

/// Parses a size such as `4096`, `64k`, `1.5G` or `0x10000`. Suffixes are binary: `b`, `k`, `M`, `G`, `T`, `P`, `E`.
///
/// The result is exact for whole numbers; a fraction is rounded down to a byte.
pub fn parse_size(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    let unit = 1u64 << shift;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && (fraction.is_empty() || shift == 0)) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let mut bytes = u128::from(whole) * u128::from(unit);
    if !fraction.is_empty() {
        let digits = fraction.get(..fraction.len().min(18))?;
        let value: u64 = digits.parse().ok()?;
        bytes += u128::from(value) * u128::from(unit) / 10u128.pow(digits.len() as u32);
    }
    u64::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse_size("0"), Some(0));
        assert_eq!(parse_size("64k"), Some(65536));
        assert_eq!(parse_size("1.5G"), Some(3 << 29));
        assert_eq!(parse_size("0x200"), Some(512));
        assert_eq!(parse_size("16E"), None);
        assert_eq!(parse_size("1.5"), None);
        assert_eq!(parse_size("12x"), None);
        assert_eq!(parse_size("-1"), None);
        assert_eq!(parse_size(""), None);
    }
}
