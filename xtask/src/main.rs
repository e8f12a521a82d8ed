//! Development tasks: `cargo xtask help` lists them.

mod bench;
mod demo;
mod fuzz;
mod nbd;
mod no_std;
mod process;
mod provision;
mod serve;
mod test;
mod toolchain;
mod wasm;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask TASK

  test [STEP…]            provision what the tests need and run all steps, or those named
  test --list             list the steps
  demo [IMAGE]            inspect an image (or a sample) and serve the browser inspector
       [--no-serve] [--port N]
  wasm [--release]        build the WebAssembly into pkg/dist and www/contents
  no-std                  link a bare-metal program against the library
  bench [CASE]            compare with qemu-img, and native with WebAssembly ('bench wasm': only that)
  serve DIR [--port N]    serve a folder on localhost";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let folder = std::env::current_dir()?;
    std::env::set_current_dir(process::root())?;
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("test") => test::run(rest),
        Some("demo") => demo::run(rest, &folder),
        Some("wasm") => wasm::run(rest.iter().any(|arg| arg == "--release")),
        Some("no-std") => no_std::run(),
        Some("bench") => bench::run(rest),
        Some("serve") => serve::run(rest, &folder),
        None | Some("help" | "--help" | "-h") => {
            println!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("there is no task '{other}'\n\n{HELP}"),
    }
}
