//! Image locks that QEMU understands.
//!
//! A user of an image holds shared locks on single bytes of the file: byte 100 + p for each permission p that it uses,
//! byte 200 + p for each that it does not share. Before it relies on a permission it looks whether somebody holds the
//! opposite byte. The locks belong to the open file, not to the process (`F_OFD_SETLK`).

use std::fs::File;
use std::string::String;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Error, ErrorKind, Result};

/// Permissions in the order of their bytes.
const PERMISSIONS: [&str; 4] = ["consistent read", "write", "write unchanged", "resize"];
const USED_BASE: i64 = 100;
const NOT_SHARED_BASE: i64 = 200;

/// Which permissions a user of an image takes and shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permissions {
    used: [bool; 4],
    shared: [bool; 4],
}

impl Permissions {
    /// Reads, and lets others read; others must not write or resize unless `force_share`.
    pub(super) fn reader(force_share: bool) -> Self {
        let shared = if force_share { [true; 4] } else { [true, false, true, false] };
        Permissions { used: [true, false, false, false], shared }
    }

    /// Reads, writes and resizes; others may read what they can make of it (QEMU's `force-share`).
    pub(super) fn writer() -> Self {
        Permissions { used: [true, true, false, true], shared: [true, false, true, false] }
    }
}

fn flock(kind: libc::c_int, start: i64) -> libc::flock {
    // `l_pid` must be 0 for locks of open files.
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    }
}

/// Takes the locks. They are held until the file is closed.
///
/// A file system without locks is an error only if they are `required`.
pub(super) fn take(file: &File, path: &str, permissions: Permissions, required: bool) -> Result<()> {
    let list = || (0..).zip(permissions.used.into_iter().zip(permissions.shared)).zip(PERMISSIONS);
    for ((byte, (used, shared)), _) in list() {
        for (wanted, byte) in [(used, USED_BASE + byte), (!shared, NOT_SHARED_BASE + byte)] {
            if wanted && !hold(file, byte, path)? && required {
                return Err(Error::unsupported("the file system has no locks for open files").at_path(path));
            }
        }
    }
    // Only with all locks in place does looking at the others' prove anything. First what we use, as QEMU reports it.
    for ((byte, (used, _)), name) in list() {
        if used && is_held(file, NOT_SHARED_BASE + byte) {
            return Err(conflict("", name, path));
        }
    }
    for ((byte, (_, shared)), name) in list() {
        if !shared && is_held(file, USED_BASE + byte) {
            return Err(conflict("shared ", name, path));
        }
    }
    Ok(())
}

fn conflict(shared: &str, name: &str, path: &str) -> Error {
    let text: String =
        std::format!("Failed to get {shared}\"{name}\" lock\nIs another process using the image [{path}]?");
    Error::new(ErrorKind::Busy, text)
}

/// Takes one lock; `false` if the file system has none.
fn hold(file: &File, byte: i64, path: &str) -> Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, byte))) {
        Ok(_) => Ok(true),
        // Somebody holds the byte exclusively, which no user of the scheme does.
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
            let text = std::format!("Failed to lock byte {byte}\nIs another process using the image [{path}]?");
            Err(Error::new(ErrorKind::Busy, text))
        }
        Err(_) => Ok(false),
    }
}

/// Whether another open file holds the byte: an exclusive lock would be refused.
fn is_held(file: &File, byte: i64) -> bool {
    let mut wanted = flock(libc::F_WRLCK, byte);
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut wanted)) {
        Ok(_) => wanted.l_type != libc::F_UNLCK as libc::c_short,
        Err(_) => false,
    }
}
