//! Numbers and property trees for people, in QEMU's form.

use diskette::describe::{Snapshot, Value};
use serde_json::{Map, Value as Json, json};

/// A size such as `10 MiB` or `1.5 GiB`: three significant digits, binary units.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // The unit is chosen so that the number stays below 1000.
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", significant(value), UNITS[unit])
}

/// Three significant digits without trailing zeroes.
fn significant(value: f64) -> String {
    let before = if value < 1.0 { 0 } else { value.log10().floor() as usize + 1 };
    let decimals = 3usize.saturating_sub(before);
    let mut text = format!("{value:.decimals$}");
    if text.contains('.') {
        text = text.trim_end_matches('0').trim_end_matches('.').to_string();
    }
    text
}

/// Property names as people read them.
fn label(name: &str) -> String {
    name.replace('-', " ")
}

/// A property tree, one line each, indented.
pub(crate) fn properties(values: &[(&'static str, Value)], indent: usize, out: &mut String) {
    for (name, value) in values {
        line(&label(name), value, indent, out);
    }
}

fn line(name: &str, value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent * 4);
    match value {
        Value::Bool(flag) => out.push_str(&format!("{pad}{name}: {flag}\n")),
        Value::Number(number) => out.push_str(&format!("{pad}{name}: {number}\n")),
        Value::Text(text) => out.push_str(&format!("{pad}{name}: {text}\n")),
        Value::List(values) => {
            out.push_str(&format!("{pad}{name}:\n"));
            for (index, value) in values.iter().enumerate() {
                line(&format!("[{index}]"), value, indent + 1, out);
            }
        }
        Value::Object(values) => {
            out.push_str(&format!("{pad}{name}:\n"));
            properties(values, indent + 1, out);
        }
    }
}

/// A property tree as JSON.
pub(crate) fn to_json(value: &Value) -> Json {
    match value {
        Value::Bool(flag) => json!(flag),
        Value::Number(number) => json!(number),
        Value::Text(text) => json!(text),
        Value::List(values) => Json::Array(values.iter().map(to_json).collect()),
        Value::Object(values) => object(values),
    }
}

/// Named values as a JSON object.
pub(crate) fn object(values: &[(&'static str, Value)]) -> Json {
    let map: Map<String, Json> = values.iter().map(|(name, value)| ((*name).to_string(), to_json(value))).collect();
    Json::Object(map)
}

/// The table of snapshots.
pub(crate) fn snapshots(snapshots: &[Snapshot]) -> String {
    let mut out =
        format!("{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}\n", "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
    for snapshot in snapshots {
        let seconds = snapshot.vm_clock_nsec / 1_000_000_000;
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            snapshot.vm_clock_nsec / 1_000_000 % 1000
        );
        let icount = snapshot.icount.map_or("--".to_string(), |count| count.to_string());
        out.push_str(&format!(
            "{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}\n",
            snapshot.id,
            snapshot.name,
            size(snapshot.vm_state_size),
            date(snapshot.date_sec.into()),
            clock,
            icount
        ));
    }
    out
}

/// Seconds since 1970 as date and time (UTC).
fn date(seconds: i64) -> String {
    let (days, time) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    // Civil calendar from a day count, with years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_qemus() {
        assert_eq!(size(10 << 20), "10 MiB");
        assert_eq!(size(462_848), "452 KiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1000), "0.977 KiB");
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(1_795_517_543), "2026-11-24 10:52:23");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
    }
}
