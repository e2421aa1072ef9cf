//! The files of kernels kept on disk: whose they are, whether they are whole, and which may go.
//!
//! A database `NAME.db` has files beside it whose names begin with its own; `NAME.db.digest` is ours.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Databases of other builds that are left where they are: a program may be run in two versions by turns.
const OTHERS: usize = 3;

/// What names the database of this program on this machine, or nothing where the program cannot be told from another.
///
/// What is in it depends on the program, and a driver may refuse what was compiled for a newer one, as on another machine
/// that shares the folder.
pub(super) fn name() -> Option<String> {
    let program = fs::metadata(std::env::current_exe().ok()?).ok()?;
    let mut stamp = DefaultHasher::new();
    (program.len(), program.modified().ok()?).hash(&mut stamp);
    let name = format!("{}-{:016x}", env!("CARGO_PKG_VERSION"), stamp.finish());
    Some(match fs::read_to_string("/sys/module/nvidia/version") {
        Ok(driver) => format!("{name}-nvidia-{}", driver.trim()),
        Err(_) => name,
    })
}

/// Readies `folder` for `database`: deletes what nobody vouches for, and what belongs to builds long gone. Whether it can
/// be used.
pub(super) fn prepare(folder: &Path, database: &Path) -> bool {
    if !is_writable(folder) {
        return false;
    }
    // Another process may delete the same.
    let _ = sweep(folder, database);
    if !database.exists() {
        return true;
    }
    let vouched = fs::read_to_string(beside(database, DIGEST)).ok();
    vouched.is_some() && vouched == digest(database).ok() || delete(folder, database).is_ok()
}

/// Leaves a digest of `database` beside it.
pub(super) fn seal(database: &Path) -> io::Result<()> {
    if !database.exists() {
        return Ok(());
    }
    let unfinished = beside(database, &format!("{DIGEST}-{}", std::process::id()));
    fs::write(&unfinished, digest(database)?)?;
    fs::rename(unfinished, beside(database, DIGEST))
}

const DIGEST: &str = "digest";

/// Of the database and of what was written to it last.
fn digest(database: &Path) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    fs::read(database)?.hash(&mut hasher);
    match fs::read(log_of(database)) {
        Ok(log) => log.hash(&mut hasher),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn log_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn beside(database: &Path, extension: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

/// Deletes the databases in `folder` but `database` and the [`OTHERS`] that were used last.
fn sweep(folder: &Path, database: &Path) -> io::Result<()> {
    let mut others: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "db") && path != database {
            let used = fs::metadata(beside(&path, DIGEST)).or_else(|_| fs::metadata(&path))?;
            others.push((used.modified()?, path));
        }
    }
    others.sort();
    let gone = others.len().saturating_sub(OTHERS);
    (others.iter().take(gone)).try_for_each(|(_, other)| delete(folder, other))
}

/// Deletes `database` and the files beside it. A process that has it open goes on with what it has.
fn delete(folder: &Path, database: &Path) -> io::Result<()> {
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(name.as_ref())
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_writable(folder: &Path) -> bool {
    let probe = folder.join(format!(".probe-{}", std::process::id()));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&probe, []));
    written.and_then(|()| fs::remove_file(probe)).is_ok()
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_sealed_stays_until_a_byte_of_it_changes() {
        let folder = tempdir().unwrap();
        let folder = folder.path();
        let database = folder.join("a.db");
        let write = || {
            for file in ["a.db", "a.db-wal", "a.db-tshm"] {
                fs::write(folder.join(file), b"kernels").unwrap();
            }
        };
        for damaged in ["a.db", "a.db-wal"] {
            write();
            seal(&database).unwrap();
            assert!(prepare(folder, &database));
            assert_eq!(
                names(folder),
                ["a.db", "a.db-tshm", "a.db-wal", "a.db.digest"]
            );
            for bytes in [&b"kernelz"[..], b"kernel", b"kernels and more", b""] {
                write();
                seal(&database).unwrap();
                fs::write(folder.join(damaged), bytes).unwrap();
                assert!(prepare(folder, &database));
                assert!(names(folder).is_empty(), "{damaged}: {bytes:?}");
            }
        }
    }

    #[test]
    fn what_nobody_sealed_is_deleted() {
        let folder = tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("a.db"), b"half of it").unwrap();
        assert!(prepare(folder, &folder.join("a.db")));
        assert!(names(folder).is_empty());
    }

    #[test]
    fn the_databases_of_a_few_other_builds_stay_the_last_used_ones() {
        let folder = tempdir().unwrap();
        let folder = folder.path();
        for (age, name) in ["e", "d", "c", "b", "a"].into_iter().enumerate() {
            let database = folder.join(format!("{name}.db"));
            fs::write(&database, name).unwrap();
            seal(&database).unwrap();
            let digest = beside(&database, DIGEST);
            let digest = fs::File::options().write(true).open(digest).unwrap();
            let hours = std::time::Duration::from_secs(3600 * age as u64);
            digest.set_modified(SystemTime::UNIX_EPOCH + hours).unwrap();
        }
        // The oldest is ours.
        assert!(prepare(folder, &folder.join("e.db")));
        let databases = |it: &String| it.ends_with(".db");
        let left: Vec<String> = names(folder).into_iter().filter(databases).collect();
        assert_eq!(left, ["a.db", "b.db", "c.db", "e.db"]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_not_used() {
        let folder = tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(!prepare(&file.join("below"), &file.join("below/a.db")));
    }

    #[test]
    fn a_program_has_one_name() {
        let name = name().expect("a test is a file");
        assert!(name.starts_with(env!("CARGO_PKG_VERSION")), "{name}");
        assert_eq!(super::name(), Some(name));
    }
}
