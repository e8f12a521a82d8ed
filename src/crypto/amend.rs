//! Changing the key slots of a LUKS volume.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::crypto::create::fill_slot;
use crate::crypto::header::{Header, RawSlot, SLOTS};
use crate::crypto::options::{DEFAULT_ITER_TIME, iter_time};
use crate::crypto::slots::{open_slot, unlock};
use crate::crypto::volume::Located;
use crate::error::{Error, Result};
use crate::node::WriteFlags;
use crate::secret::{Keyring, Secret};

/// How often erased key material is overwritten, each time down to the disk.
const ERASE_PASSES: u32 = 3;

/// The options, without the prefix that they have within qcow2.
struct Wish<'a> {
    new_secret: Option<&'a str>,
    old_secret: Option<&'a str>,
    keyslot: Option<usize>,
    iter_time: Option<u64>,
    force: bool,
}

/// Activates or erases key slots: options `state`, `new-secret`, `old-secret`, `keyslot` and `iter-time`, each behind
/// `prefix`. `opened_with` names the secret that the image was opened with. Gives the header as it is now, even if what
/// came after it failed.
///
/// # Errors
/// The options do not go together, a secret is wrong, or, without `force`, the last key or a used slot would be lost.
pub(crate) async fn amend(
    volume: Located<'_>,
    options: &BTreeMap<String, String>,
    prefix: &str,
    force: bool,
    keyring: &Keyring,
    opened_with: Option<&str>,
) -> (Header, Result<()>) {
    let mut header = volume.header.clone();
    let done = change(volume, &mut header, options, prefix, force, keyring, opened_with).await;
    (header, done)
}

async fn change(
    volume: Located<'_>,
    header: &mut Header,
    options: &BTreeMap<String, String>,
    prefix: &str,
    force: bool,
    keyring: &Keyring,
    opened_with: Option<&str>,
) -> Result<()> {
    let find = |name: &str| options.get(&format!("{prefix}{name}")).map(String::as_str);
    let state = find("state").ok_or_else(|| Error::invalid("Parameter 'state' is missing"))?;
    let keyslot = match find("keyslot") {
        None => None,
        Some(text) => Some(slot_number(text)?),
    };
    let wish = Wish {
        new_secret: find("new-secret"),
        old_secret: find("old-secret"),
        keyslot,
        iter_time: iter_time(find("iter-time"))?,
        force,
    };
    match state {
        "active" => activate(volume, header, &wish, keyring, opened_with).await,
        "inactive" => deactivate(volume, header, &wish, keyring).await,
        other => Err(Error::invalid(format!("Parameter 'state' does not accept value '{other}'"))),
    }
}

fn slot_number(text: &str) -> Result<usize> {
    let number: i64 = text.parse().map_err(|_| Error::invalid("Parameter 'keyslot' expects a number"))?;
    usize::try_from(number).ok().filter(|number| *number < SLOTS).ok_or_else(|| {
        Error::invalid(format!("Invalid keyslot {number} specified, must be between 0 and {}", SLOTS - 1))
    })
}

async fn activate(
    volume: Located<'_>,
    header: &mut Header,
    wish: &Wish<'_>,
    keyring: &Keyring,
    opened_with: Option<&str>,
) -> Result<()> {
    let Some(new_secret) = wish.new_secret else {
        return Err(Error::invalid("'new-secret' is required to activate a keyslot"));
    };
    if wish.old_secret.is_some() {
        return Err(Error::invalid("'old-secret' must not be given when activating keyslots"));
    }
    let active = header.slots.map(|slot| slot.is_active());
    let is_active = |index: usize| active.get(index).copied().unwrap_or(false);
    let index = wish
        .keyslot
        .or_else(|| (0..SLOTS).find(|index| !is_active(*index)))
        .ok_or_else(|| Error::invalid("Can't add a keyslot - all keyslots are in use"))?;
    let is_replaced = is_active(index);
    if is_replaced && !wish.force {
        return Err(Error::invalid(format!("Refusing to overwrite active keyslot {index} - please erase it first")));
    }
    let old = keyring.passphrase(opened_with.unwrap_or_default())?;
    let key = unlock(volume, &old).await?;
    let new = keyring.passphrase(new_secret)?;
    let time = wish.iter_time.unwrap_or(DEFAULT_ITER_TIME);
    let mut changed = header.clone();
    check_material(volume, header, index)?;
    let material = fill_slot(&mut changed, index, time, &key, &new, keyring)?;
    if !is_replaced {
        return fill(volume, header, &changed, index, &material).await;
    }
    // A slot never claims material that is only partly its own. The new key is in a free slot until it is in this one, so
    // that the old or the new secret opens the volume at every moment.
    let spare = (0..SLOTS).find(|other| !is_active(*other) && check_material(volume, header, *other).is_ok());
    if let (Some(spare), Some(filled)) = (spare, changed.slots.get(index)) {
        // The material does not depend on its place.
        let mut doubled = header.clone();
        if let Some(slot) = doubled.slots.get_mut(spare) {
            *slot = RawSlot { key_material_offset: slot.key_material_offset, ..*filled };
        }
        fill(volume, header, &doubled, spare, &material).await?;
        if let (Some(slot), Some(filled)) = (changed.slots.get_mut(spare), doubled.slots.get(spare)) {
            *slot = *filled;
        }
    }
    set_inactive(volume, header, index).await?;
    fill(volume, header, &changed, index, &material).await?;
    match spare {
        Some(spare) => erase(volume, header, spare, keyring).await,
        None => Ok(()),
    }
}

