//! Makes an index of the inspector's page, if it was built, so that the program contains it for `serve`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_SERVE").is_none() {
        return Ok(());
    }
    let folder = |name| env::var_os(name).map(PathBuf::from).ok_or_else(|| io::Error::other(name));
    let www = folder("CARGO_MANIFEST_DIR")?.join("../www");
    let page = www.join("dist");
    let mut files = Vec::new();
    if page.join("index.html").is_file() {
        println!("cargo::rerun-if-changed={}", page.display());
        list(&page, "", &mut files)?;
    } else if www.is_dir() {
        // The folder of what is not there yet: a path that does not exist counts as changed in every build.
        println!("cargo::rerun-if-changed={}", www.display());
    }
    files.sort();
    let mut index = String::from("&[\n");
    for (name, path) in &files {
        writeln!(index, "    ({name:?}, include_bytes!({path:?})),").map_err(io::Error::other)?;
    }
    index.push_str("]\n");
    fs::write(folder("OUT_DIR")?.join("page.rs"), index)
}

/// The files of a folder and of those in it, with their names as an address has them.
fn list(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push((name, fs::canonicalize(entry.path())?));
        }
    }
    Ok(())
}
