//! `serve`: who is answered, what is given of images and of the page, and what may change them.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::{Scratch, text};

const INDEX: &str = "<!doctype html><html><head>\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src \
                     'self'\" /></head><body></body></html>";

/// A server that ends with the test.
struct Server {
    child: Child,
    host: String,
    /// The path of the page: `/TOKEN/`.
    root: String,
}

/// What was answered.
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("this is no answer: {:?}", text(bytes)));
        let head = text(&bytes[..end]);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap()).map(|(name, value)| (name.into(), value.into()));
        Reply { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    fn text(&self) -> String {
        text(&self.body)
    }

    fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// The arguments of `serve` with a page, which is made if it is not there.
fn command(scratch: &Scratch, args: &[&str]) -> Command {
    let page = scratch.path().join("page");
    if !page.exists() {
        fs::create_dir_all(page.join("assets")).unwrap();
        fs::write(page.join("index.html"), INDEX).unwrap();
        fs::write(page.join("assets/main-1a2b.js"), "export {};\n").unwrap();
        fs::write(page.join("assets/core.wasm"), [0, 1, 2, 3]).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_diskette"));
    command.args(["serve", "--page", "page"]).args(args).current_dir(scratch.path());
    command
}

/// What a server says that does not start.
fn refused(scratch: &Scratch, args: &[&str]) -> String {
    let output = command(scratch, args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stdout));
    assert_eq!(text(&output.stdout), "", "{args:?}");
    text(&output.stderr)
}

impl Server {
    fn start(scratch: &Scratch, args: &[&str]) -> Self {
        Self::spawn(&mut command(scratch, args))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").unwrap_or_else(|| panic!("no address: {line:?}"));
        let (host, path) = address.split_once('/').unwrap();
        Server { child, host: host.to_string(), root: format!("/{path}") }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request as it is and gives everything that comes back until the connection ends.
    fn send(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // A server that has heard enough may not take the rest.
        let _ = stream.write_all(request);
        rest(&mut stream)
    }

    fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut request = format!("{request}\r\n").into_bytes();
        request.extend_from_slice(body);
        Reply::parse(&self.send(&request))
    }

    /// A request as the page makes it.
    fn ask(&self, method: &str, name: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let length = body.len().to_string();
        let mut all = vec![("Host", self.host.as_str()), ("Sec-Fetch-Site", "same-origin")];
        if !body.is_empty() {
            all.push(("Content-Length", &length));
        }
        all.extend_from_slice(headers);
        self.raw(method, &format!("{}{name}", self.root), &all, body)
    }

    fn get(&self, name: &str) -> Reply {
        self.ask("GET", name, &[], b"")
    }

    fn range(&self, name: &str, range: &str) -> Reply {
        self.ask("GET", name, &[("Range", range)], b"")
    }

    /// Becomes the writer of the first image.
    fn writer(&self) -> String {
        let reply = self.ask("POST", "images/0/writer", &[], b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["writer"].as_str().unwrap().to_string()
    }

    fn patch(&self, writer: &str, at: usize, bytes: &[u8]) -> Reply {
        let range = format!("bytes {at}-{}/*", at + bytes.len() - 1);
        self.ask("PATCH", "images/0", &[("Diskette-Writer", writer), ("Content-Range", &range)], bytes)
    }

    /// Begins to write the first four bytes of the first image, which are still to be sent.
    fn begin_patch(&self, writer: &str) -> TcpStream {
        let mut slow = self.connect();
        let request = format!(
            "PATCH {}images/0 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nDiskette-Writer: {writer}\r\n\
             Content-Range: bytes 0-3/*\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
            self.root, self.host
        );
        slow.write_all(request.as_bytes()).unwrap();
        let mut go_on = [0; 25];
        slow.read_exact(&mut go_on).unwrap();
        assert_eq!(text(&go_on), "HTTP/1.1 100 Continue\r\n\r\n");
        slow
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// A number of kibibytes that the kernel tells of the process.
    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that comes until the connection ends, however it ends.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 65536];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("the server neither answers nor ends the connection: {error}"),
        }
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + (at >> 8)) as u8).collect()
}

/// QEMU's exerciser with an image open for writing.
struct Holder(Child, Option<ChildStdin>);

