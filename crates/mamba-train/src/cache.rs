//! Where derived files live, and how they are written so that a reader never sees half of one, not even after a power cut.

use std::env;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Environment variable that overrides [`cache_dir`].
pub const CACHE_VARIABLE: &str = "MAMBA_LAB_CACHE";

/// The folder for extracted corpora, encoded tokens and compiled kernels: `$MAMBA_LAB_CACHE` where it is set, else
/// `mamba-lab` in the platform's cache folder.
///
/// # Errors
///
/// Where the variable is unset and the platform names no cache folder (no home directory).
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(CACHE_VARIABLE).filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    let base = dirs::cache_dir().with_context(|| {
        format!("this user has no cache folder; set {CACHE_VARIABLE} to a folder to write to")
    })?;
    Ok(base.join("mamba-lab"))
}

/// Writes `path` through a temporary file beside it and a rename, creating its folder if needed. It is on the disk when this
/// returns: a name can get there before its content does.
///
/// # Errors
///
/// Where the folder cannot be created or written, or `write` fails; `path` is then untouched.
pub(crate) fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => bail!("{} has no folder", path.display()),
    };
    fs::create_dir_all(dir)
        .with_context(|| format!("cannot create the folder {}", dir.display()))?;
    let file = temporary_file(dir)
        .with_context(|| format!("cannot write in the folder {}", dir.display()))?;
    let mut writer = BufWriter::new(file);
    write(&mut writer).with_context(|| format!("cannot write {}", path.display()))?;
    let file = writer.into_inner().map_err(|error| error.into_error());
    let file = file.and_then(|file| file.as_file().sync_all().map(|()| file));
    file.with_context(|| format!("cannot write {}", path.display()))?
        .persist(path)
        .with_context(|| format!("cannot move the finished file to {}", path.display()))?;
    sync_folder(dir).with_context(|| format!("cannot write the folder {}", dir.display()))
}

/// Waits until the names in a folder are on the disk, where the system can tell.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    match fs::File::open(path)?.sync_all() {
        // Some network file systems sync no folders.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) => {}
        synced => synced?,
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// A temporary file with the permissions of any other new file; by default only its owner may read
/// one.
fn temporary_file(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The process's umask takes its share of this.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

/// The sha256 of `bytes` in lower-case hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/file");
        write_atomic(&path, |out| Ok(out.write_all(b"old")?)).unwrap();
        let error = write_atomic(&path, |out| {
            out.write_all(b"half")?;
            anyhow::bail!("no more")
        })
        .unwrap_err();
        assert!(format!("{error:#}").contains("no more"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    #[cfg(unix)]
    fn written_files_have_ordinary_permissions() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let (atomic, ordinary) = (dir.path().join("atomic"), dir.path().join("ordinary"));
        write_atomic(&atomic, |out| Ok(out.write_all(b"x")?)).unwrap();
        fs::write(&ordinary, b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&atomic), mode(&ordinary));
    }

    #[test]
    fn sha256_is_the_published_one() {
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
