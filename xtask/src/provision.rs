//! Installing what a task needs: use what is there, else install it where we may, else say what to install.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{command, run, succeeds};

/// What makes the disks whose contents are looked at.
pub(crate) const FILE_SYSTEM_TOOLS: [(&str, &str); 12] = [
    ("sfdisk", "fdisk"),
    ("parted", "parted"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("ntfs-3g", "ntfs-3g"),
    ("setfattr", "attr"),
    ("genisoimage", "genisoimage"),
    ("mkfs.exfat", "exfatprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mksquashfs", "squashfs-tools"),
];

/// Whether a program can be started.
pub(crate) fn has(program: &str) -> bool {
    succeeds(Command::new("sh").args(["-c", &format!("command -v {program}")]))
}

/// Makes sure of a program, from a Debian package if need be.
pub(crate) fn program(program: &str, package: &str) -> Result<()> {
    if has(program) {
        return Ok(());
    }
    debian(&[package])?;
    if has(program) {
        return Ok(());
    }
    bail!("'{program}' is missing although {package} was installed")
}

/// What the tools of `www` ask for; the package itself is content with less.
const NODE: (u32, u32) = (20, 19);

/// Makes sure of npm and of a Node.js that is new enough.
pub(crate) fn node() -> Result<()> {
    program("npm", "npm")?;
    let version = crate::process::output(command("node").arg("--version"))?;
    if node_version(&version).is_some_and(|version| version >= NODE) {
        return Ok(());
    }
    let (major, minor) = NODE;
    bail!(
        "Node.js {major}.{minor} or newer is needed and this is {}; see https://nodejs.org/en/download",
        version.trim()
    )
}

fn node_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix('v')?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Installs Debian packages, or says which ones are needed.
pub(crate) fn debian(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !may_install() {
        bail!("needed and not found; please install (Debian, Ubuntu): apt-get install {list}");
    }
    println!("installing {list}");
    let apt = |args: &[&str]| {
        let mut apt = command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(args);
        apt.stdout(std::process::Stdio::null());
        run(&mut apt)
    };
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages);
    if apt(&install).is_ok() {
        return Ok(());
    }
    // The lists may be old or missing.
    apt(&["update"])?;
    apt(&install)
}

/// Whether we are root on Debian.
fn may_install() -> bool {
    Path::new("/etc/debian_version").exists()
        && crate::process::output(command("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Makes sure of a cargo subcommand.
pub(crate) fn cargo_tool(name: &str) -> Result<()> {
    if has(name) {
        return Ok(());
    }
    println!("installing {name}");
    run(&mut crate::process::cargo(&["install", "--locked", "--quiet", name]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_node_is_told_from_a_new_one() {
        assert!(node_version("v18.19.0\n").unwrap() < NODE);
        assert!(node_version("v20.9.0").unwrap() < NODE);
        assert!(node_version("v20.20.2").unwrap() > NODE);
        assert!(node_version("v22.1.0").unwrap() > NODE);
        assert_eq!(node_version("unknown"), None);
    }
}
