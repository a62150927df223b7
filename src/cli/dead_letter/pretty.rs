//! JSON for the eye: indented, every token as it was written, so that numbers keep their digits and keys their order.

/// Indents `json`, which is valid. What a terminal could take for a command is written as an escape, which in JSON means
/// the same.
pub(super) fn pretty(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut chars = json.chars().filter(|c| !matches!(c, '\n' | '\r' | '\t')).peekable();
    let mut is_text = false;
    while let Some(c) = chars.next() {
        if is_text {
            push(&mut out, c);
            match c {
                '\\' => chars.next().into_iter().for_each(|escaped| push(&mut out, escaped)),
                '"' => is_text = false,
                _ => {}
            }
            continue;
        }
        match c {
            ' ' => {}
            '{' | '[' => {
                out.push(c);
                while chars.next_if_eq(&' ').is_some() {}
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => {
                is_text = c == '"';
                push(&mut out, c);
            }
        }
    }
    out
}

/// Deepest indentation: a payload of brackets alone would grow with the square of its length.
const DEPTH_MAX: usize = 32;

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    (0..depth.min(DEPTH_MAX)).for_each(|_| out.push_str("  "));
}

fn push(out: &mut String, c: char) {
    if c.is_control() {
        out.push_str(&format!("\\u{:04x}", u32::from(c)));
    } else {
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_stays_as_it_was() {
        let json = "{ \"b\" :1.50,\r\n\"a\":[ ] ,\"c\":[1e3,{\"x , {\\\" \\\\\":\"\u{9b}31m\"}],\"d\":{\n}}";
        let wanted = "{\n  \"b\": 1.50,\n  \"a\": [],\n  \"c\": [\n    1e3,\n    {\n      \"x , {\\\" \\\\\": \"\\u009b31m\"\n    }\n  ],\n  \"d\": {}\n}";
        assert_eq!(pretty(json), wanted);
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(parse(&pretty(json)), parse(json));
        for same in ["1", "\"a\"", "null", "[]", "-0.10"] {
            assert_eq!(pretty(same), same);
        }
    }

    #[test]
    fn deep_nesting_costs_no_stack_and_little_memory() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(pretty(&deep).len() < 200_000 * (2 * DEPTH_MAX + 3));
    }
}
