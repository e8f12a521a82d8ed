//! Making a new volume, and what it takes up.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;

use crate::crypto::{NewVolume, Parameters};
use crate::drivers::{CreateContext, CreateOption, MeasureContext, Measurement};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::luks::text;
use crate::node::Preallocation;
use crate::op::BoxFuture;

/// The options of a new volume, as QEMU lists them.
pub(super) const OPTIONS: &[CreateOption] = &[
    option("cipher-alg", "str", "Name of encryption cipher algorithm"),
    option("cipher-mode", "str", "Name of encryption cipher mode"),
    option("detached-header", "bool (on/off)", "Create a detached LUKS header"),
    option("hash-alg", "str", "Name of encryption hash algorithm"),
    option("iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    option("ivgen-alg", "str", "Name of IV generator algorithm"),
    option("ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    option("key-secret", "str", "ID of the secret that provides the keyslot passphrase"),
    option("preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"),
];

/// The options of a change of key slots, as QEMU lists them.
pub(super) const AMEND_OPTIONS: &[CreateOption] = &[
    option("iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    option("keyslot", "num", "Select a single keyslot to modify explicitly"),
    option("new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase"),
    option("old-secret", "str", "Select all keyslots that match this password"),
    option("state", "str", "Select new state of affected keyslots (active/inactive)"),
];

const fn option(name: &'static str, kind: &'static str, help: &'static str) -> CreateOption {
    CreateOption { name, kind, help }
}

pub(super) fn create(context: CreateContext<'_>) -> BoxFuture<'_, Result<()>> {
    Box::pin(create_volume(context))
}

/// Bytes that a volume takes up for a disk of `size` bytes, whatever is written to it.
///
/// # Errors
/// An option has an impossible value, or the size is too large.
pub fn measure(size: u64, options: &BTreeMap<String, String>) -> Result<u64> {
    let header = Parameters::read(options, "")?.header_bytes();
    size.checked_add(header)
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| Error::new(ErrorKind::TooLarge, "The requested file size is too large"))
}

pub(super) fn measure_volume(context: MeasureContext<'_>) -> BoxFuture<'_, Result<Measurement>> {
    Box::pin(async move {
        // What is not written is there all the same.
        let bytes = measure(context.size, context.options)?;
        Ok(Measurement { required: bytes, fully_allocated: bytes, bitmaps: None })
    })
}

async fn create_volume(context: CreateContext<'_>) -> Result<()> {
    let CreateContext { file, options, keyring, size, .. } = context;
    let parameters = Parameters::read(options, "")?;
    let preallocation = match options.get("preallocation").map(String::as_str) {
        None | Some("off" | "metadata") => Preallocation::Off,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => {
            return Err(Error::invalid(alloc::format!("Parameter 'preallocation' does not accept value '{other}'")));
        }
    };
    let detached = match options.get("detached-header").map(String::as_str) {
        None | Some("off") => false,
        Some("on") => true,
        Some(_) => return Err(Error::invalid("Parameter 'detached-header' expects 'on' or 'off'")),
    };
    let secret =
        text(options, "key-secret").ok_or_else(|| Error::invalid("Parameter 'key-secret' is required for cipher"))?;
    let passphrase = keyring.passphrase(&secret)?;
    let length = measure(if detached { 0 } else { size }, options)?;
    let file = crate::engine::byte_granular(file);
    if file.info().zero_init {
        file.resize(0, Preallocation::Off).await?;
    }
    file.resize(length, preallocation).await?;
    NewVolume { file: &*file, at: 0, parameters: &parameters, detached, passphrase: &passphrase, keyring }
        .create()
        .await
}