impl Holder {
    fn open(scratch: &Scratch, image: &str) -> Self {
        let mut child = Command::new("qemu-io")
            .arg(image)
            .current_dir(scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"write 0 512\n").unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        while !line.contains("wrote") {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "qemu-io does not write");
        }
        Holder(child, Some(stdin))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.1.take();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn strangers_learn_nothing() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("disk.raw"), pattern(4096)).unwrap();
    let server = Server::start(&scratch, &["disk.raw"]);
    let host = server.host.clone();
    let token = server.root.trim_matches('/').to_string();
    assert!(token.len() >= 32 && token.bytes().all(|digit| digit.is_ascii_hexdigit()), "{token}");
    let port = host.split_once(':').unwrap().1;
    let nothing = |reply: Reply, status: u16, what: &str| {
        assert_eq!((reply.status, reply.text()), (status, String::new()), "{what}");
        for (name, value) in &reply.headers {
            assert!(!name.starts_with("access-control"), "{what}: {name}");
            assert!(!value.contains(&token), "{what}: {name}: {value}");
        }
    };
    let mut wrong = token.clone();
    wrong.replace_range(31.., if token.ends_with('0') { "1" } else { "0" });
    let paths =
        ["/", "/images.json", "/images/0", "/index.html", &format!("/{wrong}/"), &format!("/{wrong}/images.json")];
    for path in
        paths.into_iter().chain([format!("//{token}/").as_str(), &format!("/x/{token}/"), &format!("/{token}x/")])
    {
        nothing(server.raw("GET", path, &[("Host", &host), ("Range", "bytes=0-1")], b""), 404, path);
    }
    let page = server.root.clone();
    let own = ("Host", host.as_str());
    let (localhost, other_port) =
        (format!("localhost:{port}"), format!("http://127.0.0.1:{}", port.parse::<u16>().unwrap() ^ 1));
    let origin = format!("http://{host}");
    let strangers: &[&[(&str, &str)]] = &[
        &[],
        &[("Host", "127.0.0.1")],
        &[("Host", &localhost)],
        &[("Host", "rebound.example")],
        &[own, ("Host", "rebound.example")],
        &[own, ("Origin", "https://evil.example")],
        &[own, ("Origin", "null")],
        &[own, ("Origin", &other_port)],
        &[own, ("Sec-Fetch-Site", "cross-site")],
        &[own, ("Sec-Fetch-Site", "same-site")],
        &[own, ("Origin", &origin), ("Sec-Fetch-Site", "cross-site")],
    ];
    for headers in strangers {
        for path in [page.clone(), format!("{page}images.json"), format!("{page}images/0")] {
            for method in ["GET", "HEAD", "OPTIONS", "PATCH"] {
                nothing(server.raw(method, &path, headers, b""), 403, &format!("{method} {path} {headers:?}"));
            }
        }
    }
    let absolute = format!("http://rebound.example{page}");
    nothing(server.raw("GET", &absolute, &[own], b""), 403, &absolute);
    for headers in
        [&[own][..], &[own, ("Origin", &origin), ("Sec-Fetch-Site", "same-origin")], &[own, ("Sec-Fetch-Site", "none")]]
    {
        assert_eq!(server.raw("GET", &page, headers, b"").status, 200, "{headers:?}");
    }
    let other = Server::start(&scratch, &["disk.raw"]);
    assert_ne!(other.root, server.root);
}

#[test]
fn the_page_is_served_with_its_policy_and_nothing_beside_it() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("disk.raw"), [1; 512]).unwrap();
    fs::write(scratch.path().join("secret"), "secret").unwrap();
    drop(command(&scratch, &[]));
    symlink("../secret", scratch.path().join("page/link")).unwrap();
    symlink("..", scratch.path().join("page/up")).unwrap();
    let server = Server::start(&scratch, &["disk.raw"]);
    for (name, kind, body) in [
        (
            "",
            "text/html; charset=utf-8",
            INDEX.replacen("<head>", "<head>\n    <meta name=\"diskette-serve\" content=\"images.json\" />", 1),
        ),
        ("assets/main-1a2b.js", "text/javascript; charset=utf-8", "export {};\n".into()),
        ("assets/core.wasm", "application/wasm", "\0\u{1}\u{2}\u{3}".into()),
    ] {
        let reply = server.get(name);
        assert_eq!((reply.status, reply.text()), (200, body.clone()), "{name}");
        let head = server.ask("HEAD", name, &[], b"");
        assert_eq!((head.status, head.text()), (200, String::new()));
        for reply in [reply, head] {
            assert_eq!(reply.header("content-type"), kind);
            assert_eq!(reply.header("content-length"), body.len().to_string());
            assert_eq!(reply.header("content-security-policy"), "default-src 'self'; frame-ancestors 'none'");
            assert_eq!(reply.header("x-content-type-options"), "nosniff");
            assert_eq!(reply.header("referrer-policy"), "no-referrer");
            assert_eq!(reply.header("cache-control"), "no-store");
            assert_eq!(reply.header("cross-origin-resource-policy"), "same-origin");
            assert!(!reply.headers.iter().any(|(name, _)| name.starts_with("access-control")));
        }
    }
    // The sample of the page is opened by ranges, too.
    let part = server.range("assets/core.wasm", "bytes=1-2");
    assert_eq!((part.status, part.header("content-range"), &part.body[..]), (206, "bytes 1-2/4", &[1, 2][..]));
    assert_eq!(server.range("assets/core.wasm", "bytes=4-").status, 416);
    for name in [
        "../secret",
        "%2e%2e/secret",
        "..%2fsecret",
        "assets/../index.html",
        "assets/../../secret",
        "assets//main-1a2b.js",
        "/etc/passwd",
        "link",
        "up/secret",
        "assets",
        "assets/",
        "images",
        "images/",
        "images/1",
        "images/+0",
        "images/-1",
        "images/00000000000000000000000000",
        "images/0/",
        "images/0/none",
        "disk.raw",
        "index.html/",
        "images.json/",
    ] {
        let reply = server.range(name, "bytes=0-1");
        assert_eq!(reply.status, if name == "images/0/" { 206 } else { 404 }, "{name}: {}", reply.text());
        assert!(!reply.text().contains("secret"), "{name}");
    }
    let bare = server.raw("GET", server.root.trim_end_matches('/'), &[("Host", &server.host)], b"");
    assert_eq!((bare.status, bare.header("location")), (308, server.root.as_str()));
    for name in ["", "images.json", "assets/core.wasm"] {
        let reply = server.ask("POST", name, &[], b"");
        assert_eq!((reply.status, reply.header("allow")), (405, "GET, HEAD"), "{name}");
    }
}

