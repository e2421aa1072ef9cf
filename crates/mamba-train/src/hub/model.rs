//! Models by their name on the hub, such as `state-spaces/mamba-130m`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::ApiError;
use hf_hub::{Cache, Repo};
use mamba_core::{LanguageModelConfig, MixerKind, checkpoint};

use super::Hub;
use super::checked::{Incoming, folder, snapshot};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// What is fetched besides, of models that have it.
const OPTIONAL: [&str; 2] = ["generation_config.json", TOKENIZER];
/// Who shares the tokenizer that Mamba and Mamba-2 were trained with.
const GPT_NEOX: &str = "EleutherAI/gpt-neox-20b";

/// `owner/name`, each of letters, digits, `-`, `_` and `.`, and beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName(String);

impl ModelName {
    /// The name in `text`, if it looks like one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_part = |part: &str| {
            let plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
            part.starts_with(|it: char| it.is_ascii_alphanumeric())
                && part.len() <= 96
                && part.chars().all(plain)
        };
        let (owner, name) = text.split_once('/')?;
        (is_part(owner) && is_part(name)).then(|| Self(text.into()))
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder of a model that is given by its path or its name on the hub. What is no name goes through as it is.
///
/// # Errors
///
/// If it is a name and the model is neither cached nor to be had from the hub of the environment.
pub fn resolve(path: &Path) -> Result<Cow<'_, Path>> {
    let name = path.to_str().and_then(ModelName::parse);
    match name {
        Some(name) if !path.exists() => Ok(Hub::from_env().model(&name)?.into()),
        _ => Ok(path.into()),
    }
}

/// Whether a model is one of Mamba's and Mamba-2's authors', who share the vocabulary of GPT-NeoX and no tokenizer.
pub fn is_gpt_neox_vocabulary(config: &LanguageModelConfig) -> bool {
    let recurrent = |kind: &MixerKind| matches!(kind, MixerKind::Mamba1 | MixerKind::Mamba2);
    config.pattern.iter().all(recurrent) && (50_277..=50_288).contains(&config.vocab_size)
}

impl Hub {
    /// The folder of a model with `config.json`, weights and, where the model has them, `tokenizer.json` and `generation_config.json`: of the
    /// cache, where it is whole, else fetched. Nothing asks whether the hub has a newer version.
    ///
    /// # Errors
    ///
    /// If the model is not cached and the hub cannot be reached, does not have it, or sends something else than it announces;
    /// if it is a model that `mamba_core::checkpoint` does not read, which is found out before its weights are fetched.
    pub fn model(&self, name: &ModelName) -> Result<PathBuf> {
        if let Some(folder) = self.cached(name, is_whole) {
            return Ok(folder);
        }
        let info = self.describe(name)?;
        let files: BTreeSet<&str> = info
            .siblings
            .iter()
            .map(|it| it.rfilename.as_str())
            .collect();
        let incoming = Incoming::new(self, name, info.sha.clone());
        if !files.contains(CONFIG) {
            bail!("{name} has no {CONFIG}: it is no language model that is read here");
        }
        incoming.fetch(CONFIG)?;
        let folder = snapshot(self, name, &info.sha);
        checkpoint::read_config(&folder).with_context(|| format!("cannot use {name}"))?;
        for file in OPTIONAL.into_iter().filter(|file| files.contains(file)) {
            incoming.fetch(file)?;
        }
        let weights = checkpoint::weights_file(|file| files.contains(file))
            .with_context(|| format!("{name} has no weights of a form that is read here"))?;
        incoming.fetch(weights)?;
        for shard in checkpoint::shards(&folder)? {
            incoming.fetch(&shard)?;
        }
        incoming.finish()?;
        Ok(folder)
    }

    /// The `tokenizer.json` of GPT-NeoX, with which Mamba and Mamba-2 were trained: cached or fetched.
    ///
    /// # Errors
    ///
    /// If it is not cached and cannot be fetched.
    pub fn gpt_neox_tokenizer(&self) -> Result<PathBuf> {
        let name = ModelName(GPT_NEOX.into());
        let has_tokenizer = |folder: &Path| folder.join(TOKENIZER).is_file();
        if let Some(folder) = self.cached(&name, has_tokenizer) {
            return Ok(folder.join(TOKENIZER));
        }
        let incoming = Incoming::new(self, &name, self.describe(&name)?.sha);
        let path = incoming.fetch(TOKENIZER)?;
        incoming.finish()?;
        Ok(path)
    }

    /// A snapshot in the cache that holds what is needed, that of the branch `main` first.
    fn cached(&self, name: &ModelName, holds: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let main = fs::read_to_string(folder(self, name).join("refs").join("main")).ok();
        let main = main.map(|commit| snapshot(self, name, commit.trim()));
        let others = fs::read_dir(folder(self, name).join("snapshots"));
        let others = others.into_iter().flatten().flatten().map(|it| it.path());
        main.into_iter().chain(others).find(|folder| holds(folder))
    }

    /// The newest commit of a model and the names of its files.
    fn describe(&self, name: &ModelName) -> Result<RepoInfo> {
        let (endpoint, cache) = (&self.endpoint, self.hub_cache.display());
        let unknown = format!("{name} is no run and no folder, and not in the hub cache ({cache})");
        if self.offline {
            bail!("{unknown}; HF_HUB_OFFLINE forbids to fetch it: unset it, or give a folder");
        }
        let api = self.api(Cache::new(self.hub_cache.clone()))?;
        let repo = api.repo(Repo::model(name.to_string()));
        let failed = |reason: String| {
            anyhow!(
                "{unknown}; {endpoint} cannot be reached to fetch it ({reason}): give the path of a folder, or connect"
            )
        };
        match self.watched(&name.0, move |_| repo.info()) {
            Ok(Ok(info)) if is_commit(&info.sha) => Ok(info),
            Ok(Ok(info)) => Err(failed(format!("it names a commit {:?}", info.sha))),
            // The hub says "unauthorised" of what it does not have.
            Ok(Err(error)) if matches!(status(&error), Some(401 | 403 | 404)) => {
                bail!("{unknown}; {endpoint} has no public model of that name")
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(error) => Err(failed(format!("{error:#}"))),
        }
    }
}

/// Whether a folder has all that a model needs, but perhaps a tokenizer.
fn is_whole(folder: &Path) -> bool {
    let has = |file: &str| folder.join(file).is_file();
    let shards = checkpoint::shards(folder);
    has(CONFIG)
        && checkpoint::weights_file(has).is_some()
        && shards.is_ok_and(|shards| shards.iter().all(|shard| has(shard)))
}

/// Whether a commit can be the name of a folder.
fn is_commit(sha: &str) -> bool {
    !sha.is_empty() && sha.bytes().all(|it| it.is_ascii_alphanumeric())
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for name in [
            "state-spaces/mamba-130m",
            "openai-community/gpt2",
            "mistralai/Mamba-Codestral-7B-v0.1",
            "a/b_c",
        ] {
            assert_eq!(ModelName::parse(name).unwrap().to_string(), name);
        }
        for path in [
            "gpt2", "a/b/c", "./model", "../model", "/model", "a/", "/b", "a/.b", "a b/c", "~/m",
        ] {
            assert_eq!(ModelName::parse(path), None, "{path}");
        }
    }
}
