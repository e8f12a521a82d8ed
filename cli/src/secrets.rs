//! `--object`: secrets and groups of throttled nodes that options of images name.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use diskette::crypto::SectorCipher;
use diskette::crypto::spec::{Cipher, Generator, Mode, SectorSpec};
use diskette::filters::{Limits, ThrottleGroup};
use diskette::native::{MachineClock, Secrets};
use diskette::options::Options;
use diskette::{Keyring, Secret};

use crate::Failure;
use crate::image_opts::split_options;

const THROTTLE_GROUP: &str = "throttle-group";
/// Bytes of a block of AES.
const BLOCK: usize = 16;
/// Bytes of a key that other secrets are wrapped with.
const KEY_BYTES: usize = 32;

static KEYRING: OnceLock<Keyring> = OnceLock::new();
static GROUPS: OnceLock<Groups> = OnceLock::new();

/// Groups of throttled nodes by name.
type Groups = BTreeMap<String, Arc<ThrottleGroup>>;

/// Reads the objects of the command line. To be called once, before anything is opened.
pub(crate) fn load(objects: &[String]) -> Result<(), Failure> {
    let (groups, secrets): (Vec<_>, Vec<_>) =
        objects.iter().cloned().partition(|object| object.split(',').any(|part| part.ends_with(THROTTLE_GROUP)));
    let mut named = Groups::new();
    for group in &groups {
        let (id, limits) = throttle_group(group)?;
        named.insert(id, ThrottleGroup::new(limits, Arc::new(MachineClock::default())));
    }
    let _ = GROUPS.set(named);
    let keyring = Secrets::keyring(read(&secrets)?);
    // Whoever came first keeps it; nobody does twice.
    let _ = KEYRING.set(keyring);
    Ok(())
}

/// The secrets of the command line.
pub(crate) fn keyring() -> Keyring {
    KEYRING.get_or_init(|| Secrets::keyring(BTreeMap::new())).clone()
}

/// The groups of throttled nodes of the command line.
pub(crate) fn throttle_groups() -> Groups {
    GROUPS.get().cloned().unwrap_or_default()
}

/// A group with its name: `x-bps-total=…` and so on.
fn throttle_group(object: &str) -> Result<(String, Limits), Failure> {
    let mut options = Options::parse(object).map_err(Failure::from)?;
    options.take(THROTTLE_GROUP);
    options.take("qom-type");
    let id = options.take("id").ok_or_else(|| Failure::new("Parameter 'id' is missing"))?;
    let limits = Limits::take(&mut options, "x-").map_err(Failure::from)?;
    match options.iter().next() {
        Some((unknown, _)) => Err(Failure::new(format!("Parameter '{unknown}' is unexpected"))),
        None => Ok((id, limits)),
    }
}

fn read(objects: &[String]) -> Result<BTreeMap<String, Secret>, Failure> {
    let mut known: BTreeMap<String, Secret> = BTreeMap::new();
    for object in objects {
        let (id, secret) = one(object, &known)?;
        if known.contains_key(&id) {
            return Err(Failure::new(format!("attempt to add duplicate property '{id}' to object (type 'container')")));
        }
        known.insert(id, secret);
    }
    Ok(known)
}

/// A secret with its name.
fn one(object: &str, known: &BTreeMap<String, Secret>) -> Result<(String, Secret), Failure> {
    let first = object.split(',').next().unwrap_or_default();
    let mut options =
        if first.contains('=') { split_options(object)? } else { split_options(&format!("qom-type={object}"))? };
    match options.remove("qom-type").as_deref() {
        Some("secret") => {}
        Some(kind) => return Err(bad_value("qom-type", kind)),
        None => return Err(Failure::new("Parameter 'qom-type' is missing")),
    }
    let id = options.remove("id").ok_or_else(|| Failure::new("Parameter 'id' is missing"))?;
    if !is_identifier(&id) {
        return Err(Failure::new(
            "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
        ));
    }
    let (data, file) = (options.remove("data").map(String::into_bytes).map(Secret::new), options.remove("file"));
    let base64 = match options.remove("format").as_deref() {
        None | Some("raw") => false,
        Some("base64") => true,
        Some(other) => return Err(bad_value("format", other)),
    };
    let (key, vector) = (options.remove("keyid"), options.remove("iv"));
    if let Some(unknown) = options.keys().next() {
        return Err(Failure::new(format!("Parameter '{unknown}' is unexpected")));
    }
    let stored = match (data, file) {
        (Some(_), Some(_)) => return Err(Failure::new("'file' and 'data' are mutually exclusive")),
        (None, None) => return Err(Failure::new("Either 'file' or 'data' must be provided")),
        (Some(data), None) => data,
        (None, Some(path)) => match std::fs::read(&path) {
            Ok(bytes) => Secret::new(bytes),
            Err(error) => {
                let text = error.to_string();
                let reason = text.split(" (os error").next().unwrap_or_default();
                return Err(Failure::new(format!("Unable to read {path}: Failed to open file “{path}”: {reason}")));
            }
        },
    };
    let decoded = if base64 { decode(&stored)? } else { stored };
    let secret = match key {
        None => decoded,
        Some(name) => {
            let key = known.get(&name).ok_or_else(|| Failure::new(format!("No secret with id '{name}'")))?;
            unwrap(&decoded, key, vector.as_deref())?
        }
    };
    Ok((id, secret))
}