#[test]
fn an_image_is_given_by_single_ranges() {
    let scratch = Scratch::new();
    let bytes = pattern(1_000_001);
    fs::write(scratch.path().join("disk.raw"), &bytes).unwrap();
    fs::write(scratch.path().join("empty.raw"), "").unwrap();
    let server = Server::start(&scratch, &["disk.raw", "empty.raw"]);
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=0-511", 0, 512),
        ("bytes=1000000-1000000", 1_000_000, 1_000_001),
        ("bytes=1000000-", 1_000_000, 1_000_001),
        ("bytes=999000-2000000", 999_000, 1_000_001),
        ("bytes=-1", 1_000_000, 1_000_001),
        ("bytes=-300000", 700_001, 1_000_001),
        ("bytes=5-18446744073709551615", 5, 1_000_001),
        ("bytes=0-", 0, 1_000_001),
    ] {
        let reply = server.range("images/0", range);
        assert_eq!(reply.status, 206, "{range}: {}", reply.text());
        assert!(reply.body == bytes[start..end], "{range}");
        assert_eq!(reply.header("content-range"), format!("bytes {start}-{}/1000001", end - 1));
        assert_eq!(reply.header("content-length"), (end - start).to_string());
        assert_eq!(reply.header("content-type"), "application/octet-stream");
        assert_eq!(reply.header("cache-control"), "no-store");
        let head = server.ask("HEAD", "images/0", &[("Range", range)], b"");
        assert_eq!((head.status, head.body.len()), (206, 0));
        assert_eq!(head.header("content-length"), (end - start).to_string());
    }
    for range in ["bytes=1000001-", "bytes=1000001-1000002", "bytes=-0", "bytes=0-0,5-6", "bytes=18446744073709551615-"]
    {
        let reply = server.range("images/0", range);
        assert_eq!((reply.status, reply.header("content-range")), (416, "bytes */1000001"), "{range}");
        assert!(reply.text().contains("range"), "{}", reply.text());
    }
    assert_eq!(server.ask("GET", "images/0", &[("Range", "bytes=0-1"), ("Range", "bytes=2-3")], b"").status, 416);
    for range in ["bytes=2-1", "bytes=a-b", "bytes=", "items=0-1", "bytes=\u{fc}"] {
        assert_eq!(server.range("images/0", range).status, 400, "{range}");
    }
    let whole = server.get("images/0");
    assert_eq!((whole.status, whole.text().contains("range")), (400, true), "{}", whole.text());
    let head = server.ask("HEAD", "images/0", &[], b"");
    assert_eq!((head.status, head.header("content-length"), head.header("accept-ranges")), (200, "1000001", "bytes"));
    let tag = head.header("etag").to_string();
    assert_eq!(server.range("images/0", "bytes=0-1").header("etag"), tag);
    for header in ["If-Match", "If-Range"] {
        assert_eq!(server.ask("GET", "images/0", &[("Range", "bytes=0-1"), (header, &tag)], b"").status, 206);
        assert_eq!(server.ask("GET", "images/0", &[("Range", "bytes=0-1"), (header, "\"other\"")], b"").status, 412);
    }
    let nothing = server.range("images/1", "bytes=0-0");
    assert_eq!((nothing.status, nothing.header("content-range")), (416, "bytes */0"));
    for (method, allowed) in
        [("POST", "images/0"), ("DELETE", "images/0"), ("GET", "images/0/flush"), ("GET", "images/0/writer")]
    {
        assert_eq!(server.ask(method, allowed, &[], b"").status, 405, "{method} {allowed}");
    }
}

#[test]
fn files_that_images_name_are_served_only_when_that_is_said() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
    fs::create_dir(scratch.path().join("sub")).unwrap();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "../base.qcow2", "-F", "qcow2", "sub/top.qcow2"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "external.qcow2", "1M"]);
    for (name, backing) in [
        ("gone.qcow2", "missing.qcow2"),
        ("far.qcow2", "nbd://127.0.0.1:1/x"),
        ("odd.qcow2", "json:{\"driver\": \"null-co\"}"),
    ] {
        scratch.make("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", name, "1M"]);
    }
    fs::write(scratch.path().join("damaged.qcow2"), b"QFI\xfb and nothing else").unwrap();
    let images = [
        "sub/top.qcow2",
        "external.qcow2",
        "gone.qcow2",
        "far.qcow2",
        "odd.qcow2",
        "damaged.qcow2",
        "sub/../sub/top.qcow2",
    ];
    let plain = Server::start(&scratch, &images).get("images.json");
    assert_eq!((plain.status, plain.header("content-type")), (200, "application/json"));
    let plain = plain.json();
    let listed = |list: &Json| -> Vec<String> {
        list["images"].as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(listed(&plain), images[..6], "a file that is named twice is served once");
    assert_eq!(plain["writable"], json!(false));
    let size = fs::metadata(scratch.path().join("sub/top.qcow2")).unwrap().len();
    let first = json!({
        "name": "sub/top.qcow2", "size": size, "problem": null, "url": "images/0", "format": null, "writable": false,
        "named": true, "references": [],
    });
    assert_eq!(plain["images"][0], first);
    let server = Server::start(&scratch, &[&["--follow"], &images[..]].concat());
    let all = server.get("images.json").json();
    assert_eq!(listed(&all)[6..], ["sub/../base.qcow2", "data.raw"]);
    assert_eq!(all["images"][0]["references"], json!([{ "name": "../base.qcow2", "role": "backing", "image": 6 }]));
    assert_eq!(all["images"][1]["references"], json!([{ "name": "data.raw", "role": "data-file", "image": 7 }]));
    for (index, name) in [(2, "missing.qcow2"), (3, "nbd://127.0.0.1:1/x"), (4, "json:{\"driver\": \"null-co\"}")] {
        assert_eq!(all["images"][index]["references"], json!([{ "name": name, "role": "backing", "image": null }]));
    }
    assert_eq!(all["images"][5]["references"], json!([]));
    assert_eq!((&all["images"][6]["named"], &all["images"][6]["format"]), (&json!(false), &json!("qcow2")));
    assert_eq!(all["images"][7]["format"], json!("raw"));
    let base = fs::read(scratch.path().join("base.qcow2")).unwrap();
    assert_eq!(server.range("images/6", "bytes=0-103").body, base[..104]);
    drop(server);

    // An image whose format is given is not looked into as another one.
    let hidden = Server::start(&scratch, &["--follow", "-f", "raw", "sub/top.qcow2"]).get("images.json").json();
    assert_eq!((hidden["images"].as_array().unwrap().len(), &hidden["images"][0]["format"]), (1, &json!("raw")));
    assert!(refused(&scratch, &["--untrusted", "--follow", "sub/top.qcow2"]).contains("mutually exclusive"));
    let chain =
        Server::start(&scratch, &["--follow", "--writable", "sub/top.qcow2", "base.qcow2"]).get("images.json").json();
    assert_eq!(chain["images"][0]["references"][0]["image"], json!(1), "{chain}");
    assert_eq!(chain["images"].as_array().unwrap().len(), 2);
    assert!(chain["images"].as_array().unwrap().iter().all(|image| image["writable"] == json!(true)));
    let below = Server::start(&scratch, &["--follow", "--writable", "sub/top.qcow2"]);
    assert_eq!(below.get("images.json").json()["images"][1]["writable"], json!(false));
    let refusal = below.ask("POST", "images/1/writer", &[], b"");
    assert_eq!((refusal.status, refusal.text().contains("command line")), (403, true), "{}", refusal.text());
}

