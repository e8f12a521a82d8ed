//! The library without an operating system: a program is linked, not only checked.

use anyhow::{Result, bail};

use crate::process;
use crate::toolchain::Toolchain;

fn build(directory: &str, target: &str, args: &[&str]) -> Result<Toolchain> {
    let toolchain = Toolchain::for_target(target)?;
    let mut all = args.to_vec();
    all.extend(["--target", target]);
    let mut cargo = toolchain.cargo(&all, "core,alloc");
    cargo.current_dir(directory);
    process::run(&mut cargo)?;
    Ok(toolchain)
}

pub(crate) fn run() -> Result<()> {
    let toolchain = build("tests/bare-metal", "x86_64-unknown-none", &["build", "--release"])?;
    let program = format!("tests/bare-metal/{}/x86_64-unknown-none/release/bare-metal", toolchain.target_dir());
    let Ok(metadata) = std::fs::metadata(&program) else { bail!("{program} was not linked") };
    println!("linked a bare-metal program of {} bytes", metadata.len());
    let features = "qcow2,deflate,zstd,write";
    build(
        ".",
        "thumbv7em-none-eabi",
        &["build", "--release", "-p", "diskette", "--lib", "--no-default-features", "--features", features],
    )?;
    Ok(())
}
