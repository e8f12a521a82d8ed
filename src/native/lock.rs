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
    /// Reads, and lets others read; others must not write unless `force_share`.
    pub(super) fn reader(force_share: bool) -> Self {
        if force_share {
            return Permissions { used: [false; 4], shared: [true; 4] };
        }
        Permissions { used: [true, false, false, false], shared: [true, false, true, false] }
    }

    /// Reads, writes and resizes; others may do nothing but read inconsistently.
    pub(super) fn writer() -> Self {
        Permissions { used: [true, true, false, true], shared: [false, false, true, false] }
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
pub(super) fn take(file: &File, path: &str, permissions: Permissions) -> Result<()> {
    for (permission, name) in PERMISSIONS.iter().enumerate() {
        let byte = permission as i64;
        let used = permissions.used.get(permission) == Some(&true);
        let shared = permissions.shared.get(permission) == Some(&true);
        if used {
            hold(file, USED_BASE + byte, path)?;
        }
        if !shared {
            hold(file, NOT_SHARED_BASE + byte, path)?;
        }
        if (used && is_held(file, NOT_SHARED_BASE + byte)) || (!shared && is_held(file, USED_BASE + byte)) {
            let shared_word = if used && is_held(file, NOT_SHARED_BASE + byte) { "" } else { "shared " };
            return Err(conflict(shared_word, name, path));
        }
    }
    Ok(())
}

fn conflict(shared: &str, name: &str, path: &str) -> Error {
    let text: String =
        std::format!("Failed to get {shared}\"{name}\" lock\nIs another process using the image [{path}]?");
    Error::new(ErrorKind::Busy, text)
}

fn hold(file: &File, byte: i64, path: &str) -> Result<()> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, byte))) {
        Ok(_) => Ok(()),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Err(conflict("", "byte range", path)),
        // A file system without locks: QEMU goes on without them, too.
        Err(_) => Ok(()),
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
