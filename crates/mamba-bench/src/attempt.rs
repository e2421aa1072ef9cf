//! Work that may take a device down, without taking the run with it.

use std::panic::{self, AssertUnwindSafe};

use anyhow::{Result, anyhow};
use burn::tensor::{Device, Tensor};
use mamba_core::failure::DeviceFailure;

/// Runs `work`; a panic becomes an error, in one line. Backends tell of failing devices by panics.
///
/// # Errors
///
/// Those of `work`, and its panics.
pub fn attempt<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let message = match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => match DeviceFailure::recognise(&format!("{error:#}")) {
            Some(failure) => return Err(failure.into()),
            None => return Err(error),
        },
        Err(payload) => match (
            payload.downcast_ref::<String>(),
            payload.downcast_ref::<&str>(),
        ) {
            (Some(message), _) => message.clone(),
            (_, Some(message)) => (*message).to_owned(),
            _ => "a panic without a message".to_owned(),
        },
    };
    Err(DeviceFailure::recognise(&message).map_or_else(|| anyhow!(one_line(&message)), Into::into))
}

/// Whether a device still computes, after something on it failed.
pub fn works(device: &Device) -> bool {
    attempt(|| {
        Ok((Tensor::<1>::ones([2], device) + 1.0)
            .sum()
            .into_scalar::<f32>())
    })
    .is_ok_and(|sum| sum == 4.0)
}

/// The lines of a message that tell something, as one.
pub fn one_line(message: &str) -> String {
    let lines = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    lines.take(4).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn panics_and_errors_become_one_line() {
        assert_eq!(attempt(|| Ok(3)).unwrap(), 3);
        let error = attempt::<()>(|| bail!("no such thing")).unwrap_err();
        assert_eq!(error.to_string(), "no such thing");
        let error = attempt::<()>(|| panic!("first\n\n  second")).unwrap_err();
        assert_eq!(error.to_string(), "first second");
        let error =
            attempt::<()>(|| panic!("out of device memory allocating 1048576 bytes")).unwrap_err();
        assert!(
            error.to_string().contains("out of memory (1 MiB"),
            "{error}"
        );
    }
}
