use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{Entry, Results, csv, table};

const LINES: &str = "results.jsonl";
const JSON: &str = "results.json";

/// Where results go by default.
pub(crate) const ROOM: &str = "artifacts/bench";

/// Where the folder of a run is made.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// It is this one, new or empty.
    Just(&'a Path),
    /// It is a new one in there, named after the suite, and numbered if there is one of that name.
    In(&'a Path),
}

/// The results of a folder: whole if the run came to its end.
pub(super) fn file_in(folder: &Path) -> PathBuf {
    let whole = folder.join(JSON);
    match whole.exists() {
        true => whole,
        false => folder.join(LINES),
    }
}

impl Place<'_> {
    /// Makes the folder that several runs share.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn prepare(&self) -> Result<()> {
        match self {
            Self::Just(_) => Ok(()),
            Self::In(room) => fs::create_dir_all(room).with_context(|| cannot("make", room)),
        }
    }
}

/// A folder of one run, in which nothing was before.
#[derive(Debug)]
pub struct ResultFolder {
    path: PathBuf,
    lines: File,
    results: Results,
}

impl ResultFolder {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// If it holds files already, or cannot be made or written.
    pub fn create(place: Place, suite: &str) -> Result<Self> {
        place.prepare()?;
        let path = match place {
            Place::Just(path) => {
                if fs::read_dir(path).is_ok_and(|mut files| files.next().is_some()) {
                    bail!(
                        "{} is not empty and nothing is overwritten: give another --out",
                        path.display()
                    );
                }
                fs::create_dir_all(path).with_context(|| cannot("make", path))?;
                path.to_path_buf()
            }
            Place::In(room) => next_free(room, suite)?,
        };
        let file = path.join(LINES);
        let lines = OpenOptions::new().write(true).create_new(true).open(&file);
        let lines = lines.with_context(|| cannot("write", &file))?;
        Ok(Self {
            path,
            lines,
            results: Results::default(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was found so far.
    pub fn results(&self) -> &Results {
        &self.results
    }

    /// Writes a line, to the disk: what follows may take the machine down.
    ///
    /// # Errors
    ///
    /// If the disk is full.
    pub fn append(&mut self, entry: Entry) -> Result<()> {
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        let written = self
            .lines
            .write_all(&line)
            .and_then(|()| self.lines.sync_data());
        written.with_context(|| cannot("write", &self.path.join(LINES)))?;
        self.results.push(entry);
        Ok(())
    }

    /// Writes `results.json`, `results.csv` and `table.txt`.
    ///
    /// # Errors
    ///
    /// If the disk is full.
    pub fn finish(&self) -> Result<()> {
        self.write(JSON, &json(&self.results)?)?;
        self.write("results.csv", &csv(&self.results))?;
        self.write("table.txt", &table(&self.results))
    }

    /// Writes a file beside them.
    ///
    /// # Errors
    ///
    /// If the disk is full.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| cannot("write", &path))
    }
}

/// One object, with one line an entry: small, and fit for comparison by line.
fn json(results: &Results) -> Result<String> {
    fn list(entries: &[impl Serialize]) -> Result<String> {
        let lines: Vec<_> = entries
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()?;
        Ok(format!("[\n{}\n]", lines.join(",\n")))
    }
    let Results {
        heads,
        proofs,
        rows,
        absent,
        growth,
        findings,
    } = results;
    let parts = [
        ("heads", list(heads)?),
        ("proofs", list(proofs)?),
        ("rows", list(rows)?),
        ("absent", list(absent)?),
        ("growth", list(growth)?),
        ("findings", list(findings)?),
    ];
    let parts = parts.map(|(name, list)| format!("\"{name}\": {list}"));
    Ok(format!("{{\n{}\n}}\n", parts.join(",\n")))
}

fn cannot(what: &str, path: &Path) -> String {
    format!(
        "cannot {what} {}: free some space, or choose a folder with --out",
        path.display()
    )
}

fn next_free(room: &Path, suite: &str) -> Result<PathBuf> {
    let names =
        std::iter::once(suite.to_owned()).chain((2..).map(|number| format!("{suite}-{number}")));
    for name in names {
        let path = room.join(name);
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| cannot("make", &path)),
        }
    }
    unreachable!("numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::super::testing::row;
    use super::*;

    #[test]
    fn lines_are_there_at_once_and_nothing_is_overwritten() {
        let room = tempfile::tempdir().unwrap();
        let out = room.path().join("deep/out");
        let mut folder = ResultFolder::create(Place::Just(&out), "scaling").unwrap();
        folder
            .append(Entry::Row(Box::new(row("mamba1", 64, &[1.0]))))
            .unwrap();
        assert_eq!(
            fs::read_to_string(out.join(LINES)).unwrap().lines().count(),
            1
        );
        assert!(!out.join(JSON).exists());
        folder.finish().unwrap();
        for name in [JSON, "results.csv", "table.txt"] {
            assert!(out.join(name).is_file(), "{name}");
        }
        assert_eq!(Results::read(&out.join(JSON)).unwrap().rows.len(), 1);
        let error = ResultFolder::create(Place::Just(&out), "scaling")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("not empty") && error.contains("--out"),
            "{error}"
        );
    }

    #[test]
    fn a_file_in_the_way_is_told() {
        let room = tempfile::tempdir().unwrap();
        let file = room.path().join("file");
        fs::write(&file, "mine").unwrap();
        let error = ResultFolder::create(Place::Just(&file.join("out")), "scaling")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cannot make") && error.contains("--out"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }

    #[test]
    fn folders_are_numbered() {
        let room = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..3)
            .map(|_| next_free(room.path(), "decode").unwrap())
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["decode", "decode-2", "decode-3"]);
    }
}
