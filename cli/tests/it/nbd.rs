//! Exports of `qemu-nbd`, read and written by this program and by QEMU's tools.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Scratch, assert_same, text};

/// A server that ends with the test.
struct Server {
    child: Child,
    socket: String,
}

impl Server {
    fn start(scratch: &Scratch, args: &[&str]) -> Self {
        let socket = scratch.path().join("nbd.sock").to_str().unwrap().to_string();
        let _ = std::fs::remove_file(&socket);
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--socket", &socket])
            .args(args)
            .current_dir(scratch.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server { child, socket };
        let began = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "qemu-nbd does not start: {args:?}");
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn name(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn disk(scratch: &Scratch, name: &str) {
    scratch.make("qemu-img", &["create", "-f", "raw", name, "8M"]);
    scratch.make("qemu-io", &["-f", "raw", "-c", "write -P 5 1M 1M", "-c", "write -P 6 6M 4k", name]);
}

fn succeeds(scratch: &Scratch, args: &[&str]) -> String {
    let output = scratch.ours(args);
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn an_export_reads_as_it_does_for_qemu() {
    let scratch = Scratch::new();
    disk(&scratch, "disk.raw");
    let server = Server::start(&scratch, &["-f", "raw", "-x", "exp", "-r", "-e", "8", "disk.raw"]);
    let (name, socket) = (server.name("exp"), &server.socket);
    let old = format!("nbd:unix:{socket}:exportname=exp");
    let options = format!("driver=nbd,server.type=unix,server.path={socket},export=exp");
    let legacy = format!("driver=raw,file.driver=nbd,file.path={socket},file.export=exp");
    let json = format!("json:{{\"driver\": \"nbd\", \"path\": \"{socket}\", \"export\": \"exp\"}}");
    for output in ["--output=human", "--output=json"] {
        for name in [&name, &old, &json] {
            assert_same(&scratch, &["info", output, name]);
            assert_same(&scratch, &["map", output, name]);
        }
        for options in [&options, &legacy] {
            assert_same(&scratch, &["info", output, "--image-opts", options]);
            assert_same(&scratch, &["map", output, "--image-opts", options]);
        }
    }
    assert_same(&scratch, &["compare", &name, "disk.raw"]);
    assert_same(&scratch, &["check", &name]);
    succeeds(&scratch, &["convert", "-O", "qcow2", &name, "copy.qcow2"]);
    scratch.make("qemu-img", &["compare", "copy.qcow2", "disk.raw"]);
    succeeds(&scratch, &["dd", &format!("if={name}"), "of=part.raw", "bs=1M", "skip=1", "count=2"]);
    assert_eq!(std::fs::read(scratch.path().join("part.raw")).unwrap(), vec![5; 1 << 20]);
}

#[test]
fn what_cannot_be_opened_is_refused_in_the_same_words() {
    let scratch = Scratch::new();
    disk(&scratch, "disk.raw");
    let server = Server::start(&scratch, &["-f", "raw", "-x", "exp", "-r", "disk.raw"]);
    let socket = &server.socket;
    let names = [
        server.name("nope"),
        format!("nbd:unix:{socket}"),
        "nbd+unix:///exp?socket=missing.sock".into(),
        "nbd://localhost:1/exp".into(),
        "nbd:localhost:1".into(),
        "nbd:".into(),
        "nbd://".into(),
        "nbd:localhost".into(),
        "nbd:localhost:x".into(),
        "nbd+foo://x/y".into(),
        "nbd://localhost/exp?x=y".into(),
    ];
    for name in &names {
        assert_same(&scratch, &["info", name]);
    }
    for options in [
        "driver=nbd,export=exp".to_string(),
        "driver=nbd,path=a,host=b".into(),
        "driver=nbd,path=a,port=7".into(),
        "driver=nbd,server.type=unix".into(),
        "driver=nbd,server.type=foo".into(),
        "driver=nbd,server.type=inet,server.host=localhost".into(),
        format!("driver=nbd,path={socket},export=exp,foo=bar"),
        format!("driver=nbd,path={socket},export=exp,reconnect-delay=x"),
    ] {
        assert_same(&scratch, &["info", "--image-opts", &options]);
    }
    // For want of write access.
    let output = scratch.ours(&["convert", "-n", "-O", "raw", "disk.raw", &server.name("exp")]);
    assert_eq!(output.status.code(), Some(1));
    let output = scratch.ours(&["info", "--image-opts", &format!("driver=nbd,path={socket},tls-creds=t0")]);
    assert!(text(&output.stderr).contains("TLS ('tls-creds') is not supported"), "{}", text(&output.stderr));
}

#[test]
fn an_export_is_a_target_like_any_other() {
    let scratch = Scratch::new();
    disk(&scratch, "disk.raw");
    scratch.make("qemu-img", &["create", "-f", "raw", "target.raw", "16M"]);
    scratch.make("qemu-io", &["-f", "raw", "-c", "write -P 9 0 16M", "target.raw"]);
    for clients in ["1", "2", "8"] {
        let server = Server::start(&scratch, &["-f", "raw", "-e", clients, "target.raw"]);
        let name = server.name("");
        succeeds(&scratch, &["convert", "-n", "-O", "raw", "disk.raw", &name]);
        assert_eq!(
            scratch.theirs(&["compare", "-f", "raw", "-F", "raw", "disk.raw", "target.raw"]).status.code(),
            Some(1)
        );
        let written = std::fs::read(scratch.path().join("target.raw")).unwrap();
        let wanted = std::fs::read(scratch.path().join("disk.raw")).unwrap();
        assert!(written[..8 << 20] == wanted && written[8 << 20..].iter().all(|byte| *byte == 9), "{clients}");

        succeeds(&scratch, &["convert", "-O", "qcow2", "disk.raw", &name]);
        succeeds(&scratch, &["compare", &name, "disk.raw"]);
        assert_same(&scratch, &["check", &name]);
        assert_same(&scratch, &["info", &name]);
        scratch.make("qemu-img", &["compare", "-U", "-f", "qcow2", "-F", "raw", "target.raw", "disk.raw"]);

        assert_same(&scratch, &["create", "-f", "raw", &name, "1M"]);
        assert!(succeeds(&scratch, &["info", &name]).contains("file format: raw"));
        assert_same(&scratch, &["create", "-f", "raw", &name, "17M"]);
        drop(server);
        scratch.make("qemu-io", &["-f", "raw", "-c", "write -P 9 0 16M", "target.raw"]);
    }
}

#[test]
fn blocks_of_the_server_are_kept_to() {
    let scratch = Scratch::new();
    disk(&scratch, "disk.raw");
    let image = "driver=raw,file.driver=blkdebug,file.align=4096,file.image.driver=file,file.image.filename=disk.raw";
    let server = Server::start(&scratch, &["--image-opts", image]);
    let name = server.name("");
    let io = |commands: &[&str]| {
        let mut args = vec!["io", "-f", "raw"];
        args.extend(commands.iter().flat_map(|command| ["-c", *command]));
        args.push(&name);
        succeeds(&scratch, &args)
    };
    io(&["write -P 7 1000 5000", "write -z 10000 9000", "discard 20000 9000", "read -P 7 1000 5000", "flush"]);
    io(&["read -P 0 10000 9000", "read -P 5 1048577 4000", "write -z -u 1M 8k", "read -P 0 1M 8k", "map"]);
    assert_same(&scratch, &["map", "--output=json", &name]);
    drop(server);
    scratch.make("qemu-io", &["-f", "raw", "-c", "read -P 7 1000 5000", "-c", "read -P 0 1M 8k", "disk.raw"]);
}

#[test]
fn a_bitmap_of_the_server_can_be_looked_at() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-f", "qcow2", "disk.qcow2", "4M"]);
    scratch.make("qemu-img", &["bitmap", "--add", "disk.qcow2", "b0"]);
    scratch.make("qemu-io", &["-f", "qcow2", "-c", "write 1M 128k", "disk.qcow2"]);
    let server = Server::start(&scratch, &["-f", "qcow2", "-r", "-B", "b0", "-A", "disk.qcow2"]);
    for context in ["qemu:dirty-bitmap:b0", "qemu:allocation-depth"] {
        let options = format!("driver=nbd,path={},x-dirty-bitmap={context}", server.socket);
        assert_same(&scratch, &["map", "--output=json", "--image-opts", &options]);
    }
    let options = format!("driver=nbd,path={},x-dirty-bitmap=qemu:dirty-bitmap:b1", server.socket);
    assert!(!scratch.ours(&["info", "--image-opts", &options]).status.success());
}

#[test]
fn an_image_may_be_backed_by_an_export() {
    let scratch = Scratch::new();
    disk(&scratch, "disk.raw");
    let server = Server::start(&scratch, &["-f", "raw", "-x", "exp", "-r", "-e", "4", "disk.raw"]);
    let name = server.name("exp");
    succeeds(&scratch, &["create", "-f", "qcow2", "-b", &name, "-F", "raw", "top.qcow2"]);
    assert_same(&scratch, &["info", "--backing-chain", "top.qcow2"]);
    assert_same(&scratch, &["map", "--output=json", "top.qcow2"]);
    succeeds(&scratch, &["compare", "top.qcow2", "disk.raw"]);
}

#[test]
fn a_server_may_be_reached_over_tcp() {
    let scratch = Scratch::new();
    disk(&scratch, "disk.raw");
    // Any port that is free will do.
    for port in (20_000 + std::process::id() % 20_000..).take(20) {
        let port = port.to_string();
        let args = ["-f", "raw", "-t", "-r", "-x", "exp", "-b", "127.0.0.1", "-p", &port, "disk.raw"];
        let child = Command::new("qemu-nbd").args(args).current_dir(scratch.path()).spawn().unwrap();
        let server = Server { child, socket: String::new() };
        let name = format!("nbd://127.0.0.1:{port}/exp");
        let timeout =
            format!("driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=exp,open-timeout=3");
        if scratch.ours(&["info", "--image-opts", &timeout]).status.success() {
            assert_same(&scratch, &["info", &name]);
            assert_same(&scratch, &["info", "--output=json", &format!("nbd:127.0.0.1:{port}:exportname=exp")]);
            assert_same(&scratch, &["info", "--image-opts", &timeout]);
            succeeds(&scratch, &["compare", &name, "disk.raw"]);
            return;
        }
        drop(server);
    }
    panic!("no port is free");
}
