//! Numbers and texts within bytes that may be too short.

pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    part(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    part(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    part(bytes, at).map(u64::from_le_bytes)
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    part(bytes, at).map(u16::from_be_bytes)
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    part(bytes, at).map(u32::from_be_bytes)
}

/// Whether `pattern` is at `at`.
pub(crate) fn has(bytes: &[u8], at: usize, pattern: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(pattern))
}

/// A text of fixed length, up to its first zero, without spaces at its end; none if it is empty.
pub(crate) fn text(bytes: &[u8], at: usize, length: usize) -> Option<String> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(length);
    let text = String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

/// A text of UTF-16 units, up to its first zero; none if it is empty.
pub(crate) fn utf16(bytes: &[u8], big_endian: bool) -> Option<String> {
    let read = if big_endian { u16::from_be_bytes } else { u16::from_le_bytes };
    let units = bytes.as_chunks().0.iter().map(|pair| read(*pair)).take_while(|unit| *unit != 0);
    let text: String = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    (!text.is_empty()).then_some(text)
}

/// A UUID whose bytes are in the order in which they are written; none if all are zero.
pub(crate) fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    let bytes: [u8; 16] = part(bytes, at)?;
    (bytes != [0; 16]).then(|| hyphenated(bytes))
}

/// A GUID, of which the first three numbers are little-endian.
pub(crate) fn guid(bytes: [u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let mut ordered = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    ordered[8..].copy_from_slice(&rest);
    hyphenated(ordered)
}

fn hyphenated(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
