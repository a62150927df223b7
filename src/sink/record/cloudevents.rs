//! The format `cloudevents`: CloudEvents 1.0, Kafka protocol binding, binary content mode. The value is the payload byte
//! for byte, `content-type` its media type, and the attributes are headers:
//!
//! | header | value |
//! |---|---|
//! | `ce_specversion` | `1.0` |
//! | `ce_id` | the event's id |
//! | `ce_source` | `fieldpost://{agent}/{source_type}/{source_id}`, names percent-encoded (RFC 3986) |
//! | `ce_type` | `type` |
//! | `ce_time` | the event's timestamp, RFC 3339 |
//! | `ce_sourcetype`, `ce_sourceid` | extensions: `source_type` and `source_id` as they are |

use super::headers::{CONTENT_TYPE, Headers};
use super::raw::media_type;
use crate::event::Event;

/// Version of the specification.
const SPEC_VERSION: &[u8] = b"1.0";

/// Writes `ce_source` of `event` in place of what `out` held. The agent's name needs no encoding: its characters are all
/// unreserved.
pub(super) fn source(agent: &str, event: &Event<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"fieldpost://");
    out.extend_from_slice(agent.as_bytes());
    for name in [event.source_type, event.source_id] {
        out.push(b'/');
        percent_encoded(name, out);
    }
}

/// Everything but the unreserved characters of RFC 3986, section 2.3, byte by byte.
fn percent_encoded(text: &str, out: &mut Vec<u8>) {
    let digit = |half: u8| if half < 10 { b'0' + half } else { b'A' + half - 10 };
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte);
        } else {
            out.extend([b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

pub(super) fn headers<'a>(
    event: &Event<'a>,
    id: &'a str,
    time: &'a [u8],
    source: &'a [u8],
    headers: &mut Headers<'a>,
) {
    headers.push(CONTENT_TYPE, media_type(event));
    headers.push("ce_specversion", SPEC_VERSION);
    headers.push("ce_id", id.as_bytes());
    headers.push("ce_source", source);
    headers.push("ce_type", event.kind.as_bytes());
    headers.push("ce_time", time);
    headers.push("ce_sourcetype", event.source_type.as_bytes());
    headers.push("ce_sourceid", event.source_id.as_bytes());
}
