//! Hashes of files, and what is wrong with them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::cache::hex;

/// The SHA-256 of a file in hexadecimal, and its size in bytes.
pub(crate) fn digest(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hex(&hasher.finalize()), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

/// In one line where in the TOML `text` something is wrong, and what.
pub(crate) fn toml_problem(text: &str, error: &toml::de::Error) -> String {
    let problem = error.message().trim().replace('\n', ", ");
    match error.span() {
        Some(span) => {
            let before = text.bytes().take(span.start);
            let line = before.filter(|byte| *byte == b'\n').count() + 1;
            format!("line {line}: {problem}")
        }
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_of_toml_is_one_line_with_its_place() {
        let text = "a = 1\nb = \"open\nc = 2\n";
        let error = text.parse::<toml::Table>().unwrap_err();
        let told = toml_problem(text, &error);
        assert!(
            told.starts_with("line 2: ") && !told.contains('\n'),
            "{told}"
        );
    }
}