#[test]
fn what_is_only_read_is_not_written() {
    let scratch = Scratch::new();
    let bytes = pattern(8192);
    fs::write(scratch.path().join("disk.raw"), &bytes).unwrap();
    let server = Server::start(&scratch, &["disk.raw"]);
    let range = ("Content-Range", "bytes 0-3/*");
    for writer in [&[][..], &[("Diskette-Writer", "0123456789abcdef0123456789abcdef")]] {
        for (method, name, body) in [
            ("PATCH", "images/0", &b"text"[..]),
            ("PUT", "images/0/length", b"1"),
            ("POST", "images/0/zero", b""),
            ("POST", "images/0/discard", b""),
            ("POST", "images/0/flush", b""),
            ("POST", "images/0/writer", b""),
            ("DELETE", "images/0/writer", b""),
        ] {
            let reply = server.ask(method, name, &[&[range], writer].concat(), body);
            assert_eq!((reply.status, reply.header("diskette-error")), (403, "read-only"), "{method} {name}");
            assert!(reply.text().contains("--writable"), "{}", reply.text());
        }
    }
    assert_eq!(fs::read(scratch.path().join("disk.raw")).unwrap(), bytes);
    assert!(refused(&scratch, &["--writable", "-U", "disk.raw"]).contains("cannot be used with"));
}

#[test]
fn a_page_writes_what_it_says_where_it_says() {
    let scratch = Scratch::new();
    let mut model = pattern(1 << 20);
    fs::write(scratch.path().join("disk.raw"), &model).unwrap();
    let server = Server::start(&scratch, &["--writable", "-f", "raw", "disk.raw"]);
    assert_eq!(server.get("images.json").json()["writable"], json!(true));
    let writer = server.writer();
    let own = ("Diskette-Writer", writer.as_str());
    let on_disk = || fs::read(scratch.path().join("disk.raw")).unwrap();
    let mut tags = vec![server.ask("HEAD", "images/0", &[], b"").header("etag").to_string()];
    for (at, length) in [(0, 1), (511, 513), (700_000, 300_000), ((1 << 20) - 1, 1), (1 << 20, 4096), (2 << 20, 512)] {
        let bytes = vec![at as u8 | 1; length];
        model.resize(model.len().max(at + length), 0);
        model[at..at + length].copy_from_slice(&bytes);
        let reply = server.patch(&writer, at, &bytes);
        assert_eq!((reply.status, reply.text()), (204, String::new()), "{at}");
        assert!(!tags.contains(&reply.header("etag").to_string()), "what has changed has another tag");
        tags.push(reply.header("etag").to_string());
        assert!(on_disk() == model, "{at}");
    }
    for (verb, range, start, end) in
        [("zero", "bytes 1000-99999/*", 1000, 100_000), ("discard", "bytes 131072-262143/*", 131_072, 262_144)]
    {
        let reply = server.ask("POST", &format!("images/0/{verb}"), &[own, ("Content-Range", range)], b"");
        assert_eq!(reply.status, 204, "{verb}: {}", reply.text());
        model[start..end].fill(0);
    }
    let beyond = format!("bytes {}-{}/*", model.len() + 100, model.len() + 199);
    assert_eq!(server.ask("POST", "images/0/zero", &[own, ("Content-Range", &beyond)], b"").status, 204);
    model.resize(model.len() + 200, 0);
    assert!(on_disk() == model);
    for length in [5 << 20, 3 << 19] {
        assert_eq!(server.ask("PUT", "images/0/length", &[own], format!("{length}").as_bytes()).status, 204);
        model.resize(length, 0);
        assert!(on_disk() == model, "{length}");
    }
    assert_eq!(server.ask("POST", "images/0/flush", &[own], b"").status, 204);
    let part = server.range("images/0", "bytes=699990-700009");
    assert_eq!(part.body, model[699_990..700_010]);

    let range = |range| ("Content-Range", range);
    // A change of a file that is like it was, and of one that is not.
    let tag = server.ask("HEAD", "images/0", &[], b"").header("etag").to_string();
    let expected = [own, range("bytes 0-3/*"), ("If-Match", tag.as_str())];
    assert_eq!(server.ask("PATCH", "images/0", &expected, b"once").status, 204);
    model[..4].copy_from_slice(b"once");
    for (method, name, body) in
        [("PATCH", "images/0", &b"more"[..]), ("PUT", "images/0/length", b"5"), ("POST", "images/0/zero", b"")]
    {
        let reply = server.ask(method, name, &expected, body);
        assert_eq!((reply.status, reply.text().contains("has changed")), (412, true), "{}", reply.text());
    }
    assert!(on_disk() == model, "nothing was written");
    for (status, method, name, headers, body) in [
        (400, "PATCH", "images/0", &[own][..], &b"text"[..]),
        (400, "PATCH", "images/0", &[own, range("bytes 0-4/*")], b"text"),
        (400, "PATCH", "images/0", &[own, range("bytes 0-2/*")], b"text"),
        (400, "PATCH", "images/0", &[own, range("bytes 0-3/4")], b"text"),
        (400, "PATCH", "images/0", &[own, range("bytes 9223372036854775804-9223372036854775807/*")], b"text"),
        (400, "POST", "images/0/zero", &[own, range("bytes 9-8/*")], b""),
        (400, "PUT", "images/0/length", &[own], b"-1"),
        (400, "PUT", "images/0/length", &[own], b"9223372036854775808"),
        (413, "PUT", "images/0/length", &[own], b"100000000000000000000000000000"),
        (413, "PATCH", "images/0", &[own, range("bytes 0-8388608/*")], &vec![1; (8 << 20) + 1]),
    ] {
        let reply = server.ask(method, name, headers, body);
        assert_eq!(reply.status, status, "{method} {name} {headers:?}: {}", reply.text());
        assert!(!reply.text().is_empty());
    }
    let chunked = [own, range("bytes 0-3/*"), ("Transfer-Encoding", "chunked"), ("Host", &server.host)];
    let chunked = server.raw("PATCH", &format!("{}images/0", server.root), &chunked, b"4\r\ntext\r\n0\r\n\r\n");
    assert_eq!(chunked.status, 411, "{}", chunked.text());
    // A request that breaks off writes nothing.
    let head = format!(
        "PATCH {}images/0 HTTP/1.1\r\nHost: {}\r\nDiskette-Writer: {writer}\r\nContent-Range: bytes 0-99999/*\r\n\
         Content-Length: 100000\r\n\r\n",
        server.root, server.host
    );
    let mut broken = server.connect();
    broken.write_all(&[head.as_bytes(), &[9; 50_000]].concat()).unwrap();
    drop(broken);
    assert_eq!(server.patch(&writer, 10, b"after").status, 204);
    model[10..15].copy_from_slice(b"after");
    assert!(on_disk() == model);
}

