//! The JavaScript package's WebAssembly: compile, bind, optimise, weigh.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wasm_bindgen_cli_support::Bindgen;

use crate::process::{command, output, run as run_process};
use crate::provision;
use crate::toolchain::Toolchain;

const TARGET: &str = "wasm32-unknown-unknown";
const DIST: &str = "pkg/dist";
const CONTENTS_DIST: &str = "www/contents";

/// A module.
struct Build {
    package: &'static str,
    /// Where its files are put, and what they are called.
    dist: &'static str,
    name: &'static str,
    features: &'static str,
    /// It may weigh this much, gzipped.
    budget: u64,
}

const BUILDS: [Build; 4] = [
    Build { package: "diskette", dist: DIST, name: "diskette", features: "wasm,qcow2,deflate,zstd", budget: 150 << 10 },
    Build {
        package: "diskette",
        dist: DIST,
        name: "full",
        features: "wasm,qcow2,luks,deflate,zstd,write,crypto",
        budget: 350 << 10,
    },
    // The others are for the browser inspector, not in the package.
    Build {
        package: "diskette",
        dist: DIST,
        name: "inspector",
        features: "wasm,qcow2,luks,deflate,zstd,write,crypto,structure",
        budget: 450 << 10,
    },
    Build { package: "diskette-contents", dist: CONTENTS_DIST, name: "contents", features: "wasm", budget: 180 << 10 },
];

/// Builds `pkg/dist` and `www/contents`. With `release` the modules are also optimised by Binaryen, if pkg has it installed.
pub(crate) fn run(release: bool) -> Result<()> {
    let toolchain = Toolchain::for_target(TARGET)?;
    for build in &BUILDS {
        std::fs::create_dir_all(build.dist)?;
        make(build, toolchain, release)?;
    }
    // All are weighed before one that is too heavy is complained of.
    let mut heavy = Vec::new();
    for build in &BUILDS {
        let packed = weigh(build)?;
        if packed > build.budget {
            heavy.push(format!("the module '{}' is {} bytes over its budget", build.name, packed - build.budget));
        }
    }
    if heavy.is_empty() { Ok(()) } else { bail!(heavy.join("; ")) }
}

/// Whether the modules are there, however old.
pub(crate) fn are_made() -> bool {
    BUILDS.iter().all(|build| Path::new(&build.module()).exists())
}

fn make(build: &Build, toolchain: Toolchain, release: bool) -> Result<()> {
    let Build { package, dist, .. } = *build;
    let args = [
        "rustc",
        "--package",
        package,
        "--lib",
        "--crate-type",
        "cdylib",
        "--profile",
        "wasm",
        "--no-default-features",
        "--features",
        build.features,
        "--target",
        TARGET,
    ];
    run_process(&mut toolchain.cargo(&args, "std,panic_abort"))?;
    let module = format!("{}/{TARGET}/wasm/{}.wasm", toolchain.target_dir(), package.replace('-', "_"));
    Bindgen::new()
        .input_path(&module)
        .out_name(build.name)
        .typescript(true)
        .remove_producers_section(true)
        .remove_name_section(true)
        .omit_default_module_path(false)
        .web(true)?
        // After a trap there has to be a fresh instance.
        .reset_state_function(dist == CONTENTS_DIST)
        .generate(dist)
        .context("wasm-bindgen failed")?;
    let bound = build.module();
    let optimiser = Path::new("pkg/node_modules/binaryen/bin/wasm-opt");
    if release && optimiser.exists() {
        let optimised = format!("{dist}/optimised.wasm");
        run_process(command("node").arg(optimiser).args(["-O3", &bound, "-o", &optimised]))?;
        std::fs::rename(&optimised, &bound)?;
    }
    Ok(())
}

impl Build {
    fn module(&self) -> String {
        format!("{}/{}_bg.wasm", self.dist, self.name)
    }
}

/// Prints what the module weighs; gives its size after gzip.
fn weigh(build: &Build) -> Result<u64> {
    let module = build.module();
    let bytes = std::fs::read(&module).with_context(|| format!("{module} was not made"))?;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&bytes)?;
    let packed = encoder.finish()?.len() as u64;
    let brotli = if provision::has("node") {
        let script = "process.stdout.write(String(zlib.brotliCompressSync(fs.readFileSync(process.argv[1])).length))";
        format!(", {} with brotli", output(command("node").args(["-e", script, &module]))?)
    } else {
        String::new()
    };
    println!("{module}: {} bytes, {packed} gzipped (at most {}){brotli}", bytes.len(), build.budget);
    Ok(packed)
}
