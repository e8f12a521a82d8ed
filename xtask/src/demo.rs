//! What a newcomer sees: an image inspected on the command line and in the browser.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, command, released, run as run_process};
use crate::{provision, serve, test, wasm};

const SAMPLE: &str = "target/demo/sample.qcow2";

/// What the user asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    image: Option<PathBuf>,
    serve: bool,
    port: u16,
}

impl Wish {
    /// Reads the words after `demo`; a relative path counts from `folder`.
    fn parse(args: &[String], folder: &Path) -> Result<Wish> {
        let mut wish = Wish { image: None, serve: true, port: serve::port(args)? };
        let mut words = args.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--no-serve" => wish.serve = false,
                "--port" => drop(words.next()),
                option if option.starts_with('-') => bail!("demo has no option '{option}'"),
                _ if wish.image.is_some() => bail!("demo shows one image; '{word}' is one too many"),
                image => wish.image = Some(folder.join(image)),
            }
        }
        Ok(wish)
    }
}

/// Runs the demo; `folder` is where the user is.
pub(crate) fn run(args: &[String], folder: &Path) -> Result<()> {
    let wish = Wish::parse(args, folder)?;
    if let Some(image) = &wish.image {
        std::fs::File::open(image).with_context(|| format!("could not open {}", image.display()))?;
    }
    println!("== building the command line");
    run_process(&mut cargo(&["build", "--release", "--locked", "--package", "diskette-cli"]))?;
    let diskette = released("diskette")?;
    let image = match wish.image {
        Some(image) => image,
        None => make_sample(&diskette)?,
    };
    println!("\n== diskette inspect {}\n", image.display());
    // Its exit code tells how risky the image is; a risky image is no failure of the demo.
    let _ = command(&diskette).arg("inspect").arg(&image).status();
    println!("\n== building the browser inspector");
    provision::node()?;
    test::install_packages("pkg")?;
    wasm::run(true)?;
    test::install_packages("www")?;
    let mut npm = command("npm");
    npm.current_dir("www").args(["run", "build", "--silent"]);
    run_process(&mut npm)?;
    if !wish.serve {
        println!("\nthe inspector is in www/dist");
        return Ok(());
    }
    println!("\n== the browser inspector: open this address and drop an image on the page");
    serve::serve(Path::new("www/dist"), wish.port)
}

/// A qcow2 image with the library's own sources in it.
fn make_sample(diskette: &Path) -> Result<PathBuf> {
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
    run_process(command(diskette).args(["convert", "-f", "raw", "-O", "qcow2", raw, SAMPLE]))?;
    Ok(PathBuf::from(SAMPLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Wish> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_string()).collect();
        Wish::parse(&args, Path::new("/folder"))
    }

    #[test]
    fn an_image_is_looked_for_where_the_user_is() {
        let wish = parse(&["--port", "9000", "disk.qcow2", "--no-serve"]).unwrap();
        assert_eq!(wish, Wish { image: Some("/folder/disk.qcow2".into()), serve: false, port: 9000 });
        assert_eq!(parse(&["/tmp/disk.qcow2"]).unwrap().image, Some("/tmp/disk.qcow2".into()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for args in [&["--noserve"][..], &["one", "two"], &["--port"], &["--port", "many"]] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
