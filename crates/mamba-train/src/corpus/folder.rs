//! Reading a corpus from a folder, under the names WikiText-2 is published with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{DatasetKind, Split};

/// The name patterns a folder may follow, the first complete one wins; `{}` is the split.
const TEXT_SCHEMES: [&str; 3] = ["wiki.{}.tokens", "{}.txt", "wiki.{}.raw"];
const RAW_SCHEMES: [&str; 1] = ["wiki.{}.raw"];

/// The files of `dir` for the required splits, and for those of `optional` that are there.
///
/// All splits come from one naming scheme: mixing two would train on one version of the text and
/// score on another.
pub(super) fn find(
    dir: &Path,
    kind: DatasetKind,
    required: &[Split],
    optional: &[Split],
) -> Result<Vec<(Split, PathBuf)>> {
    if dir.is_file() {
        bail!(
            "{} is no folder; give the one that holds the text",
            dir.display()
        );
    }
    if !dir.is_dir() {
        bail!(
            "the data folder {} does not exist; check --data-dir",
            dir.display()
        );
    }
    let schemes: &[&str] = match kind {
        DatasetKind::Wikitext2Raw => &RAW_SCHEMES,
        _ => &TEXT_SCHEMES,
    };
    let path = |scheme: &str, split: Split| dir.join(scheme.replace("{}", split.name()));
    let Some(scheme) = schemes.iter().find(|scheme| {
        required.iter().all(|&split| path(scheme, split).is_file())
            && required
                .iter()
                .chain(optional)
                .any(|&split| path(scheme, split).is_file())
    }) else {
        bail!("{}", missing(dir, schemes, required));
    };
    Ok(required
        .iter()
        .chain(optional.iter().filter(|split| !required.contains(split)))
        .map(|&split| (split, path(scheme, split)))
        .filter(|(_, path)| path.is_file())
        .collect())
}

/// Reads one split as text.
pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        bail!(
            "{} is empty; it must hold the text of its split",
            path.display()
        );
    }
    String::from_utf8(bytes).map_err(|error| {
        anyhow::anyhow!(
            "{} is not UTF-8 (first bad byte at offset {}); convert it to UTF-8 first",
            path.display(),
            error.utf8_error().valid_up_to()
        )
    })
}

fn missing(dir: &Path, schemes: &[&str], required: &[Split]) -> String {
    let sets: Vec<String> = schemes
        .iter()
        .map(|scheme| {
            let names: Vec<String> = required
                .iter()
                .map(|split| scheme.replace("{}", split.name()))
                .collect();
            names.join(" + ")
        })
        .collect();
    let present: Vec<String> = schemes
        .iter()
        .flat_map(|scheme| Split::ALL.map(|split| scheme.replace("{}", split.name())))
        .filter(|name| dir.join(name).is_file())
        .collect();
    // An evaluation needs one split, and which one is its own choice.
    let other = match required {
        [_] if !present.is_empty() => ", or take another split by --split",
        _ => "",
    };
    let found = match present.as_slice() {
        [] => "it holds none of these".to_string(),
        names => format!("it holds only {}", names.join(", ")),
    };
    format!(
        "the data folder {} lacks a split: looked for {}; {found}. Add the missing file, or give \
         another --data-dir{other}",
        dir.display(),
        sets.join(", or ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), "some text\n").unwrap();
        }
        dir
    }

    #[test]
    fn every_naming_scheme_is_found_and_schemes_never_mix() {
        for names in [
            ["wiki.train.tokens", "wiki.valid.tokens"],
            ["train.txt", "valid.txt"],
            ["wiki.train.raw", "wiki.valid.raw"],
        ] {
            let dir = folder(&names);
            let both = [Split::Train, Split::Valid];
            let found = find(dir.path(), DatasetKind::Auto, &both, &[Split::Test]).unwrap();
            let found: Vec<_> = found
                .iter()
                .map(|(_, path)| path.file_name().unwrap().to_str().unwrap())
                .collect();
            assert_eq!(found, names);
        }
        let mixed = folder(&["train.txt", "wiki.valid.raw"]);
        let error = find(
            mixed.path(),
            DatasetKind::Auto,
            &[Split::Train, Split::Valid],
            &[],
        )
        .unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("it holds only train.txt, wiki.valid.raw"),
            "{message}"
        );
        assert!(
            message.contains("wiki.train.raw + wiki.valid.raw"),
            "{message}"
        );
        assert!(
            message.contains(&mixed.path().display().to_string()),
            "{message}"
        );
    }

    #[test]
    fn only_the_splits_asked_for_are_needed() {
        let dir = folder(&["wiki.valid.raw", "wiki.test.raw"]);
        let found = find(
            dir.path(),
            DatasetKind::Wikitext2Raw,
            &[Split::Test],
            &[Split::Valid],
        )
        .unwrap();
        assert_eq!(found.len(), 2);
        let error = find(dir.path(), DatasetKind::Wikitext2, &[Split::Train], &[]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("it holds only wiki.valid.raw, wiki.test.raw")
        );
    }

    #[test]
    fn a_raw_dataset_refuses_the_other_form() {
        let dir = folder(&["train.txt"]);
        assert!(find(dir.path(), DatasetKind::Wikitext2Raw, &[Split::Train], &[]).is_err());
    }

    #[test]
    fn bad_files_are_named() {
        let dir = folder(&[]);
        let path = dir.path().join("train.txt");
        fs::write(&path, " \n").unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("train.txt is empty")
        );
        fs::write(&path, b"good\xff").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("offset 4"));
        let missing = dir.path().join("nowhere");
        let error = find(&missing, DatasetKind::Auto, &[Split::Train], &[]).unwrap_err();
        assert!(error.to_string().contains("does not exist"));
    }
}
