//! Installing what a task needs: use what is there, else install it where we may, else say what to install.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{command, run, succeeds};

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