#[test]
fn an_image_that_a_page_changes_is_sound_for_qemu() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "target.qcow2", "4M"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "model.qcow2", "4M"]);
    scratch.make("qemu-io", &["-c", "write -P 9 1M 1M", "-c", "write -P 8 0 4k", "model.qcow2"]);
    let server = Server::start(&scratch, &["--writable", "target.qcow2"]);
    let writer = server.writer();
    let model = fs::read(scratch.path().join("model.qcow2")).unwrap();
    for (number, part) in model.chunks(300_000).enumerate().collect::<Vec<_>>().into_iter().rev() {
        assert_eq!(server.patch(&writer, number * 300_000, part).status, 204);
    }
    assert_eq!(server.ask("DELETE", "images/0/writer", &[("Diskette-Writer", &writer)], b"").status, 204);
    drop(server);
    scratch.make("qemu-img", &["check", "-q", "target.qcow2"]);
    scratch.make("qemu-img", &["compare", "-q", "target.qcow2", "model.qcow2"]);
}

#[test]
fn one_page_at_a_time_changes_an_image() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("disk.raw"), pattern(8192)).unwrap();
    let server = Server::start(&scratch, &["--writable", "-f", "raw", "disk.raw"]);
    let nobody = server.patch("0123456789abcdef0123456789abcdef", 0, b"text");
    assert_eq!((nobody.status, nobody.header("diskette-error")), (409, "busy"));
    let range = ("Content-Range", "bytes 0-3/*");
    assert_eq!(server.ask("PATCH", "images/0", &[range], b"text").status, 428);
    let first = server.writer();
    let second = server.ask("POST", "images/0/writer", &[], b"");
    assert_eq!((second.status, second.header("diskette-error")), (409, "busy"));
    assert!(second.text().contains("another page"), "{}", second.text());
    let again = server.ask("POST", "images/0/writer", &[("Diskette-Writer", &first)], b"");
    assert_eq!(again.json()["writer"], json!(first));
    assert_eq!(server.patch(&first, 0, b"mine").status, 204);
    assert_eq!(server.range("images/0", "bytes=0-3").body, b"mine", "others may look");
    assert_eq!(server.ask("DELETE", "images/0/writer", &[("Diskette-Writer", "x")], b"").status, 409);
    assert_eq!(server.ask("DELETE", "images/0/writer", &[("Diskette-Writer", &first)], b"").status, 204);
    let next = server.writer();
    assert_ne!(next, first);
    let late = server.patch(&first, 0, b"late");
    assert_eq!((late.status, late.text().contains("taken over")), (409, true), "{}", late.text());
    assert_eq!(server.range("images/0", "bytes=0-3").body, b"mine");
}

#[test]
fn what_comes_after_its_writer_was_succeeded_is_not_written() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("disk.raw"), pattern(8192)).unwrap();
    let server = Server::start(&scratch, &["--writable", "-f", "raw", "disk.raw"]);
    let first = server.writer();
    let mut slow = server.begin_patch(&first);
    assert_eq!(server.ask("DELETE", "images/0/writer", &[("Diskette-Writer", &first)], b"").status, 204);
    assert_eq!(server.patch(&server.writer(), 0, b"mine").status, 204);
    slow.write_all(b"late").unwrap();
    let late = Reply::parse(&rest(&mut slow));
    assert_eq!((late.status, late.text().contains("taken over")), (409, true), "{}", late.text());
    assert_eq!(server.range("images/0", "bytes=0-3").body, b"mine");
}

