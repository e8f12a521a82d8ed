//! Numbers in and out, in QEMU's form.

use std::fmt::Write;
use std::time::Duration;

use diskette::Error;
use diskette::wire::parse_size;

/// Longest request, in bytes: what fits a signed 32-bit number in whole sectors.
pub(super) const MAX_REQUEST_BYTES: u64 = 2_147_483_136;

/// An amount of bytes with a binary unit: `64 KiB`, `1.500 MiB`.
pub(super) fn amount(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["EiB", "PiB", "TiB", "GiB", "MiB", "KiB"];
    for (index, unit) in UNITS.iter().enumerate() {
        let size = (1u64 << (10 * (UNITS.len() - index))) as f64;
        if bytes >= size {
            let text = format!("{:.3}", bytes / size);
            return format!("{} {unit}", text.strip_suffix(".000").unwrap_or(&text));
        }
    }
    let text = format!("{bytes:.6}");
    format!("{} bytes", text.strip_suffix(".000000").unwrap_or(&text))
}

/// An offset or a length. Fails with what is wrong.
pub(super) fn number(text: &str) -> Result<u64, String> {
    // As the C library reads numbers, space in front does not count.
    match parse_size(text.trim_start()) {
        Some(number) if i64::try_from(number).is_ok() => Ok(number),
        Some(_) => Err(format!("Parsing error: argument too large -- {text}")),
        None => Err(format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}")),
    }
}

/// The length of a request.
pub(super) fn length(text: &str) -> Result<usize, String> {
    match number(text)? {
        len if len > MAX_REQUEST_BYTES => Err(format!("length cannot exceed {MAX_REQUEST_BYTES}, given {text}")),
        len => Ok(len as usize),
    }
}

/// The byte that a buffer is filled with: decimal, octal or hexadecimal.
pub(super) fn pattern(text: &str) -> Result<u8, String> {
    let value = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u8::from_str_radix(hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        u8::from_str_radix(&text[1..], 8)
    } else {
        text.parse()
    };
    value.map_err(|_| format!("{text} is not a valid pattern byte"))
}

/// What an error is called by its number.
pub(crate) fn reason(error: &Error) -> String {
    let text = std::io::Error::from_raw_os_error(error.kind().errno()).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_string()
}

/// Bytes in hexadecimal and as characters, 16 to a line.
pub(super) fn dump(bytes: &[u8], start: u64) -> String {
    let mut out = String::new();
    for (index, row) in bytes.chunks(16).enumerate() {
        let _ = write!(out, "{:08x}:  ", start + index as u64 * 16);
        for byte in row {
            let _ = write!(out, "{byte:02x} ");
        }
        out.push(' ');
        out.extend(row.iter().map(|byte| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '.' }));
        out.push('\n');
    }
    out
}

/// What a request did: how it went, what of it, and how long it took.
pub(super) struct Report<'a> {
    pub(super) verb: &'a str,
    pub(super) offset: u64,
    pub(super) asked: u64,
    pub(super) done: u64,
    pub(super) requests: u32,
    pub(super) took: Duration,
    /// In a form for programs.
    pub(super) machine: bool,
}

impl Report<'_> {
    pub(super) fn text(&self) -> String {
        let seconds = self.took.as_secs_f64().max(1e-9);
        let (bytes, requests) = (self.done as f64 / seconds, f64::from(self.requests) / seconds);
        let (whole, hundredths) = (self.took.as_secs(), self.took.subsec_millis() / 10);
        let long = format!("{}:{:02}:{:02}.{hundredths:02}", whole / 3600, whole / 60 % 60, whole % 60);
        if self.machine {
            return format!("{},{},{long},{bytes:.3},{requests:.3}\n", self.done, self.requests);
        }
        let time = if whole < 60 { format!("{whole:02}.{hundredths:02} sec") } else { long };
        let Report { verb, offset, asked, done, .. } = self;
        format!(
            "{verb} {done}/{asked} bytes at offset {offset}\n{}, {} ops; {time} ({}/sec and {requests:.4} ops/sec)\n",
            amount(self.done as f64),
            self.requests,
            amount(bytes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_like_qemus() {
        for (bytes, text) in [
            (0.0, "0 bytes"),
            (32.0, "32 bytes"),
            (3584.0, "3.500 KiB"),
            (65536.0, "64 KiB"),
            (4.058_313, "4.058313 bytes"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }

    #[test]
    fn pattern_bytes_have_three_bases() {
        assert_eq!((pattern("0377"), pattern("0x1F"), pattern("9")), (Ok(255), Ok(31), Ok(9)));
        for text in ["", "256", "0x", "zz", "-1"] {
            assert!(pattern(text).is_err(), "{text}");
        }
    }
}
