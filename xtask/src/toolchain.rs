//! Which compiler can build for a target that is not this machine.
//!
//! The active rustup toolchain if it has the target's standard library; else `rustup target add`; else Debian's
//! compiler, which comes with the sources of its standard library and builds it on the way.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cargo, command, output, succeeds};
use crate::provision;

/// Debian's compiler and linker, always spelled alike: another spelling rebuilds the standard library.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_LINKER: &str = "/usr/bin/wasm-ld";
const DEBIAN_SOURCES: &str = "/usr/src";
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld"];

/// A compiler for a foreign target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// The active rustup toolchain.
    Rustup,
    /// Debian's compiler with `-Zbuild-std`.
    Debian,
}

impl Toolchain {
    /// Chooses one that can build for `target`.
    ///
    /// `XTASK_TOOLCHAIN=rustup|debian` forces one.
    pub(crate) fn for_target(target: &str) -> Result<Self> {
        match std::env::var("XTASK_TOOLCHAIN").as_deref() {
            Ok("rustup") => return Ok(Toolchain::Rustup),
            Ok("debian") => return Self::debian(),
            _ => {}
        }
        if has_std(target) {
            return Ok(Toolchain::Rustup);
        }
        // Once the server was out of reach it is not asked again; `cargo clean` forgets that.
        let stamp = Path::new("target/xtask-no-rustup-server");
        if provision::has("rustup") && !stamp.exists() {
            println!("adding the target {target}");
            if succeeds(command("timeout").args(["120", "rustup", "target", "add", target])) && has_std(target) {
                return Ok(Toolchain::Rustup);
            }
            let _ = std::fs::create_dir_all("target");
            let _ = std::fs::write(stamp, "");
        }
        Self::debian()
    }

    fn debian() -> Result<Self> {
        if !Self::debian_is_complete() {
            let missing = provision::debian(&DEBIAN_PACKAGES);
            if missing.is_err() || !Self::debian_is_complete() {
                bail!(
                    "no compiler for this target: run 'rustup target add wasm32-unknown-unknown x86_64-unknown-none thumbv7em-none-eabi', or on Debian 'apt-get install {}'",
                    DEBIAN_PACKAGES.join(" ")
                );
            }
        }
        Ok(Toolchain::Debian)
    }

    fn debian_is_complete() -> bool {
        let Ok(version) = output(command(DEBIAN_RUSTC).arg("--version")) else { return false };
        let number = version.split(' ').nth(1).unwrap_or_default();
        // The sources must be those of this compiler.
        Path::new(DEBIAN_CARGO).exists()
            && Path::new(DEBIAN_LINKER).exists()
            && Path::new(DEBIAN_SOURCES).join(format!("rustc-{number}")).exists()
    }

    /// Cargo with this compiler: arguments and, where the standard library is built on the way, its crates.
    pub(crate) fn cargo(self, args: &[&str], std_crates: &str) -> Command {
        match self {
            Toolchain::Rustup => {
                let mut command = cargo(args);
                command.args(["--target-dir", "target/foreign"]);
                command
            }
            Toolchain::Debian => {
                let mut command = command(DEBIAN_CARGO);
                command.args(args);
                command.args([&format!("-Zbuild-std={std_crates}"), "--target-dir", "target/foreign-debian"]);
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER);
                command.env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", "/usr/bin/ld.lld");
                command
            }
        }
    }

    /// Where it puts what it builds, below the folder the command runs in.
    pub(crate) fn target_dir(self) -> &'static str {
        match self {
            Toolchain::Rustup => "target/foreign",
            Toolchain::Debian => "target/foreign-debian",
        }
    }
}

fn has_std(target: &str) -> bool {
    let sysroot = output(command("rustc").args(["--print", "target-libdir", "--target", target]));
    sysroot.is_ok_and(|path| {
        std::fs::read_dir(path.trim()).is_ok_and(|mut files| {
            files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
        })
    })
}
