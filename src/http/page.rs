//! `/`: the page for people. One file, which fetches the other routes.

use axum::response::{IntoResponse as _, Response};
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};

const PAGE: &str = include_str!("page.html");

/// Only the page's own style and script run in it, whatever a producer writes into an event; it talks to this agent alone.
const POLICY: &str = concat!(
    "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; ",
    "style-src 'sha256-hMxwN0+DzlYTSMRU9351R5OQmO+zmiBpSqKKtNowwGw='; script-src 'sha256-TAruEKH6jDjkHat/4PzSiW4jaECw14zLPFxMc8dH4IQ='"
);

pub(super) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy names the page's own style and script by their sums, and there are no others.
    #[test]
    fn nothing_but_its_own_script_runs_in_the_page() {
        use base64::Engine as _;
        for (tag, directive) in [("style", "style-src"), ("script", "script-src")] {
            let inside: Vec<&str> = PAGE.split(&format!("<{tag}>")).skip(1).collect();
            assert_eq!(inside.len(), 1, "one {tag}");
            let text = inside[0].split(&format!("</{tag}>")).next().unwrap();
            let sum = base64::engine::general_purpose::STANDARD.encode(openssl::sha::sha256(text.as_bytes()));
            let wanted = format!("{directive} 'sha256-{sum}'");
            assert!(POLICY.contains(&wanted), "POLICY in src/http/page.rs needs {wanted}");
        }
        for outside in ["http://", "https://", "src=", "@import", "url(", " style=", " onclick", "innerHTML"]
        {
            let found = PAGE.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(outside), "the page has {outside}");
        }
    }
}
