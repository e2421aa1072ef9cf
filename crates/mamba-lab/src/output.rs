//! Standard output, whose errors say that it is the one.

use std::io::{self, Error, StdoutLock, Write};

/// Standard output, locked.
pub struct Output(StdoutLock<'static>);

/// Locks standard output.
pub fn stdout() -> Output {
    Output(io::stdout().lock())
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

fn named(error: Error) -> Error {
    match error.kind() {
        // `write_all` goes on behind this one.
        io::ErrorKind::Interrupted => error,
        kind => Error::new(kind, format!("cannot write standard output: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_kind_and_names_the_place() {
        let error = named(Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(
            error
                .to_string()
                .starts_with("cannot write standard output: ")
        );
    }
}
