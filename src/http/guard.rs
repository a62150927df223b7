//! Who may ask: looked at before anything else is done with a request.

use std::net::IpAddr;

use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};

use super::Options;

/// The paths that need no token: the page itself, which asks for it, and that the process answers.
const OPEN_PATHS: [&str; 2] = ["/", "/healthz"];

/// Why a request is not answered: its status and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Denied(pub(super) StatusCode, pub(super) String);

/// Looks at method, body, host and token of a request.
pub(super) fn check(options: &Options, request: &Parts) -> Result<(), Denied> {
    let headers = &request.headers;
    if request.method != Method::GET && request.method != Method::HEAD {
        let what = "only GET and HEAD are answered: nothing can be changed here".to_owned();
        return Err(Denied(StatusCode::METHOD_NOT_ALLOWED, what));
    }
    let has_length = headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_length || headers.contains_key(TRANSFER_ENCODING) {
        return Err(Denied(StatusCode::PAYLOAD_TOO_LARGE, "a request has no body here".to_owned()));
    }
    // Order: before the token, so that a page in a browser learns nothing.
    if options.listen.ip().is_loopback() && !names_loopback(request) {
        let what = format!("the Host header must name this machine: http://{}", options.listen);
        return Err(Denied(StatusCode::MISDIRECTED_REQUEST, what));
    }
    let Some(token) = options.token.as_ref().filter(|_| !OPEN_PATHS.contains(&request.uri.path())) else {
        return Ok(());
    };
    // Read at each request, so that another token counts without a restart.
    let wanted = token.read().map_err(|error| {
        Denied(StatusCode::SERVICE_UNAVAILABLE, format!("the token of http.token_file: {error}"))
    })?;
    let given = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    if given.is_some_and(|given| is_equal(given, wanted.reveal().as_bytes())) {
        Ok(())
    } else {
        let what =
            "the header `Authorization: Bearer …` with the token of http.token_file is missing or wrong";
        Err(Denied(StatusCode::UNAUTHORIZED, what.to_owned()))
    }
}

/// By name or by address: what a browser sends is the name in its address line, so that a name that somebody has turned to
/// this machine is told from it.
fn names_loopback(request: &Parts) -> bool {
    let host = request.headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// Takes the same time wherever the two differ; only the length shows.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |bits, (a, b)| std::hint::black_box(bits | (a ^ b)));
    a.len() == b.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::Request;

    use super::*;
    use crate::buffer::RecentLimits;
    use crate::secret::{Password, Secret};

    fn options(listen: &str, token: Option<&str>) -> Options {
        Options {
            listen: listen.parse().unwrap(),
            tls: None,
            token: token.map(|token| Password::Given(Secret::new(token))),
            connections_max: 16,
            recent: RecentLimits { bytes_max: 1, events_max: 1 },
            ready_age_max: Duration::ZERO,
        }
    }

    fn status(options: &Options, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        check(options, &parts).map_or_else(|Denied(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn on_loopback_the_host_must_be_it() {
        let options = options("127.0.0.1:9480", None);
        for (host, wanted) in [
            ("127.0.0.1:9480", 200),
            ("localhost", 200),
            ("LOCALHOST:1", 200),
            ("[::1]:9480", 200),
            ("evil.example:9480", 421),
            ("127.0.0.1.evil.example", 421),
            ("192.0.2.1", 421),
            ("", 421),
        ] {
            assert_eq!(status(&options, "GET", "/status", &[("host", host)]), wanted, "{host}");
        }
        assert_eq!(status(&options, "GET", "/status", &[]), 421);
    }

    #[test]
    fn beyond_loopback_the_token_counts() {
        let options = options("0.0.0.0:9480", Some("hush"));
        for (value, wanted) in [
            ("Bearer hush", 200),
            ("bearer hush", 200),
            ("Bearer husk", 401),
            ("Bearer hus", 401),
            ("Bearer hushh", 401),
            ("Basic hush", 401),
            ("", 401),
        ] {
            assert_eq!(status(&options, "GET", "/events", &[("authorization", value)]), wanted, "{value}");
        }
        assert_eq!(status(&options, "GET", "/events", &[]), 401);
        assert_eq!(status(&options, "GET", "/healthz", &[]), 200);
        assert_eq!(status(&options, "GET", "/", &[]), 200);
        assert_eq!(status(&options, "GET", "/history", &[]), 401);
    }

    #[test]
    fn nothing_is_written_and_no_body_is_taken() {
        let options = options("0.0.0.0:9480", None);
        assert_eq!(status(&options, "HEAD", "/", &[]), 200);
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
            assert_eq!(status(&options, method, "/", &[]), 405, "{method}");
        }
        assert_eq!(status(&options, "GET", "/", &[("content-length", "0")]), 200);
        assert_eq!(status(&options, "GET", "/", &[("content-length", "5")]), 413);
        assert_eq!(status(&options, "GET", "/", &[("transfer-encoding", "chunked")]), 413);
    }

    #[test]
    fn a_token_that_cannot_be_read_lets_nobody_in() {
        let options =
            Options { token: Some(Password::File("/nowhere/token".into())), ..options("0.0.0.0:1", None) };
        assert_eq!(status(&options, "GET", "/status", &[("authorization", "Bearer ")]), 503);
    }
}
