//! What a newcomer sees: an image inspected on the command line and in the browser.

use std::path::Path;

use anyhow::Result;

use crate::process::{cargo, command, run as run_process};
use crate::{provision, serve, test, wasm};

const DISKETTE: &str = "target/release/diskette";
const SAMPLE: &str = "target/demo/sample.qcow2";

pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut image = None;
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--no-serve" => {}
            "--port" => drop(words.next()),
            other => image = Some(other.to_string()),
        }
    }
    println!("== building the command line");
    run_process(&mut cargo(&["build", "--release", "--locked", "--package", "diskette-cli"]))?;
    let image = match image {
        Some(image) => image,
        None => make_sample()?,
    };
    println!("\n== diskette inspect {image}\n");
    // Its exit code tells how risky the image is; a risky image is no failure of the demo.
    let _ = command(DISKETTE).args(["inspect", &image]).status();
    println!("\n== building the browser inspector");
    provision::program("npm", "npm")?;
    test::install_packages("pkg")?;
    wasm::run(true)?;
    test::install_packages("www")?;
    let mut npm = command("npm");
    npm.current_dir("www").args(["run", "build", "--silent"]);
    run_process(&mut npm)?;
    if args.iter().any(|arg| arg == "--no-serve") {
        println!("\nthe inspector is in www/dist");
        return Ok(());
    }
    println!("\n== the browser inspector: open this address and drop an image on the page");
    serve::serve(Path::new("www/dist"), serve::port(args)?)
}

/// A qcow2 image with the library's own sources in it.
fn make_sample() -> Result<String> {
    std::fs::create_dir_all("target/demo")?;
    let raw = "target/demo/sample.raw";
    let mut bytes = vec![0; 8 << 20];
    let text = std::fs::read("README.md")?;
    for start in [0, 1 << 20, 5 << 20] {
        for (place, byte) in bytes.iter_mut().skip(start).zip(&text) {
            *place = *byte;
        }
    }
    std::fs::write(raw, bytes)?;
    let _ = std::fs::remove_file(SAMPLE);
    run_process(command(DISKETTE).args(["convert", "-f", "raw", "-O", "qcow2", raw, SAMPLE]))?;
    Ok(SAMPLE.to_string())
}
