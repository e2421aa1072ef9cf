//! Fetching a pinned archive from the Hugging Face hub, checked by hash, without ever hanging.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::Progress;
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo};
use indicatif::{ProgressBar, ProgressStyle};
use zip::ZipArchive;

use crate::cache::{cache_dir, sha256_hex, write_atomic};

/// How long the hub may stay silent, before the first byte and between two pieces of the body.
const PATIENCE: Duration = Duration::from_secs(8);

/// Where downloads come from and where they are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The hub's address.
    pub endpoint: String,
    /// The hub cache, shared with other programs.
    pub hub_cache: PathBuf,
    /// The folder under which extracted archives are kept, each in a folder of its own.
    pub extracted: PathBuf,
    /// The longest silence before a download is given up.
    pub patience: Duration,
    /// Whether only what is cached may be used.
    pub offline: bool,
}

impl Hub {
    /// The hub as the environment describes it: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`, and
    /// `MAMBA_LAB_CACHE` for what is extracted.
    pub fn from_env() -> Self {
        let variable = |name| {
            env::var(name)
                .ok()
                .filter(|value: &String| !value.is_empty())
        };
        // Not `Cache::from_env`, which panics for a user without a home folder.
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let home = dirs::home_dir()?;
            Some(home.join(".cache").join("huggingface"))
        });
        let hub_cache = home.unwrap_or_else(env::temp_dir).join("hub");
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".into()),
            extracted: cache_dir().unwrap_or_else(|_| hub_cache.join("mamba-lab")),
            hub_cache,
            patience: PATIENCE,
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
        }
    }

    /// The local path of a file of a dataset repository, downloaded unless it is cached.
    fn fetch(&self, repo: &str, file: &str) -> Result<PathBuf> {
        let repo = Repo::dataset(repo.into());
        let cache = Cache::new(self.hub_cache.clone());
        if let Some(path) = cache.repo(repo.clone()).get(file) {
            return Ok(path);
        }
        if self.offline {
            bail!("HF_HUB_OFFLINE is set and {file} is not in the hub cache");
        }
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(self.endpoint.clone())
            .build();
        let api = api.context("cannot set up the connection")?.repo(repo);

        // hf-hub offers no timeouts, and a silent network blocks it for minutes: it runs on a
        // thread of its own that is left behind when it stays silent too long.
        let (events, inbox) = mpsc::sync_channel(16);
        let bar = ProgressBar::hidden();
        let progress = Report {
            events: events.clone(),
            bar: bar.clone(),
        };
        let name = file.to_string();
        thread::spawn(move || {
            let result = api.download_with_progress(&name, progress);
            // The message of hf-hub's error already tells its sources. The receiver is gone where
            // the download was given up.
            let _ = events.send(Event::Done(result.map_err(|error| anyhow!("{error}"))));
        });
        loop {
            match inbox.recv_timeout(self.patience) {
                Ok(Event::Alive) => {}
                Ok(Event::Done(result)) => {
                    return result.with_context(|| format!("no {file} from {}", self.endpoint));
                }
                Err(RecvTimeoutError::Timeout) => {
                    bar.abandon();
                    let (endpoint, seconds) = (&self.endpoint, self.patience.as_secs_f32());
                    bail!("{endpoint} stayed silent for {seconds} s");
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the download of {file} broke off"),
            }
        }
    }
}

enum Event {
    Alive,
    Done(Result<PathBuf>),
}

/// Shows the download and tells the waiting thread that it goes on.
struct Report {
    events: SyncSender<Event>,
    bar: ProgressBar,
}

impl Report {
    /// Whether someone still waits. A full queue already says that bytes arrive.
    fn is_awaited(&self) -> bool {
        !matches!(
            self.events.try_send(Event::Alive),
            Err(TrySendError::Disconnected(_))
        )
    }
}

impl Progress for Report {
    fn init(&mut self, size: usize, filename: &str) {
        if !self.is_awaited() {
            return;
        }
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar
            .set_draw_target(indicatif::ProgressDrawTarget::stderr());
        self.bar.set_length(size as u64);
        self.bar.set_position(0);
        self.bar.set_message(filename.to_string());
    }

    fn update(&mut self, size: usize) {
        if self.is_awaited() {
            self.bar.inc(size as u64);
        }
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}

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
        let zip = hub.fetch(&self.repo, &self.file)?;
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
    use std::time::Instant;

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
        assert!(start.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_name_that_does_not_resolve_fails_fast() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        // RFC 2606 reserves `.invalid`: no resolver knows it.
        let hub = hub("https://hub.invalid".into(), dir.path());
        let error = archive("text").0.obtain(&hub).unwrap_err();
        assert!(format!("{error:#}").contains("hub.invalid"), "{error:#}");
        assert!(start.elapsed() < Duration::from_secs(3));
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