#[test]
fn an_image_in_use_is_refused_as_other_tools_refuse_it() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]);
    let bytes = fs::read(scratch.path().join("disk.qcow2")).unwrap();
    let holder = Holder::open(&scratch, "disk.qcow2");
    for args in [&["disk.qcow2"][..], &["--writable", "disk.qcow2"]] {
        let message = refused(&scratch, args);
        assert!(message.contains("lock") && message.contains("another process"), "{message}");
    }
    let shared = Server::start(&scratch, &["-U", "disk.qcow2"]);
    assert_eq!(shared.range("images/0", "bytes=600-700").body, bytes[600..701]);
    drop((shared, holder));

    let locked = |program: &str, args: &[&str]| text(&scratch.run(program, args).stderr).contains("lock");
    let read = || locked("qemu-img", &["info", "disk.qcow2"]);
    let write = || locked("qemu-io", &["-c", "write 0 512", "disk.qcow2"]);
    let server = Server::start(&scratch, &["disk.qcow2"]);
    assert_eq!((read(), write()), (false, true));
    drop(server);
    let server = Server::start(&scratch, &["--writable", "disk.qcow2"]);
    assert_eq!((read(), write()), (true, true));
    assert!(refused(&scratch, &["--writable", "disk.qcow2"]).contains("lock"));
    drop(server);
    assert!(!write());
}

#[test]
fn a_file_that_changes_behind_the_server_is_noticed() {
    let scratch = Scratch::new();
    let bytes = pattern(100_000);
    let place = |name: &str| scratch.path().join(name);
    for name in ["shrinks", "goes", "replaced", "other"] {
        fs::write(place(name), &bytes).unwrap();
    }
    let server = Server::start(&scratch, &["shrinks", "goes", "replaced"]);
    let tag = server.range("images/0", "bytes=0-9").header("etag").to_string();
    fs::OpenOptions::new().write(true).open(place("shrinks")).unwrap().set_len(50_000).unwrap();
    let reply = server.range("images/0", "bytes=60000-60009");
    assert_eq!((reply.status, reply.header("content-range")), (416, "bytes */50000"));
    assert!(reply.text().contains("50000"), "{}", reply.text());
    let reply = server.range("images/0", "bytes=0-9");
    assert_eq!((reply.status, reply.header("content-range")), (206, "bytes 0-9/50000"));
    assert_ne!(reply.header("etag"), tag);
    assert_eq!(server.ask("GET", "images/0", &[("Range", "bytes=0-9"), ("If-Match", &tag)], b"").status, 412);
    fs::remove_file(place("goes")).unwrap();
    fs::rename(place("other"), place("replaced")).unwrap();
    for (image, what) in [("images/1", "has gone"), ("images/2", "has been replaced")] {
        let reply = server.range(image, "bytes=0-9");
        assert_eq!((reply.status, reply.header("diskette-error")), (410, "not-found"), "{image}");
        assert!(reply.text().contains(what), "{}", reply.text());
    }
    let list = server.get("images.json").json();
    assert_eq!((&list["images"][0]["size"], &list["images"][1]["size"]), (&json!(50_000), &Json::Null));
    assert!(list["images"][1]["problem"].as_str().unwrap().contains("has gone"), "{list}");
    drop(server);

    fs::write(place("disk.raw"), &bytes).unwrap();
    let server = Server::start(&scratch, &["--writable", "-f", "raw", "disk.raw"]);
    let writer = server.writer();
    fs::OpenOptions::new().write(true).open(place("disk.raw")).unwrap().set_len(1000).unwrap();
    for reply in [server.range("images/0", "bytes=0-9"), server.patch(&writer, 0, b"text")] {
        assert_eq!((reply.status, reply.header("diskette-error")), (409, "busy"));
        assert!(reply.text().contains("another program"), "{}", reply.text());
    }
    assert!(fs::read(place("disk.raw")).unwrap() == bytes[..1000], "nothing was written");
}

#[test]
fn a_file_that_shrinks_while_it_is_sent_ends_the_connection() {
    let scratch = Scratch::new();
    let file = fs::File::create(scratch.path().join("disk.raw")).unwrap();
    file.set_len(256 << 20).unwrap();
    let server = Server::start(&scratch, &["disk.raw"]);
    let mut stream = server.connect();
    let request = format!("GET {}images/0 HTTP/1.1\r\nHost: {}\r\nRange: bytes=0-\r\n\r\n", server.root, server.host);
    stream.write_all(request.as_bytes()).unwrap();
    let mut first = [0; 1000];
    stream.read_exact(&mut first).unwrap();
    file.set_len(100 << 20).unwrap();
    let body = rest(&mut stream).len();
    assert!(body < 128 << 20, "{body} bytes came of 100 MiB");
    assert_eq!(server.range("images/0", "bytes=0-9").status, 206, "others are still answered");
}

