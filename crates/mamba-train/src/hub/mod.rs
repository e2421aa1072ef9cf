//! The Hugging Face hub: its files in the cache that other programs share, fetched where they are not, without ever hanging.

mod checked;
mod model;
mod watch;

use std::env;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo};

use crate::cache::cache_dir;
use watch::{Event, Report};

pub use model::{ModelName, is_gpt_neox_vocabulary, resolve};

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
    /// The hub as the environment describes it: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, and
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
        let hub_cache = variable("HF_HUB_CACHE").map(PathBuf::from);
        let hub_cache = hub_cache.unwrap_or_else(|| home.unwrap_or_else(env::temp_dir).join("hub"));
        let endpoint = variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".into());
        Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            extracted: cache_dir().unwrap_or_else(|_| hub_cache.join("mamba-lab")),
            hub_cache,
            patience: PATIENCE,
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
        }
    }

    /// The local path of a file of a dataset repository, downloaded unless it is cached.
    pub(crate) fn dataset_file(&self, repo: &str, file: &str) -> Result<PathBuf> {
        let repo = Repo::dataset(repo.into());
        let cache = Cache::new(self.hub_cache.clone());
        if let Some(path) = cache.repo(repo.clone()).get(file) {
            return Ok(path);
        }
        if self.offline {
            bail!("HF_HUB_OFFLINE is set and {file} is not in the hub cache: unset it");
        }
        let (api, name) = (self.api(cache)?.repo(repo), file.to_string());
        let result = self.watched(file, move |progress| {
            api.download_with_progress(&name, progress)
        })?;
        // The message of hf-hub's error already tells its sources.
        result
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("no {file} from {}", self.endpoint))
    }

    /// A connection whose downloads go to `cache`.
    fn api(&self, cache: Cache) -> Result<Api> {
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(self.endpoint.clone())
            .with_token(Cache::new(self.hub_cache.clone()).token());
        api.build().context("cannot set up the connection")
    }

    /// Runs `work` on a thread of its own. hf-hub offers no timeouts, and a silent network blocks it for minutes: the thread
    /// is left behind when it stays silent for longer than the hub's patience.
    fn watched<T: Send + 'static>(
        &self,
        file: &str,
        work: impl FnOnce(Report) -> T + Send + 'static,
    ) -> Result<T> {
        let (events, inbox) = mpsc::sync_channel(16);
        let report = Report::new(events.clone());
        let bar = report.bar();
        thread::spawn(move || {
            // The receiver is gone where the download was given up.
            let _ = events.send(Event::Done(work(report)));
        });
        loop {
            match inbox.recv_timeout(self.patience) {
                Ok(Event::Alive) => {}
                Ok(Event::Done(result)) => return Ok(result),
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
