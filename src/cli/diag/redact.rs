//! Takes out of a text what nobody else may read. A second line of defence: no part of a bundle is meant to hold a secret.

use crate::secret::Secret;

/// Shorter secrets are left: taken out of everything they would leave no text.
const SECRET_BYTES_MIN: usize = 4;

/// What stands in place of what was taken out.
const GONE: &str = "***";

/// `text` without any of `secrets`, logins in URLs, and private keys.
pub(super) fn redacted(text: &str, secrets: &[Secret]) -> String {
    let known = secrets.iter().map(Secret::reveal).filter(|secret| secret.len() >= SECRET_BYTES_MIN);
    let text = known.fold(text.to_owned(), |text, secret| text.replace(secret, GONE));
    let mut out = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let is_edge = line.contains("PRIVATE KEY-----");
        if is_edge && line.contains("-----BEGIN") {
            in_key = true;
            out.push_str(GONE);
            out.push('\n');
        }
        if !in_key {
            out.push_str(&without_logins(line));
        }
        in_key &= !(is_edge && line.contains("-----END"));
    }
    out
}

/// `scheme://***@host` for each `scheme://login@host`.
fn without_logins(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || "/\"'<>".contains(c)).unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                out.push_str(GONE);
                out.push('@');
                out.push_str(host);
            }
            None => out.push_str(authority),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_logins_and_keys_go_and_the_rest_stays() {
        let secrets = ["hunter2", "a"].map(Secret::new);
        let text = "password hunter2, hunter2!\n\
                    redis://me:pass@word@cache:6379/1, mqtts://u@h and http://plain/x@y\n\
                    -----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\nafter\n";
        assert_eq!(
            redacted(text, &secrets),
            "password ***, ***!\nredis://***@cache:6379/1, mqtts://***@h and http://plain/x@y\n***\nafter\n"
        );
        let cut = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nMIIF";
        assert_eq!(redacted(cut, &[]), "***\n");
    }
}