#[test]
fn an_answer_has_no_bytes_of_another_version_of_the_file() {
    let scratch = Scratch::new();
    let size = 256 << 20;
    fs::File::create(scratch.path().join("disk.raw")).unwrap().set_len(size as u64).unwrap();
    let server = Server::start(&scratch, &["--writable", "-f", "raw", "disk.raw"]);
    let writer = server.writer();
    let mut stream = server.connect();
    let request = format!(
        "GET {}images/0 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nRange: bytes=0-\r\n\r\n",
        server.root, server.host
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = [0; 1000];
    stream.read_exact(&mut head).unwrap();
    assert!(text(&head).starts_with("HTTP/1.1 206"), "{}", text(&head));
    assert_eq!(server.patch(&writer, size - 4, b"late").status, 204);
    let body = rest(&mut stream);
    assert!(body.len() < size - 1000 && !body.contains(&b'l'), "{} bytes came", body.len());
    assert_eq!(server.range("images/0", "bytes=-4").body, b"late");
}

#[test]
fn who_is_slow_does_not_keep_others_from_being_answered() {
    let scratch = Scratch::new();
    let file = fs::File::create(scratch.path().join("disk.raw")).unwrap();
    file.set_len(1 << 30).unwrap();
    let server = Server::start(&scratch, &["--writable", "-f", "raw", "--timeout", "1", "disk.raw"]);
    let writer = server.writer();
    let (root, host) = (&server.root, &server.host);
    let silent = server.connect();
    let half = format!("GET {root}images.json HTTP/1.1\r\nHost: {host}\r\nX-");
    let whole = format!("GET {root}images.json HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let body = format!(
        "PATCH {root}images/0 HTTP/1.1\r\nHost: {host}\r\nDiskette-Writer: {writer}\r\nContent-Range: bytes 0-99/*\r\n\
         Content-Length: 100\r\n\r\nhalf"
    );
    let start = |request: &str| {
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let (mut half, mut idle, mut body) = (start(&half), start(&whole), start(&body));
    // One that asks for much and takes nothing of it.
    let mut deaf = start(&format!("GET {root}images/0 HTTP/1.1\r\nHost: {host}\r\nRange: bytes=0-\r\n\r\n"));
    let crowd: Vec<TcpStream> = (0..100).map(|_| server.connect()).collect();
    let began = Instant::now();
    assert_eq!(server.get("images.json").status, 200);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    for mut stream in crowd.into_iter().chain([silent]) {
        assert!(rest(&mut stream).is_empty(), "a connection on which nothing is asked ends");
    }
    let halfway = rest(&mut half);
    assert!(halfway.is_empty() || Reply::parse(&halfway).status == 408, "{}", text(&halfway));
    assert_eq!(Reply::parse(&rest(&mut idle)).status, 200, "it is answered, and then ended");
    assert_eq!(Reply::parse(&rest(&mut body)).status, 408);
    let taken = rest(&mut deaf).len();
    assert!(taken < 512 << 20, "{taken} bytes");
}

#[test]
fn many_connections_are_answered_and_large_ranges_take_no_memory() {
    let scratch = Scratch::new();
    let bytes = pattern(3_000_000);
    fs::write(scratch.path().join("disk.raw"), &bytes).unwrap();
    let file = fs::File::create(scratch.path().join("large.raw")).unwrap();
    file.set_len(1 << 30).unwrap();
    let server = Server::start(&scratch, &["disk.raw", "large.raw"]);
    std::thread::scope(|scope| {
        for worker in 0..150_usize {
            let (server, bytes) = (&server, &bytes);
            scope.spawn(move || {
                for turn in 0..4 {
                    let start = (worker * 19_997 + turn * 700_001) % 2_900_000;
                    let reply = server.range("images/0", &format!("bytes={start}-{}", start + 99_999));
                    assert!(reply.status == 206 && reply.body == bytes[start..start + 100_000], "{start}");
                }
            });
        }
        for _ in 0..4 {
            scope.spawn(|| {
                let mut stream = server.connect();
                let (root, host) = (&server.root, &server.host);
                let request = format!(
                    "GET {root}images/1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nRange: bytes=0-\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).unwrap();
                let count = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
                assert!(count > 1 << 30, "{count}");
            });
        }
    });
    let most = server.memory("VmHWM");
    assert!(most < 128 << 10, "{most} KiB");
}

#[test]
fn requests_that_are_none_do_no_harm() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("disk.raw"), pattern(512)).unwrap();
    let server = Server::start(&scratch, &["--timeout", "1", "disk.raw"]);
    let (root, host) = (&server.root, &server.host);
    let long = format!("GET {root} HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET {root} HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "X: y\r\n".repeat(10_000));
    for request in [
        b"\r\n\r\n".to_vec(),
        b"GET / HTTP/0.9\r\n\r\n".to_vec(),
        b"GET / HTTP/2.0\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![0; 100_000],
        long.into_bytes(),
        many.into_bytes(),
        format!("GET {root}\0 HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes(),
        format!("POST {root}images/0/writer HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999999999999\r\n\r\n")
            .into_bytes(),
        format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes(),
        format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes(),
    ] {
        let reply = server.send(&request);
        let status = if reply.is_empty() { 400 } else { Reply::parse(&reply).status };
        assert!((400..600).contains(&status), "{:?}: {status}", text(&request[..request.len().min(60)]));
    }
    // A second request on one connection is a request like any other.
    let two = format!("GET {root} HTTP/1.1\r\nHost: {host}\r\n\r\nGET {root} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    let replies = text(&server.send(two.as_bytes()));
    assert!(replies.starts_with("HTTP/1.1 200 OK") && replies.contains("HTTP/1.1 403 Forbidden"), "{replies}");
    assert_eq!(server.get("").status, 200);
}

#[test]
fn it_ends_in_order_when_it_is_told_to() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("disk.raw"), pattern(512)).unwrap();
    for signal in ["INT", "TERM"] {
        let mut server = Server::start(&scratch, &["--writable", "-f", "raw", "disk.raw"]);
        let writer = server.writer();
        assert_eq!(server.patch(&writer, 0, b"text").status, 204);
        assert_eq!(server.ask("POST", "images/0/flush", &[("Diskette-Writer", &writer)], b"").status, 204);
        let _idle = server.connect();
        server.signal(signal);
        assert_eq!(server.child.wait().unwrap().code(), Some(0), "{signal}");
    }
}

/// A server with two images that are to be changed.
fn changing(scratch: &Scratch) -> Server {
    for name in ["disk.raw", "other.raw"] {
        fs::write(scratch.path().join(name), pattern(8192)).unwrap();
    }
    let args = ["--writable", "-f", "raw", "disk.raw", "other.raw"];
    Server::spawn(command(scratch, &args).stderr(Stdio::piped()))
}

impl Server {
    /// Tells the server to end and gives what it says once it waits for changes.
    fn end(&mut self) -> BufReader<ChildStderr> {
        self.signal("INT");
        let mut said = BufReader::new(self.child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("Waiting for changes") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it does not wait");
        }
        said
    }

    /// What is said until the server has ended with this code.
    fn ended(&mut self, mut said: BufReader<ChildStderr>, code: i32) -> String {
        let mut left = String::new();
        said.read_to_string(&mut left).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{left}");
        left
    }
}

#[test]
fn a_change_that_has_begun_is_made_before_the_program_ends() {
    let scratch = Scratch::new();
    let mut server = changing(&scratch);
    let writer = server.writer();
    let mut slow = server.begin_patch(&writer);
    let said = server.end();
    slow.write_all(b"late").unwrap();
    assert_eq!(Reply::parse(&rest(&mut slow)).status, 204);
    // What the page still has to change belongs to it; another change does not begin.
    let other = server.ask("POST", "images/1/writer", &[], b"").json()["writer"].as_str().unwrap().to_string();
    let range = ("Content-Range", "bytes 0-3/*");
    let refused = server.ask("PATCH", "images/1", &[range, ("Diskette-Writer", &other)], b"text");
    assert_eq!((refused.status, refused.header("diskette-error")), (503, "busy"), "{}", refused.text());
    assert_eq!(server.patch(&writer, 4, b"r").status, 204);
    assert_eq!(server.ask("POST", "images/0/flush", &[("Diskette-Writer", &writer)], b"").status, 204);
    assert_eq!(server.ended(said, 0), "");
    assert_eq!(fs::read(scratch.path().join("disk.raw")).unwrap()[..6], [b"later", &pattern(6)[5..]].concat()[..]);
    assert!(fs::read(scratch.path().join("other.raw")).unwrap() == pattern(8192));
}

#[test]
fn a_change_that_is_cut_off_is_told() {
    for is_told_twice in [true, false] {
        let scratch = Scratch::new();
        let mut server = changing(&scratch);
        let mut slow = server.begin_patch(&server.writer());
        let said = server.end();
        slow.write_all(b"la").unwrap();
        let began = Instant::now();
        if is_told_twice {
            server.signal("INT");
        }
        let message = server.ended(said, 1);
        let took = began.elapsed();
        assert_eq!(took < Duration::from_secs(8), is_told_twice, "{took:?}");
        assert!(message.contains("a change of 'disk.raw' was cut off"), "{message}");
        assert!(!message.contains("other.raw"), "{message}");
        assert!(rest(&mut slow).is_empty(), "it is not answered as if it were done");
        assert!(fs::read(scratch.path().join("disk.raw")).unwrap() == pattern(8192), "nothing was written");
    }
}

#[test]
fn a_page_that_is_cut_off_between_two_requests_is_told() {
    let scratch = Scratch::new();
    let mut server = changing(&scratch);
    assert_eq!(server.patch(&server.writer(), 0, b"half").status, 204);
    let said = server.end();
    server.signal("TERM");
    let message = server.ended(said, 1);
    assert!(message.contains("a change of 'disk.raw' was cut off") && !message.contains("other.raw"), "{message}");
}

#[test]
fn the_program_contains_the_page_or_says_how_to_get_it() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("disk.raw"), pattern(512)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_diskette"));
    command.args(["serve", "disk.raw"]).current_dir(scratch.path()).stderr(Stdio::piped());
    let mut probe = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(probe.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line.is_empty() {
        let message = text(&probe.wait_with_output().unwrap().stderr);
        assert!(message.contains("cargo xtask demo --no-serve") && message.contains("--page FOLDER"), "{message}");
        return;
    }
    probe.kill().unwrap();
    probe.wait().unwrap();
    let server = Server::spawn(&mut command);
    let page = server.get("");
    assert!(page.text().contains("<meta name=\"diskette-serve\" content=\"images.json\" />"), "{}", page.text());
    assert!(page.header("content-security-policy").contains("'wasm-unsafe-eval'"));
    let script = page.text().split("src=\"./").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_string();
    let script = server.get(&script);
    assert_eq!((script.status, script.header("content-type")), (200, "text/javascript; charset=utf-8"));
}

#[test]
fn what_cannot_be_served_is_said() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("disk.raw"), pattern(512)).unwrap();
    fs::create_dir(scratch.path().join("nothing")).unwrap();
    assert!(refused(&scratch, &["missing.raw"]).contains("Could not serve 'missing.raw': "));
    assert!(refused(&scratch, &["disk.raw", "."]).contains("regular file"));
    assert!(refused(&scratch, &[]).contains("Expecting"));
    assert!(refused(&scratch, &["--timeout", "0", "disk.raw"]).contains("timeout"));
    let page = |args: &[&str]| {
        let output = scratch.ours(&[&["serve"], args].concat());
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    assert!(page(&["--page", "nothing", "disk.raw"]).contains("it has no index.html"));
    assert!(page(&["--page", "none", "disk.raw"]).contains("Could not read the page in 'none'"));
    let server = Server::start(&scratch, &["disk.raw"]);
    let port = server.host.split_once(':').unwrap().1;
    assert!(refused(&scratch, &["--port", port, "disk.raw"]).contains("Could not listen on port"));
    let help = text(&scratch.ours(&["serve", "--help"]).stdout);
    for word in [
        "Look at images in a browser on this machine",
        "--writable",
        "--follow",
        "--port",
        "--page",
        "--force-share",
        "<IMAGE>...",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
}
