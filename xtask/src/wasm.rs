//! The JavaScript package's WebAssembly: compile, bind, optimise, weigh.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wasm_bindgen_cli_support::Bindgen;

use crate::process::{command, run as run_process};
use crate::toolchain::Toolchain;

/// The whole module, gzipped, may weigh this much.
const BUDGET_BYTES: u64 = 150 << 10;
const TARGET: &str = "wasm32-unknown-unknown";
const FEATURES: &str = "wasm,qcow2,deflate,zstd";
const DIST: &str = "pkg/dist";

/// Builds `pkg/dist`. With `release` the module is also optimised by Binaryen, if pkg has it installed.
pub(crate) fn run(release: bool) -> Result<()> {
    let toolchain = Toolchain::for_target(TARGET)?;
    let args = [
        "rustc",
        "--package",
        "diskette",
        "--lib",
        "--crate-type",
        "cdylib",
        "--profile",
        "wasm",
        "--no-default-features",
        "--features",
        FEATURES,
        "--target",
        TARGET,
    ];
    run_process(&mut toolchain.cargo(&args, "std,panic_abort"))?;
    let module = format!("{}/{TARGET}/wasm/diskette.wasm", toolchain.target_dir());
    std::fs::create_dir_all(DIST)?;
    Bindgen::new()
        .input_path(&module)
        .typescript(true)
        .remove_producers_section(true)
        .remove_name_section(true)
        .omit_default_module_path(false)
        .web(true)?
        .generate(DIST)
        .context("wasm-bindgen failed")?;
    let bound = format!("{DIST}/diskette_bg.wasm");
    let optimiser = Path::new("pkg/node_modules/binaryen/bin/wasm-opt");
    if release && optimiser.exists() {
        let optimised = format!("{DIST}/optimised.wasm");
        run_process(command("node").arg(optimiser).args(["-O3", &bound, "-o", &optimised]))?;
        std::fs::rename(&optimised, &bound)?;
    }
    weigh(&bound)
}

fn weigh(module: &str) -> Result<()> {
    let bytes = std::fs::read(module).with_context(|| format!("{module} was not made"))?;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&bytes)?;
    let packed = encoder.finish()?.len() as u64;
    println!("{module}: {} bytes, {packed} gzipped (at most {BUDGET_BYTES})", bytes.len());
    if packed > BUDGET_BYTES {
        bail!("the module is {} bytes over its budget", packed - BUDGET_BYTES);
    }
    Ok(())
}
