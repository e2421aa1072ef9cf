//! One file of a model, from the hub to the cache: resumed, checked, and under its name only when it is whole.
//!
//! Bytes gather in the folder `.incoming` beside the cache's own ones, where an interrupted download is continued from. What
//! has arrived there and passed its checks is moved to where Hugging Face's own programs look:
//! `blobs/<etag>`, and a link of the file's name in `snapshots/<commit>`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::api::sync::{ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo, RepoType};

use super::Hub;
use super::model::ModelName;
use crate::files::digest;

/// What keeps a model's files: its folder in the hub cache.
pub(super) fn folder(hub: &Hub, name: &ModelName) -> PathBuf {
    let repo = Repo::model(name.to_string());
    hub.hub_cache.join(repo.folder_name())
}

/// Where the files of a commit are.
pub(super) fn snapshot(hub: &Hub, name: &ModelName, commit: &str) -> PathBuf {
    folder(hub, name).join("snapshots").join(commit)
}

/// The files of one commit of a model, on their way.
pub(super) struct Incoming<'a> {
    hub: &'a Hub,
    name: &'a ModelName,
    commit: String,
    staging: Cache,
}

impl<'a> Incoming<'a> {
    pub fn new(hub: &'a Hub, name: &'a ModelName, commit: String) -> Self {
        Self {
            staging: Cache::new(folder(hub, name).join(".incoming")),
            hub,
            name,
            commit,
        }
    }

    /// The file in the snapshot, fetched unless it is there.
    pub fn fetch(&self, file: &str) -> Result<PathBuf> {
        let path = snapshot(self.hub, self.name, &self.commit).join(file);
        if !path.is_file() {
            let announced = self.announced(file)?;
            let arrived = self.arrive(file, &announced)?;
            self.check(file, &arrived, &announced)?;
            self.install(&arrived, tag(&announced), &path)?;
        }
        Ok(path)
    }

    /// Notes that this commit is the newest known one, and clears up. Called when all files are there.
    pub fn finish(self) -> Result<()> {
        let cache = Cache::new(self.hub.hub_cache.clone());
        let repo = cache.repo(Repo::model(self.name.to_string()));
        repo.create_ref(&self.commit)
            .with_context(|| format!("cannot write in {}", self.hub.hub_cache.display()))?;
        // Nothing is lost where this fails: what is left is used or overwritten by the next download.
        let _ = fs::remove_dir_all(self.staging.path());
        Ok(())
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.name.to_string(), RepoType::Model, self.commit.clone())
    }

    fn connection(&self) -> Result<ApiRepo> {
        Ok(self.hub.api(self.staging.clone())?.repo(self.repo()))
    }

    /// What the hub says of a file: its size, and an etag which is the sha256 of large ones.
    fn announced(&self, file: &str) -> Result<Metadata> {
        let url = self.connection()?.url(file);
        let api = self.hub.api(self.staging.clone())?;
        let result = self.hub.watched(file, move |_| api.metadata(&url))?;
        let announced = result.map_err(|error| self.broken_off(file, &error))?;
        let etag = tag(&announced);
        ensure!(
            !etag.is_empty()
                && etag
                    .bytes()
                    .all(|it| it.is_ascii_alphanumeric() || it == b'-'),
            "{} announces {file} of {} by the tag {etag:?}, which is no name of a file",
            self.hub.endpoint,
            self.name
        );
        Ok(announced)
    }

    /// All bytes of the file, somewhere in the staging folder.
    fn arrive(&self, file: &str, announced: &Metadata) -> Result<PathBuf> {
        let blob = self.staging.repo(self.repo()).blob_path(announced.etag());
        let part = blob.with_extension("part");
        let (size, begun) = (
            announced.size() as u64,
            fs::metadata(&part).map_or(0, |it| it.len()),
        );
        if begun == size && size > 0 {
            return Ok(part);
        }
        if begun > size {
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
        let (connection, name) = (self.connection()?, file.to_string());
        let result = self.hub.watched(file, move |progress| {
            connection.download_with_progress(&name, progress)
        });
        let arrived = match result {
            Ok(Ok(path)) => path,
            Ok(Err(error)) => return Err(self.broken_off(file, &error)),
            Err(error) => return Err(error.context(self.what_to_do(file))),
        };
        fs::canonicalize(&arrived).with_context(|| format!("cannot read {}", arrived.display()))
    }

    fn broken_off(&self, file: &str, error: &ApiError) -> anyhow::Error {
        anyhow::anyhow!("{error}").context(self.what_to_do(file))
    }

    fn what_to_do(&self, file: &str) -> String {
        format!(
            "{file} of {} could not be fetched from {}; the same command again continues where it broke off",
            self.name, self.hub.endpoint
        )
    }

    /// Compares a file with what the hub has announced; a wrong one is removed.
    fn check(&self, file: &str, arrived: &Path, announced: &Metadata) -> Result<()> {
        let read = || -> io::Result<(u64, Option<String>)> {
            let size = fs::metadata(arrived)?.len();
            let is_hash = tag(announced).len() == 64;
            let sha256 = is_hash.then(|| digest(arrived)).transpose()?;
            Ok((size, sha256.map(|(sha256, _)| sha256)))
        };
        let (size, sha256) =
            read().with_context(|| format!("cannot read {}", arrived.display()))?;
        let wrong = if size != announced.size() as u64 {
            format!("{size} bytes instead of {}", announced.size())
        } else if sha256.as_deref().is_some_and(|it| it != tag(announced)) {
            format!("another sha256 than {}", tag(announced))
        } else {
            return Ok(());
        };
        // Else it would be found again, and taken for whole.
        let _ = fs::remove_dir_all(self.staging.path());
        bail!(
            "{file} of {} has arrived damaged, with {wrong}; it was removed: try again",
            self.name
        )
    }

    /// Moves a checked file to its place in the cache.
    fn install(&self, arrived: &Path, etag: &str, path: &Path) -> Result<()> {
        let install = || -> io::Result<()> {
            let folder = path.parent().unwrap_or(path);
            fs::create_dir_all(folder)?;
            #[cfg(unix)]
            {
                let blobs = self::folder(self.hub, self.name).join("blobs");
                fs::create_dir_all(&blobs)?;
                fs::rename(arrived, blobs.join(etag))?;
                let _ = fs::remove_file(path); // a link to a blob that is gone
                std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), path)
            }
            #[cfg(not(unix))]
            {
                let _ = etag;
                fs::rename(arrived, path)
            }
        };
        install().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// An etag without the mark of a weak one.
fn tag(announced: &Metadata) -> &str {
    let etag = announced.etag();
    etag.strip_prefix("W/").unwrap_or(etag)
}
