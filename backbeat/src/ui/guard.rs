//! Refuses requests that other web pages make in the name of whoever looks at this one.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Uri, header};

/// The names by which the page may be reached.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    /// Names of hosts, in lower case, besides addresses and `localhost`.
    allowed_hosts: Vec<String>,
}

impl Guard {
    pub(crate) fn new(allowed_hosts: &[String]) -> Self {
        Self { allowed_hosts: allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect() }
    }

    /// Returns the reason to refuse a request.
    ///
    /// A page whose own name was made to resolve to this server (DNS rebinding) has that name in `Host`, so only known names and
    /// addresses are allowed. A page elsewhere has another `Origin`, and a browser says so of each request that changes something.
    pub(crate) fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), String> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        if !self.is_allowed(host) {
            return Err(format!(
                "the host {host:?} is not allowed; allowed are addresses, localhost, and the names given with --allowed-host"
            ));
        }
        let is_read = method == Method::GET || method == Method::HEAD;
        let is_same_origin = match headers.get(header::ORIGIN) {
            None => is_read,
            Some(_) => text(header::ORIGIN)
                .and_then(|origin| origin.parse::<Uri>().ok())
                .is_some_and(|origin| origin.authority().is_some_and(|origin| origin.as_str() == host)),
        };
        // Images and scripts have no `Origin`, but say where they come from. Following a link is no such request.
        let is_embedded = text(header::HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| site != "same-origin" && site != "none")
            && text(header::HeaderName::from_static("sec-fetch-mode")).is_none_or(|mode| mode != "navigate");
        if is_same_origin && !is_embedded { Ok(()) } else { Err("the request comes from another web page".to_owned()) }
    }

    fn is_allowed(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || address.parse::<IpAddr>().is_ok() || self.allowed_hosts.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn requests_that_another_page_embeds_are_refused_and_links_are_not() {
        let check = |site: &'static str, mode: &'static str| {
            let headers = [("host", "localhost"), ("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            Guard::new(&[]).check(&Method::GET, &headers.into_iter().collect())
        };
        for site in ["cross-site", "same-site"] {
            assert!(check(site, "no-cors").is_err() && check(site, "cors").is_err());
            assert_eq!(check(site, "navigate"), Ok(()));
        }
        assert_eq!((check("same-origin", "cors"), check("none", "navigate")), (Ok(()), Ok(())));
    }

    fn check(method: &Method, host: &str, origin: Option<&str>) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).expect("a header"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).expect("a header"));
        }
        Guard::new(&["Beats.example".to_owned()]).check(method, &headers)
    }

    #[test]
    fn hosts_other_than_addresses_and_given_names_are_refused() {
        for host in ["localhost", "127.0.0.1:8086", "[::1]:8086", "10.0.0.7", "beats.example", "BEATS.example:443"] {
            assert_eq!(check(&Method::GET, host, None), Ok(()), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example", "beats.example.evil", "127.0.0.1.evil.example", "a b"]
        {
            assert!(check(&Method::GET, host, None).is_err(), "{host}");
        }
    }

    #[test]
    fn writes_need_the_same_origin_and_reads_no_other_one() {
        let host = "127.0.0.1:8086";
        for origin in [None, Some("http://evil.example"), Some("http://127.0.0.1:9999"), Some("null")] {
            assert!(check(&Method::POST, host, origin).is_err(), "{origin:?}");
            assert_eq!(check(&Method::GET, host, origin).is_ok(), origin.is_none(), "{origin:?}");
        }
        // A proxy may have ended TLS.
        for origin in ["http://127.0.0.1:8086", "https://127.0.0.1:8086"] {
            assert_eq!(check(&Method::POST, host, Some(origin)), Ok(()));
        }
    }
}
