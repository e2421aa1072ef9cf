//! Models by name, from a hub on this machine.
#![cfg(feature = "flex")]
#![recursion_limit = "256"]

mod server;

use std::fs;
use std::path::Path;
use std::time::Duration;

use burn::tensor::Device;
use mamba_core::{LanguageModelConfig, checkpoint};
use mamba_train::hub::{Hub, ModelName};
use mamba_train::load::load_pretrained;
use server::{COMMIT, Models, Mood, Server, files_below, tiny_model};

const NAME: &str = "someone/tiny-mamba";
const WEIGHTS: &str = "model.safetensors";

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

fn tiny() -> LanguageModelConfig {
    LanguageModelConfig::new()
        .with_vocab_size(16)
        .with_d_model(8)
}

fn models() -> Models {
    [(NAME.to_owned(), tiny_model(&tiny()))].into()
}

fn hub(endpoint: &str, folder: &Path) -> Hub {
    Hub {
        endpoint: endpoint.into(),
        hub_cache: folder.join("hub"),
        extracted: folder.join("extracted"),
        patience: Duration::from_secs(5),
        offline: false,
    }
}

/// One line, whatever went wrong.
fn message(error: &anyhow::Error) -> String {
    let message = format!("{error:#}");
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn a_model_is_fetched_once_and_then_read_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let mut models = models();
    let ends = br#"{"eos_token_id": [3, 4]}"#;
    let files = models.get_mut(NAME).unwrap();
    files.insert("generation_config.json".into(), ends.to_vec());
    let server = Server::start(models);
    let hub = hub(&server.endpoint, folder.path());
    let found = hub.model(&name(NAME)).unwrap();
    assert_eq!(checkpoint::read_end_tokens(&found).unwrap(), [3, 4]);

    // As Hugging Face's own programs lay it out.
    let home = hub.hub_cache.join("models--someone--tiny-mamba");
    assert_eq!(found, home.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(home.join("refs/main")).unwrap(), COMMIT);
    assert!(!home.join(".incoming").exists());
    #[cfg(unix)]
    {
        let link = fs::read_link(found.join(WEIGHTS)).unwrap();
        assert!(link.starts_with("../../blobs"), "{}", link.display());
        assert_eq!(link.file_name().unwrap().len(), 64);
    }
    let run = load_pretrained(&found, None, &Device::flex()).unwrap();
    assert_eq!(run.model.vocab_size(), 16);

    let requests = server.requests.lock().unwrap().len();
    assert_eq!(hub.model(&name(NAME)).unwrap(), found);
    assert_eq!(server.requests.lock().unwrap().len(), requests);
    let offline = Hub {
        offline: true,
        endpoint: "http://127.0.0.1:9".into(),
        ..hub
    };
    assert_eq!(offline.model(&name(NAME)).unwrap(), found);
    // Who fetches a commit by its own name leaves no word of `main`.
    fs::remove_file(home.join("refs/main")).unwrap();
    assert_eq!(offline.model(&name(NAME)).unwrap(), found);
}

#[test]
fn an_interrupted_download_goes_on_where_it_broke_off() {
    let folder = tempfile::tempdir().unwrap();
    let models = models();
    let weights = models[NAME][WEIGHTS].clone();
    let server = Server::start(models);
    let hub = hub(&server.endpoint, folder.path());
    server.feels(Mood::BreaksOffAfter(1000));
    let error = message(&hub.model(&name(NAME)).unwrap_err());
    assert!(
        error.contains("model.safetensors") && error.contains("the same command again continues"),
        "{error}"
    );
    let home = hub.hub_cache.join("models--someone--tiny-mamba");
    let snapshot = home.join("snapshots").join(COMMIT);
    assert!(snapshot.join("config.json").is_file());
    assert!(
        fs::symlink_metadata(snapshot.join(WEIGHTS)).is_err(),
        "half a file has its name"
    );
    let parts = files_below(&home.join(".incoming"));
    assert!(
        parts
            .iter()
            .any(|(name, size)| name.ends_with(".part") && *size == 1000),
        "{parts:?}"
    );

    let found = hub.model(&name(NAME)).unwrap();
    assert_eq!(server.ranges(WEIGHTS), ["0-", "1000-"]);
    assert_eq!(fs::read(found.join(WEIGHTS)).unwrap(), weights);
}