fn bad_value(name: &str, value: &str) -> Failure {
    Failure::new(format!("Parameter '{name}' does not accept value '{value}'"))
}

fn is_identifier(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

/// Decrypts a secret that is wrapped: AES-256 in CBC mode, filled up as PKCS #7 says.
fn unwrap(wrapped: &Secret, key: &Secret, vector: Option<&str>) -> Result<Secret, Failure> {
    if key.bytes().len() != KEY_BYTES {
        return Err(Failure::new("Key should be 32 bytes in length"));
    }
    let vector = vector.ok_or_else(|| Failure::new("IV is required to decrypt secret"))?;
    let vector = decode(&Secret::new(vector.as_bytes()))?;
    if vector.bytes().len() != BLOCK {
        return Err(Failure::new(format!("IV should be 16 bytes in length not {}", vector.bytes().len())));
    }
    let length = wrapped.bytes().len();
    if length == 0 || !length.is_multiple_of(BLOCK) {
        return Err(Failure::new(format!("Length {length} must be a multiple of block size {BLOCK}")));
    }
    // The chaining is done here, for the vector is none of a sector.
    let blocks =
        SectorSpec { cipher: Cipher::AES_256, mode: Mode::Ecb, generator: Generator::Plain64, generator_hash: None };
    let mut plain = wrapped.clone();
    SectorCipher::new(&blocks, key.bytes())?.decrypt(0, plain.bytes_mut());
    let before = vector.bytes().iter().chain(wrapped.bytes());
    plain.bytes_mut().iter_mut().zip(before).for_each(|(byte, before)| *byte ^= before);
    let filling = plain.bytes().last().copied().map_or(0, usize::from);
    if filling > BLOCK || filling > length {
        return Err(Failure::new(format!("Incorrect number of padding bytes ({filling}) found on decrypted data")));
    }
    Ok(Secret::new(plain.bytes()[..length - filling].to_vec()))
}

/// Decodes base64 (RFC 4648), with line breaks.
fn decode(text: &Secret) -> Result<Secret, Failure> {
    let wrong = || Failure::new("Base64 data contains invalid characters");
    let mut bytes = Secret::zeroed(text.bytes().len());
    let (mut bits, mut count, mut len, mut filling) = (0u32, 0, 0, 0);
    for byte in text.bytes().iter().filter(|byte| **byte != b'\n') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' if filling < 2 => {
                filling += 1;
                continue;
            }
            _ => return Err(wrong()),
        };
        if filling > 0 {
            return Err(wrong());
        }
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.bytes_mut()[len] = (bits >> count) as u8;
            len += 1;
            bits &= (1 << count) - 1;
        }
    }
    Ok(Secret::new(bytes.bytes()[..len].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(object: &str) -> Result<Secret, String> {
        let known = read(&[object.to_string()]).map_err(|failure| failure.message)?;
        known.into_values().next().ok_or_else(|| "none".to_string())
    }

    #[test]
    fn secrets_come_as_they_are_or_in_base64() {
        assert_eq!(read_one("secret,id=s,data=a,,b").unwrap().bytes(), b"a,b");
        assert_eq!(read_one("qom-type=secret,id=s,data=YSxi,format=base64").unwrap().bytes(), b"a,b");
        assert_eq!(read_one("secret,id=s,data=aGVsbG8=,format=base64").unwrap().bytes(), b"hello");
        assert!(read_one("secret,id=s,data=@@,format=base64").unwrap_err().contains("invalid characters"));
    }

    #[test]
    fn a_wrapped_secret_is_unwrapped_with_another() {
        // openssl enc -aes-256-cbc -K 30…(32 times '0') -iv 31…(16 times '1') of "hunter2"
        let key = format!("secret,id=key,data={}", "0".repeat(32));
        let vector = "MTExMTExMTExMTExMTExMQ==";
        let wrapped = format!("secret,id=s,data=zcsexZLnonpx+s2xb9uu6A==,keyid=key,iv={vector},format=base64");
        let known = read(&[key, wrapped]).unwrap();
        assert_eq!(known["s"].bytes(), b"hunter2");
    }

    #[test]
    fn messages_are_those_of_qemu_and_never_show_the_secret() {
        for (object, message) in [
            ("secret,id=s", "Either 'file' or 'data' must be provided"),
            ("secret,data=x", "Parameter 'id' is missing"),
            ("foo,id=s", "Parameter 'qom-type' does not accept value 'foo'"),
            ("secret,id=s,data=x,file=y", "'file' and 'data' are mutually exclusive"),
            ("secret,id=s,data=hunter2,bogus=1", "Parameter 'bogus' is unexpected"),
            ("secret,id=s,data=hunter2,keyid=nope", "No secret with id 'nope'"),
        ] {
            assert_eq!(read_one(object).unwrap_err(), message);
        }
    }
}
