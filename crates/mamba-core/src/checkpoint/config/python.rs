//! What Python writes as JSON and no other reader takes for it.

/// Numbers that Python's writer has and JSON has not.
const CONSTANTS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The text with `null` in place of them; published files of Mamba-2 have `"time_step_limit": [0.0, Infinity]`.
pub(super) fn without_constants(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(next) = rest.chars().next() {
        if !in_string && let Some(constant) = CONSTANTS.iter().find(|it| rest.starts_with(**it)) {
            out.push_str("null");
            rest = &rest[constant.len()..];
            continue;
        }
        let mut length = next.len_utf8();
        match next {
            '"' => in_string = !in_string,
            // Whatever is escaped ends no string.
            '\\' => length += rest[length..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_become_null_and_texts_stay() {
        let cases = [
            (r#"{"a": [0.0, Infinity]}"#, r#"{"a": [0.0, null]}"#),
            (r#"[-Infinity,NaN]"#, "[null,null]"),
            (
                r#"["Infinity", "a \" NaN", 1]"#,
                r#"["Infinity", "a \" NaN", 1]"#,
            ),
            (r#"["é\\", Infinity]"#, r#"["é\\", null]"#),
            ("\"open \\", "\"open \\"),
        ];
        for (text, want) in cases {
            assert_eq!(without_constants(text), want);
        }
    }
}
