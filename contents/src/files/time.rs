//! Points in time as seconds since 1970.

/// Seconds of a date of the Gregorian calendar, if there is such a day.
pub(super) fn civil(year: i64, month: u32, day: u32, hour: u32, minute: u32, second: u32) -> Option<i64> {
    let is_valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !is_valid || !(0..10_000).contains(&year) {
        return None;
    }
    // Years that begin in March have their leap day at the end.
    let month = i64::from(month);
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + i64::from(day)
        - 1;
    // From 1 March of the year 0.
    const TO_1970: i64 = 719_468;
    Some((days - TO_1970) * 86_400 + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second))
}

/// Seconds of a time of Windows NT, which counts steps of 100 nanoseconds from 1601.
pub(super) fn nt(steps: u64) -> Option<i64> {
    const TO_1970: i64 = 11_644_473_600;
    (steps != 0).then_some((steps / 10_000_000) as i64 - TO_1970)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_counted_from_1970() {
        assert_eq!(civil(1970, 1, 1, 0, 0, 0), Some(0));
        assert_eq!(civil(2000, 2, 29, 12, 34, 56), Some(951_827_696));
        assert_eq!(civil(1969, 12, 31, 23, 59, 59), Some(-1));
        assert_eq!(civil(2100, 3, 1, 0, 0, 0), Some(4_107_542_400));
        assert_eq!(civil(2024, 13, 1, 0, 0, 0), None);
        assert_eq!(nt(116_444_736_000_000_000), Some(0));
    }
}