#[test]
fn a_download_that_was_only_not_put_in_its_place_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let models = models();
    let weights = models[NAME][WEIGHTS].clone();
    let server = Server::start(models);
    let hub = hub(&server.endpoint, folder.path());
    server.feels(Mood::BreaksOffAfter(1000));
    hub.model(&name(NAME)).unwrap_err();
    let blobs = hub
        .hub_cache
        .join("models--someone--tiny-mamba/.incoming/models--someone--tiny-mamba/blobs");
    let part = fs::read_dir(blobs)
        .unwrap()
        .map(|it| it.unwrap().path())
        .find(|it| it.extension().is_some_and(|it| it == "part"));
    fs::write(part.unwrap(), &weights).unwrap();
    let found = hub.model(&name(NAME)).unwrap();
    assert_eq!(server.ranges(WEIGHTS), ["0-"]);
    assert_eq!(fs::read(found.join(WEIGHTS)).unwrap(), weights);
}

#[test]
fn damaged_bytes_are_refused_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(models());
    let hub = hub(&server.endpoint, folder.path());
    let snapshot = hub
        .hub_cache
        .join("models--someone--tiny-mamba/snapshots")
        .join(COMMIT);

    server.feels(Mood::Lies);
    let error = message(&hub.model(&name(NAME)).unwrap_err());
    assert!(
        error.contains("damaged") && error.contains("sha256") && error.contains("try again"),
        "{error}"
    );
    assert!(fs::symlink_metadata(snapshot.join(WEIGHTS)).is_err());

    // A hub, or something before it, that takes no notice of ranges.
    server.feels(Mood::BreaksOffAfter(1000));
    hub.model(&name(NAME)).unwrap_err();
    server.feels(Mood::IgnoresRanges);
    let error = message(&hub.model(&name(NAME)).unwrap_err());
    assert!(
        error.contains("damaged") && error.contains("bytes"),
        "{error}"
    );
    assert!(fs::symlink_metadata(snapshot.join(WEIGHTS)).is_err());

    hub.model(&name(NAME)).expect("nothing bad is left");
}

#[test]
fn shards_are_fetched_and_only_those_that_are_absent() {
    let mut files = tiny_model(&tiny());
    let whole = files.remove(WEIGHTS).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let mut map = serde_json::Map::new();
    for (number, half) in [(1, true), (2, false)] {
        let shard = format!("model-0000{number}-of-00002.safetensors");
        let half: Vec<_> = tensors
            .iter()
            .filter(|(name, _)| name.contains("layers") == half)
            .collect();
        for (name, _) in &half {
            map.insert((*name).into(), shard.clone().into());
        }
        files.insert(shard, safetensors::serialize(half, None).unwrap());
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    files.insert("model.safetensors.index.json".into(), index.into_bytes());

    let folder = tempfile::tempdir().unwrap();
    let server = Server::start([(NAME.to_owned(), files)].into());
    let hub = hub(&server.endpoint, folder.path());
    let found = hub.model(&name(NAME)).unwrap();
    checkpoint::load(&found, &Device::flex()).unwrap();

    let second = "model-00002-of-00002.safetensors";
    fs::remove_file(fs::canonicalize(found.join(second)).unwrap()).unwrap();
    assert_eq!(hub.model(&name(NAME)).unwrap(), found);
    assert_eq!(server.ranges("model-00001-of-00002.safetensors").len(), 1);
    assert_eq!(server.ranges(second).len(), 2);
    checkpoint::load(&found, &Device::flex()).unwrap();
}

#[test]
fn a_model_of_another_kind_is_refused_before_its_weights_come() {
    let mut files = tiny_model(&tiny());
    files.insert("config.json".into(), br#"{"model_type": "rwkv"}"#.to_vec());
    let bare = [("README.md".to_owned(), b"nothing".to_vec())].into();
    let folder = tempfile::tempdir().unwrap();
    let models = [(NAME.to_owned(), files), ("someone/bare".to_owned(), bare)];
    let server = Server::start(models.into());
    let hub = hub(&server.endpoint, folder.path());
    let error = message(&hub.model(&name(NAME)).unwrap_err());
    assert!(
        error.contains("model_type = rwkv is not supported"),
        "{error}"
    );
    assert!(server.ranges(WEIGHTS).is_empty());
    let error = message(&hub.model(&name("someone/bare")).unwrap_err());
    assert!(error.contains("has no config.json"), "{error}");
}

#[test]
fn what_cannot_be_had_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(models());
    let here = hub(&server.endpoint, folder.path());
    for unknown in ["someone/else", "someone/secret"] {
        let error = message(&here.model(&name(unknown)).unwrap_err());
        assert!(
            error.contains(unknown) && error.contains("no public model of that name"),
            "{error}"
        );
    }
    let error = message(
        &hub("http://127.0.0.1:9", folder.path())
            .model(&name(NAME))
            .unwrap_err(),
    );
    assert!(
        error.contains("cannot be reached") && error.contains("give the path of a folder"),
        "{error}"
    );
    let offline = Hub {
        offline: true,
        ..here
    };
    let error = message(&offline.model(&name(NAME)).unwrap_err());
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
}
