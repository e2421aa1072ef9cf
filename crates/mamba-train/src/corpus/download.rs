//! A pinned archive of the Hugging Face hub, checked by hash and extracted.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use crate::cache::{sha256_hex, write_atomic};
use crate::hub::Hub;

/// A zip archive in a dataset repository, with the files wanted from it.
pub(super) struct Archive {
    pub(super) repo: String,
    pub(super) file: String,
    pub(super) sha256: String,
    pub(super) entries: Vec<Entry>,
}

/// A file inside an [`Archive`], in whatever folder.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Archive {
    /// The folder that holds every entry, each checked by hash when it was extracted.
    ///
    /// # Errors
    ///
    /// Where the hub cannot be reached, or sends something else than what is pinned.
    pub(super) fn obtain(&self, hub: &Hub) -> Result<PathBuf> {
        let stem = self.file.trim_end_matches(".zip");
        let dir = hub.extracted.join(stem);
        if self.entries.iter().all(|entry| entry.is_at(&dir)) {
            return Ok(dir);
        }
        let zip = hub.dataset_file(&self.repo, &self.file)?;
        let bytes = fs::read(&zip).with_context(|| format!("cannot read {}", zip.display()))?;
        let found = sha256_hex(&bytes);
        if found != self.sha256 {
            // The cache would hand out the same bad bytes for ever.
            let blob = fs::canonicalize(&zip).unwrap_or_else(|_| zip.clone());
            for path in [&zip, &blob] {
                let _ = fs::remove_file(path);
            }
            bail!(
                "{} has sha256 {found}, expected {}; the copy was removed, try again",
                self.file,
                self.sha256
            );
        }
        self.extract(&zip, &dir)?;
        Ok(dir)
    }

    fn extract(&self, zip: &Path, dir: &Path) -> Result<()> {
        let file = File::open(zip).with_context(|| format!("cannot read {}", zip.display()))?;
        let mut archive = ZipArchive::new(file)
            .with_context(|| format!("{} is not a zip archive", zip.display()))?;
        for entry in &self.entries {
            let path = archive
                .file_names()
                .find(|path| path.rsplit('/').next() == Some(&entry.name))
                .with_context(|| format!("{} has no file {}", zip.display(), entry.name))?
                .to_string();
            let mut bytes = Vec::new();
            archive
                .by_name(&path)
                .map_err(anyhow::Error::from)
                .and_then(|file| Ok(file.take(entry.bytes + 1).read_to_end(&mut bytes)?))
                .with_context(|| format!("cannot extract {path} from {}", zip.display()))?;
            let found = sha256_hex(&bytes);
            if found != entry.sha256 {
                bail!("{path} has sha256 {found}, expected {}", entry.sha256);
            }
            write_atomic(&dir.join(&entry.name), |out| Ok(out.write_all(&bytes)?))?;
        }
        Ok(())
    }
}

impl Entry {
    /// Whether the extracted file is there whole. The corpus checks its hash when it reads it.
    fn is_at(&self, dir: &Path) -> bool {
        fs::metadata(dir.join(&self.name)).is_ok_and(|data| data.len() == self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Cursor, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::{Duration, Instant};

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn hub(endpoint: String, dir: &Path) -> Hub {
        Hub {
            endpoint,
            hub_cache: dir.join("hub"),
            extracted: dir.join("extracted"),
            patience: Duration::from_millis(500),
            offline: false,
        }
    }

    fn archive(text: &str) -> (Archive, Vec<u8>) {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("some/folder/wiki.train.raw", SimpleFileOptions::default())
            .unwrap();
        zip.write_all(text.as_bytes()).unwrap();
        let bytes = zip.finish().unwrap().into_inner();
        let entry = Entry {
            name: "wiki.train.raw".into(),
            bytes: text.len() as u64,
            sha256: sha256_hex(text.as_bytes()),
        };
        let archive = Archive {
            repo: "someone/corpora".into(),
            file: "small.zip".into(),
            sha256: sha256_hex(&bytes),
            entries: vec![entry],
        };
        (archive, bytes)
    }

    /// Answers as the hub does: ranges, an etag and a commit.
    fn serve(body: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &body);
            }
        });
        format!("http://{address}")
    }

    fn answer(mut stream: TcpStream, body: &[u8]) {
        let mut lines = BufReader::new(stream.try_clone().unwrap())
            .lines()
            .map(Result::unwrap);
        let request = lines.next().unwrap();
        assert!(
            request.starts_with("GET /datasets/someone/corpora/resolve/main/small.zip "),
            "{request}"
        );
        let range = lines
            .take_while(|line| !line.is_empty())
            .find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("range: bytes=")
                    .map(String::from)
            })
            .unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let first: usize = first.parse().unwrap();
        let end = last.parse().map_or(body.len(), |last: usize| last + 1);
        let part = &body[first..end];
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nETag: \"tag\"\r\nX-Repo-Commit: c0ffee\r\n\
             Content-Range: bytes {first}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            end - 1,
            body.len(),
            part.len()
        )
        .unwrap();
        stream.write_all(part).unwrap();
    }

    #[test]
    fn a_download_is_extracted_once_and_then_read_from_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, bytes) = archive("the text of the split\n");
        let found = archive.obtain(&hub(serve(bytes), dir.path())).unwrap();
        let path = found.join("wiki.train.raw");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "the text of the split\n"
        );

        let gone = Hub {
            offline: true,
            ..hub("http://127.0.0.1:9".into(), dir.path())
        };
        assert_eq!(archive.obtain(&gone).unwrap(), found);
        fs::remove_file(&path).unwrap();
        archive
            .obtain(&gone)
            .expect("the zip is still in the hub cache");
        assert!(path.is_file());
    }

    #[test]
    fn bytes_that_are_not_the_pinned_ones_are_refused_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, bytes) = archive("pinned\n");
        let (_, other) = self::archive("something else\n");
        let error = archive
            .obtain(&hub(serve(other), dir.path()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expected") && error.contains("try again"),
            "{error}"
        );
        archive
            .obtain(&hub(serve(bytes), dir.path()))
            .expect("the bad copy is gone");
    }

    /// Long enough for any machine, and far from for ever.
    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn a_silent_hub_is_given_up_within_the_patience() {
        let dir = tempfile::tempdir().unwrap();
        // Connections are accepted by the kernel and never answered.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = hub(
            format!("http://{}", listener.local_addr().unwrap()),
            dir.path(),
        );
        let start = Instant::now();
        let error = archive("text").0.obtain(&hub).unwrap_err().to_string();
        assert!(error.contains("stayed silent"), "{error}");
        assert!(start.elapsed() < SOON);
    }

    #[test]
    fn a_name_that_does_not_resolve_is_given_up_too() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        // RFC 2606 reserves `.invalid`: no resolver knows it, and one may take its time to say so.
        let hub = hub("https://hub.invalid".into(), dir.path());
        let error = archive("text").0.obtain(&hub).unwrap_err();
        assert!(format!("{error:#}").contains("hub.invalid"), "{error:#}");
        assert!(start.elapsed() < SOON);
    }

    #[test]
    fn offline_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub {
            offline: true,
            ..hub("https://hub.invalid".into(), dir.path())
        };
        let error = archive("text").0.obtain(&hub).unwrap_err().to_string();
        assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    }
}
