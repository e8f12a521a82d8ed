//! Who is answered: requests that name this server, come from its own page, and know the token.

use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{StatusCode, Uri};
use subtle::ConstantTimeEq;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const TOKEN_BYTES: usize = 16;

/// What a request has to know.
pub(super) struct Guard {
    /// The address and port that this server has.
    host: String,
    token: String,
}

impl Guard {
    pub(super) fn new(port: u16) -> Result<Self, getrandom::Error> {
        // Browsers leave out the port that is usual.
        let host = if port == 80 { "127.0.0.1".to_string() } else { format!("127.0.0.1:{port}") };
        Ok(Guard { host, token: secret()? })
    }

    /// The address of the page.
    pub(super) fn address(&self) -> String {
        format!("http://{}{}", self.host, self.path())
    }

    /// The path of the page.
    pub(super) fn path(&self) -> String {
        format!("/{}/", self.token)
    }

    /// What the path says behind the token, or the status that is all that a stranger learns.
    ///
    /// A name that another site has made point here is no name of this server; what a page of another site asks for is
    /// told by the browser.
    pub(super) fn admit<'a>(&self, uri: &'a Uri, headers: &HeaderMap) -> Result<&'a str, StatusCode> {
        let own_host = |host: &str| host == self.host;
        let named = uri.authority().is_none_or(|authority| own_host(authority.as_str()));
        let own_origin = |origin: &str| origin.strip_prefix("http://") == Some(&self.host);
        let own_site = |site: &str| site == "same-origin" || site == "none";
        let has_host = headers.get_all(HOST).iter().count() == 1;
        if !named || !has_host || !every(headers, &HOST, own_host) {
            return Err(StatusCode::FORBIDDEN);
        }
        if !every(headers, &ORIGIN, own_origin) || !every(headers, &FETCH_SITE, own_site) {
            return Err(StatusCode::FORBIDDEN);
        }
        let path = uri.path().strip_prefix('/').ok_or(StatusCode::NOT_FOUND)?;
        let end = path.find('/').unwrap_or(path.len());
        let (token, rest) = path.split_at(end);
        if bool::from(token.as_bytes().ct_eq(self.token.as_bytes())) { Ok(rest) } else { Err(StatusCode::NOT_FOUND) }
    }
}

fn every(headers: &HeaderMap, name: &HeaderName, is_good: impl Fn(&str) -> bool) -> bool {
    headers.get_all(name).iter().all(|value| value.to_str().is_ok_and(&is_good))
}

/// 128 random bits in hexadecimal.
pub(super) fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(guard: &Guard, uri: &str, headers: &[(&'static str, &str)]) -> Result<String, StatusCode> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        guard.admit(&uri.parse().unwrap(), &map).map(str::to_string)
    }

    #[test]
    fn secrets_are_long_and_differ() {
        let (one, other) = (secret().unwrap(), secret().unwrap());
        assert_eq!((one.len(), other.len()), (32, 32));
        assert_ne!(one, other);
    }

    #[test]
    fn only_who_knows_the_token_and_comes_from_here_is_admitted() {
        let guard = Guard::new(8080).unwrap();
        let own = ("host", "127.0.0.1:8080");
        let page = format!("/{}/x/y", guard.token);
        assert_eq!(guard.address(), format!("http://127.0.0.1:8080/{}/", guard.token));
        assert_eq!(admit(&guard, &page, &[own]).as_deref(), Ok("/x/y"));
        assert_eq!(admit(&guard, &format!("/{}", guard.token), &[own]).as_deref(), Ok(""));
        assert_eq!(admit(&guard, &format!("{page}?a=b"), &[own]).as_deref(), Ok("/x/y"));
        let from_page = [own, ("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")];
        assert_eq!(admit(&guard, &page, &from_page).as_deref(), Ok("/x/y"));
        assert_eq!(admit(&guard, &page, &[own, ("sec-fetch-site", "none")]).as_deref(), Ok("/x/y"));
        let forbidden: &[&[(&'static str, &str)]] = &[
            &[],
            &[("host", "127.0.0.1")],
            &[("host", "127.0.0.1:8081")],
            &[("host", "localhost:8080")],
            &[("host", "rebound.example:8080")],
            &[own, own],
            &[own, ("origin", "http://127.0.0.1:8081")],
            &[own, ("origin", "https://127.0.0.1:8080")],
            &[own, ("origin", "null")],
            &[own, ("sec-fetch-site", "cross-site")],
            &[own, ("sec-fetch-site", "same-site")],
            &[own, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        ];
        for headers in forbidden {
            assert_eq!(admit(&guard, &page, headers), Err(StatusCode::FORBIDDEN), "{headers:?}");
        }
        assert_eq!(admit(&guard, &format!("http://rebound.example{page}"), &[own]), Err(StatusCode::FORBIDDEN));
        assert_eq!(admit(&guard, &format!("http://127.0.0.1:8080{page}"), &[own]).as_deref(), Ok("/x/y"));
        let mut wrong = guard.token.clone();
        wrong.replace_range(31.., if wrong.ends_with('0') { "1" } else { "0" });
        for path in ["/", "//", "/images.json", &format!("/{wrong}/x"), &format!("//{}/", guard.token)] {
            assert_eq!(admit(&guard, path, &[own]), Err(StatusCode::NOT_FOUND), "{path}");
        }
    }
}
