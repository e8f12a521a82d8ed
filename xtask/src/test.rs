//! Everything that must hold, step by step.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, command, run as run_process};
use crate::{fuzz, no_std, provision, wasm};

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", about: "the code is formatted", run: fmt },
    Step { name: "clippy", about: "no lints", run: clippy },
    Step {
        name: "nextest",
        about: "unit and integration tests, with the tools of QEMU, cryptsetup and file systems as oracles",
        run: nextest,
    },
    Step { name: "portable", about: "the same tests of the core with the portable decoders", run: portable },
    Step { name: "doctest", about: "examples in the documentation", run: doctest },
    Step { name: "rustdoc", about: "the documentation builds without warnings", run: rustdoc },
    Step { name: "no-std", about: "a bare-metal program links", run: no_std::run },
    Step { name: "wasm", about: "the WebAssembly modules build and keep their budgets", run: wasm_step },
    Step { name: "node", about: "the JavaScript package in Node.js", run: node },
    Step { name: "browser", about: "the inspector in headless Chromium", run: browser },
    Step { name: "fuzz", about: "the fuzz targets, for a moment each", run: fuzz::run },
    Step { name: "deny", about: "licences and sources of the dependencies", run: deny },
];

pub(crate) fn run(args: &[String]) -> Result<()> {
    if args.iter().any(|arg| arg == "--list") {
        for step in STEPS {
            println!("{:<10} {}", step.name, step.about);
        }
        return Ok(());
    }
    if let Some(unknown) = args.iter().find(|arg| !STEPS.iter().any(|step| step.name == **arg)) {
        bail!("there is no step '{unknown}'; cargo xtask test --list shows them");
    }
    let start = Instant::now();
    for step in STEPS {
        if !args.is_empty() && !args.iter().any(|arg| arg == step.name) {
            continue;
        }
        println!("\n== {}: {}", step.name, step.about);
        let begun = Instant::now();
        (step.run)().with_context(|| format!("step '{}'", step.name))?;
        println!("== {}: ok, {:.1} s", step.name, begun.elapsed().as_secs_f64());
    }
    println!("\nall steps passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn fmt() -> Result<()> {
    run_process(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    run_process(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    // What is left out of smaller builds is left out whole.
    for features in
        ["", "qcow2,deflate,zstd", "luks", "qcow2,write", "native", "structure", "qcow2,structure", "luks,structure"]
    {
        let chosen = ["clippy", "--package", "diskette", "--lib", "--no-default-features", "--features", features];
        run_process(&mut cargo(&[&chosen[..], &["--locked", "--", "-D", "warnings"]].concat()))?;
    }
    Ok(())
}

fn nextest() -> Result<()> {
    provision::cargo_tool("cargo-nextest")?;
    provision::program("qemu-img", "qemu-utils")?;
    provision::program("cryptsetup", "cryptsetup-bin")?;
    for (program, package) in provision::FILE_SYSTEM_TOOLS {
        provision::program(program, package)?;
    }
    run_process(&mut cargo(&["nextest", "run", "--workspace", "--locked"]))
}

fn portable() -> Result<()> {
    // Alone, so that the command line's faster decoders are not built in.
    run_process(&mut cargo(&["nextest", "run", "--package", "diskette", "--locked"]))
}

fn doctest() -> Result<()> {
    run_process(&mut cargo(&["test", "--doc", "--package", "diskette", "--package", "diskette-contents", "--locked"]))
}

fn rustdoc() -> Result<()> {
    let packages = ["--package", "diskette", "--package", "diskette-contents"];
    let mut doc = cargo(&[&["doc", "--no-deps", "--locked"][..], &packages].concat());
    run_process(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn wasm_step() -> Result<()> {
    provision::node()?;
    install_packages("pkg")?;
    wasm::run(true)
}

/// Installs the npm packages of a folder as its lock file says.
pub(crate) fn install_packages(folder: &str) -> Result<()> {
    if !Path::new(folder).join("package.json").exists() {
        return Ok(());
    }
    let mut npm = command("npm");
    npm.current_dir(folder).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
    run_process(&mut npm)
}

fn node() -> Result<()> {
    provision::program("qemu-img", "qemu-utils")?;
    if !wasm::are_made() {
        wasm_step()?;
    }
    let mut npm = command("npm");
    npm.current_dir("pkg").args(["test", "--silent"]);
    run_process(&mut npm)
}

fn browser() -> Result<()> {
    provision::node()?;
    provision::program("qemu-img", "qemu-utils")?;
    provision::program("mke2fs", "e2fsprogs")?;
    provision::program("sfdisk", "fdisk")?;
    if !provision::has("chromium") {
        provision::debian(&["chromium"])?;
    }
    if !wasm::are_made() {
        wasm_step()?;
    }
    install_packages("www")?;
    let npm = |script: &str| {
        let mut npm = command("npm");
        npm.current_dir("www").args(["run", script, "--silent"]);
        run_process(&mut npm)
    };
    npm("build")?;
    // The program has the page in it, and serves it.
    run_process(&mut cargo(&["build", "--locked", "--package", "diskette-cli"]))?;
    npm("test")
}

fn deny() -> Result<()> {
    provision::cargo_tool("cargo-deny")?;
    run_process(&mut cargo(&["deny", "--log-level", "error", "check", "licenses", "bans", "sources"]))
}
