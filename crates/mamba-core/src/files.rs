//! Files that have their names once they are whole.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A file that is being written beside its place. Dropped before [`Part::finish`] it leaves nothing behind; a process
/// that is killed leaves `NAME.PID.part`, and never half a file of the name itself.
#[derive(Debug)]
pub struct Part {
    place: PathBuf,
    part: PathBuf,
}

impl Part {
    /// Of the file at `place`. Nothing is written yet.
    pub fn of(place: &Path) -> Self {
        let mut part = place.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        Self {
            place: place.to_path_buf(),
            part: part.into(),
        }
    }

    /// Where to write it.
    pub fn path(&self) -> &Path {
        &self.part
    }

    /// Gives the file its name, in place of one that is there, once its contents are on the disk.
    ///
    /// # Errors
    ///
    /// If it was not written, or the disk fails.
    pub fn finish(self) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .open(&self.part)?
            .sync_all()?;
        fs::rename(&self.part, &self.place)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = std::env::temp_dir().join(format!("mamba-core-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let place = folder.join("file");
        let listed = || fs::read_dir(&folder).unwrap().count();
        let part = Part::of(&place);
        fs::write(part.path(), "half").unwrap();
        assert_eq!((place.exists(), listed()), (false, 1));
        drop(part);
        assert_eq!(listed(), 0);
        for text in ["first", "second"] {
            let part = Part::of(&place);
            fs::write(part.path(), text).unwrap();
            part.finish().unwrap();
            assert_eq!(fs::read_to_string(&place).unwrap(), text);
            assert_eq!(listed(), 1);
        }
        assert!(Part::of(&place).finish().is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