/// Writes the key material of a slot, and then the header, which becomes `changed`.
async fn fill(
    volume: Located<'_>,
    header: &mut Header,
    changed: &Header,
    index: usize,
    material: &Secret,
) -> Result<()> {
    write_material(volume, changed, index, material).await?;
    *header = changed.clone();
    write_header(volume, header).await
}

/// Fails unless there is room for the key material of a slot, which need not be so while the slot is free.
fn check_material(volume: Located<'_>, header: &Header, index: usize) -> Result<()> {
    let Some(slot) = header.slots.get(index) else { return Ok(()) };
    let end = slot.material_offset() + header.material_bytes() as u64;
    if end <= volume.available {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Keyslot {index} lies outside: it ends at byte {end}, and there are {}",
        volume.available
    ))
    .at_offset(volume.at))
}

async fn deactivate(volume: Located<'_>, header: &mut Header, wish: &Wish<'_>, keyring: &Keyring) -> Result<()> {
    if wish.new_secret.is_some() {
        return Err(Error::invalid("'new-secret' must not be given when erasing keyslots"));
    }
    if wish.iter_time.is_some() {
        return Err(Error::invalid("'iter-time' must not be given when erasing keyslots"));
    }
    let old = wish.old_secret.map(|id| keyring.passphrase(id)).transpose()?;
    let active = header.slots.iter().filter(|slot| slot.is_active()).count();
    let erased: Vec<usize> = match (wish.keyslot, &old) {
        (Some(index), old) => {
            if let Some(old) = old
                && open_slot(volume, index, old).await?.is_none()
            {
                return Err(Error::invalid(format!(
                    "Given keyslot {index} doesn't contain the given old password for erase operation"
                )));
            }
            let used = header.slots.get(index).is_some_and(|slot| slot.is_active());
            if !wish.force && !used {
                return Err(Error::invalid(format!("Given keyslot {index} is already erased (inactive) ")));
            }
            if !wish.force && active == 1 {
                return Err(Error::invalid(format!(
                    "Attempt to erase the only active keyslot {index} which will erase all the data in the image irreversibly - refusing operation"
                )));
            }
            alloc::vec![index]
        }
        (None, Some(old)) => {
            let mut matching = Vec::new();
            for index in 0..SLOTS {
                if open_slot(volume, index, old).await?.is_some() {
                    matching.push(index);
                }
            }
            if matching.is_empty() {
                return Err(Error::invalid("No keyslots match given (old) password for erase operation"));
            }
            if !wish.force && matching.len() == active {
                return Err(Error::invalid(
                    "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation",
                ));
            }
            matching
        }
        (None, None) => {
            return Err(Error::invalid(
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
            ));
        }
    };
    for index in erased {
        erase(volume, header, index, keyring).await?;
    }
    Ok(())
}

/// Frees a slot, and then overwrites its key material.
async fn erase(volume: Located<'_>, header: &mut Header, index: usize, keyring: &Keyring) -> Result<()> {
    check_material(volume, header, index)?;
    set_inactive(volume, header, index).await?;
    let mut garbage = Secret::zeroed(header.material_bytes());
    for _ in 0..ERASE_PASSES {
        keyring.random(garbage.bytes_mut())?;
        write_material(volume, header, index, &garbage).await?;
    }
    Ok(())
}

async fn set_inactive(volume: Located<'_>, header: &mut Header, index: usize) -> Result<()> {
    if let Some(slot) = header.slots.get_mut(index) {
        slot.set_active(false);
        slot.iterations = 0;
        slot.salt.fill(0);
    }
    write_header(volume, header).await
}

async fn write_material(volume: Located<'_>, header: &Header, index: usize, material: &Secret) -> Result<()> {
    let Some(slot) = header.slots.get(index) else { return Ok(()) };
    volume.file.write(volume.at + slot.material_offset(), material.bytes(), WriteFlags::default()).await?;
    volume.file.flush().await
}

async fn write_header(volume: Located<'_>, header: &Header) -> Result<()> {
    volume.file.write(volume.at, &header.emit(), WriteFlags::default()).await?;
    volume.file.flush().await
}
