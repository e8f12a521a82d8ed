//! A small file server for localhost.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

const DEFAULT_PORT: u16 = 8017;

/// Serves a folder; a relative one counts from `folder`.
pub(crate) fn run(args: &[String], folder: &Path) -> Result<()> {
    let directory = args.first().filter(|arg| !arg.starts_with('-')).map(|name| folder.join(name));
    serve(&directory.unwrap_or_else(|| PathBuf::from("www/dist")), port(args)?)
}

/// The port after `--port`.
pub(crate) fn port(args: &[String]) -> Result<u16> {
    match args.iter().position(|arg| arg == "--port") {
        Some(position) => {
            args.get(position + 1).context("--port needs a number")?.parse().context("--port needs a number")
        }
        None => Ok(DEFAULT_PORT),
    }
}

/// Serves a folder until the program is ended.
pub(crate) fn serve(directory: &Path, port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .with_context(|| format!("port {port} is not free; choose one with --port"))?;
    println!("http://{}/  (end with Ctrl-C)", listener.local_addr()?);
    for stream in listener.incoming() {
        let directory = directory.to_path_buf();
        let stream = stream?;
        std::thread::spawn(move || {
            // A browser that goes away is no reason to stop.
            let _ = answer(&stream, &directory);
        });
    }
    Ok(())
}

fn answer(stream: &TcpStream, directory: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.take(64 << 10));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => range = parse_range(value.trim()),
            _ => {}
        }
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method != "GET" && method != "HEAD" {
        return respond(stream, "405 Method Not Allowed", "text/plain", &[], b"");
    }
    let Some(mut file) = safe_path(directory, target).and_then(|path| File::open(&path).ok().map(|file| (file, path)))
    else {
        return respond(stream, "404 Not Found", "text/plain", &[], b"not found");
    };
    let length = file.0.metadata()?.len();
    let (status, start, end, mut extra) = match range {
        Some((start, _)) if start >= length => {
            let extra = [format!("Content-Range: bytes */{length}")];
            return respond(stream, "416 Range Not Satisfiable", "text/plain", &extra, b"");
        }
        Some((start, end)) => {
            let end = end.map_or(length, |end| end.saturating_add(1).min(length));
            ("206 Partial Content", start, end, vec![format!("Content-Range: bytes {start}-{}/{length}", end - 1)])
        }
        None => ("200 OK", 0, length, Vec::new()),
    };
    extra.push(format!("Content-Length: {}", end - start));
    head(stream, status, content_type(&file.1), &extra)?;
    if method == "GET" {
        file.0.seek(SeekFrom::Start(start))?;
        std::io::copy(&mut file.0.take(end - start), &mut &*stream)?;
    }
    Ok(())
}

fn parse_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
    let end = if end.is_empty() { None } else { Some(end.parse().ok()?) };
    Some((start.parse().ok()?, end))
}

/// The file that a request means; `None` if it leads out of the folder.
fn safe_path(directory: &Path, target: &str) -> Option<PathBuf> {
    let path = target.split(['?', '#']).next()?.trim_start_matches('/');
    let path = Path::new(if path.is_empty() { "index.html" } else { path });
    path.components()
        .all(|part| matches!(part, Component::Normal(_)))
        .then(|| directory.join(path))
        .filter(|path| path.is_file())
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("wasm") => "application/wasm",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

fn head(mut stream: &TcpStream, status: &str, kind: &str, extra: &[String]) -> std::io::Result<()> {
    let mut text =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nAccept-Ranges: bytes\r\nConnection: close\r\n");
    for line in extra {
        text.push_str(line);
        text.push_str("\r\n");
    }
    stream.write_all(text.as_bytes())?;
    stream.write_all(b"\r\n")
}

fn respond(mut stream: &TcpStream, status: &str, kind: &str, extra: &[String], body: &[u8]) -> std::io::Result<()> {
    let mut extra = extra.to_vec();
    extra.push(format!("Content-Length: {}", body.len()));
    head(stream, status, kind, &extra)?;
    stream.write_all(body)
}
