//! The inspector's page: files in memory, from the program itself or from a folder.

use std::collections::BTreeMap;
use std::path::Path;

use hyper::body::Bytes;
use hyper::header::HeaderValue;

use crate::Failure;

/// The page that was there when the program was built: names and contents.
const EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/page.rs"));
const INDEX: &str = "index.html";
/// Tells the page where it learns what is served.
const MARK: &str = "<meta name=\"diskette-serve\" content=\"images.json\" />";
/// What a page that says nothing itself may do.
const STRICT: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; worker-src 'self'; \
                      connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'";
/// A folder with more is no page.
const MAX_FILES: usize = 1000;
const MAX_BYTES: u64 = 64 << 20;

/// The files of the page.
pub(super) struct Page {
    assets: BTreeMap<String, Bytes>,
    /// The policy that the page states, which holds for everything that is served.
    pub(super) policy: HeaderValue,
}

impl Page {
    /// The page in the program, or in `folder`.
    pub(super) fn load(folder: Option<&Path>) -> Result<Self, Failure> {
        if let Some(folder) = folder {
            let mut assets = BTreeMap::new();
            let mut left = MAX_BYTES;
            read(folder, "", &mut assets, &mut left)
                .map_err(|error| Failure::new(format!("Could not read the page in '{}': {error}", folder.display())))?;
            return Page::new(assets)
                .map_err(|why| Failure::new(format!("'{}' is not a page: {why}", folder.display())));
        }
        if EMBEDDED.is_empty() {
            return Err(Failure::new(
                "this program was built without the page of the inspector\nEither make the page with 'cargo xtask demo \
                 --no-serve' in the sources and build the program again,\nor name the folder of a page with --page FOLDER",
            ));
        }
        let assets = EMBEDDED.iter().map(|(name, bytes)| (name.to_string(), Bytes::from_static(bytes))).collect();
        Page::new(assets).map_err(|why| Failure::new(format!("the page in this program is broken: {why}")))
    }

    fn new(mut assets: BTreeMap<String, Bytes>) -> Result<Self, &'static str> {
        let index = assets.get(INDEX).ok_or("it has no index.html")?;
        let index = std::str::from_utf8(index).map_err(|_| "index.html is not UTF-8")?;
        let policy = format!("{}; frame-ancestors 'none'", stated_policy(index).unwrap_or(STRICT));
        let policy = HeaderValue::from_str(&policy).map_err(|_| "its Content-Security-Policy cannot be a header")?;
        let head = index.find("<head").and_then(|at| index[at..].find('>').map(|end| at + end + 1));
        let (before, after) = index.split_at(head.ok_or("index.html has no <head>")?);
        let marked = format!("{before}\n    {MARK}{after}");
        assets.insert(INDEX.to_string(), marked.into());
        Ok(Page { assets, policy })
    }

    /// The file of that name, with its content type. The folder's own name is empty.
    pub(super) fn find(&self, name: &str) -> Option<(Bytes, &'static str)> {
        let name = if name.is_empty() { INDEX } else { name };
        self.assets.get(name).map(|bytes| (bytes.clone(), content_type(name)))
    }
}

/// The Content-Security-Policy that a page has in a `meta` element.
fn stated_policy(index: &str) -> Option<&str> {
    let start = index.find("http-equiv=\"Content-Security-Policy\"")?;
    let start = index[..start].rfind('<')?;
    let element = &index[start..start + index[start..].find('>')?];
    let attribute = "content=\"";
    let mut places = element.match_indices(attribute).map(|(at, _)| at);
    let at = places.find(|at| element[..*at].ends_with(char::is_whitespace))?;
    let policy = element[at + attribute.len()..].split_once('"')?.0;
    // Text with references would have to be decoded.
    (!policy.contains('&')).then_some(policy)
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        Some("wasm") => "application/wasm",
        Some("json" | "map") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/vnd.microsoft.icon",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}

/// Reads the files of a folder and of those in it. Links are left out: they may lead anywhere.
fn read(folder: &Path, prefix: &str, assets: &mut BTreeMap<String, Bytes>, left: &mut u64) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (kind, length) = (entry.file_type()?, entry.metadata()?.len());
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if kind.is_dir() {
            read(&entry.path(), &format!("{name}/"), assets, left)?;
        } else if kind.is_file() {
            let room = left.checked_sub(length).filter(|_| assets.len() < MAX_FILES);
            *left = room.ok_or_else(|| {
                std::io::Error::other(format!("it has more than {MAX_FILES} files or {} MiB", MAX_BYTES >> 20))
            })?;
            assets.insert(name, std::fs::read(entry.path())?.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(index: &str) -> Result<Page, &'static str> {
        Page::new([(INDEX.to_string(), Bytes::copy_from_slice(index.as_bytes()))].into())
    }

    #[test]
    fn the_policy_is_the_one_that_the_page_states() {
        let index = "<html><head lang=\"en\"><meta\n      http-equiv=\"Content-Security-Policy\"\n      \
                     content=\"default-src 'self'\"\n    /></head></html>";
        let page = page(index).unwrap();
        assert_eq!(page.policy, "default-src 'self'; frame-ancestors 'none'");
        let (bytes, kind) = page.find("").unwrap();
        let marked = std::str::from_utf8(&bytes).unwrap();
        assert!(marked.starts_with(&format!("<html><head lang=\"en\">\n    {MARK}<meta\n")), "{marked}");
        assert_eq!(kind, "text/html; charset=utf-8");
    }

    #[test]
    fn a_page_without_a_policy_gets_a_strict_one() {
        for meta in
            ["", "<meta name=\"a\" content=\"b\">", "<meta http-equiv=\"Content-Security-Policy\" content=\"&\">"]
        {
            let page = page(&format!("<head>{meta}</head>")).unwrap();
            assert_eq!(page.policy, format!("{STRICT}; frame-ancestors 'none'"));
        }
    }

    #[test]
    fn the_page_of_the_sources_states_its_policy() {
        let index = include_str!("../../../../www/index.html");
        let policy = stated_policy(index).unwrap();
        assert!(policy.starts_with("default-src 'none';") && policy.contains("'wasm-unsafe-eval'"), "{policy}");
    }

    #[test]
    fn what_is_no_page_is_refused() {
        assert!(page("<p>").is_err());
        assert!(Page::new(BTreeMap::new()).is_err());
    }
}
