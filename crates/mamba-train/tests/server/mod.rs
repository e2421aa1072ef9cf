//! A hub on this machine: answers as the real one does, and on demand breaks off, lies or ignores what it is asked.
#![allow(dead_code)] // each of the tests that share it uses some of it

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use burn::tensor::Device;
use mamba_core::{LanguageModelConfig, checkpoint};
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "c0ffee0123456789c0ffee0123456789c0ffee01";

/// What the next request for a file of weights meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Honest,
    /// The line goes dead after this many bytes.
    BreaksOffAfter(usize),
    /// One byte is another.
    Lies,
    /// The whole file comes, whatever range was asked for.
    IgnoresRanges,
}

/// Models by name, their files by name.
pub type Models = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// Path and range of a request.
pub type Request = (String, Option<String>);

pub struct Server {
    pub endpoint: String,
    pub mood: Arc<Mutex<Mood>>,
    /// All so far.
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(models: Models) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            mood: Arc::new(Mutex::new(Mood::Honest)),
            requests: Arc::default(),
        };
        let (mood, requests) = (server.mood.clone(), server.requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away in the middle is its own affair.
                let _ = answer(stream.unwrap(), &models, &mood, &requests);
            }
        });
        server
    }

    pub fn feels(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// The ranges that were asked of a file, those of a single byte left out.
    pub fn ranges(&self, file: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let of_file = requests.iter().filter(|(path, _)| path.ends_with(file));
        let ranges = of_file.filter_map(|(_, range)| range.clone());
        ranges.filter(|range| range != "0-0").collect()
    }
}

fn answer(
    mut stream: TcpStream,
    models: &Models,
    mood: &Mutex<Mood>,
    requests: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().expect("a request")?;
    let path = request.split(' ').nth(1).expect("a path").to_owned();
    let mut range = None;
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(asked) = line.strip_prefix("range: bytes=") {
            range = Some(asked.to_owned());
        }
    }
    requests.lock().unwrap().push((path.clone(), range.clone()));

    let described = models
        .iter()
        .find(|(name, _)| path == format!("/api/models/{name}/revision/main"));
    if let Some((_, files)) = described {
        let siblings = files
            .keys()
            .map(|file| format!(r#"{{"rfilename": "{file}"}}"#));
        let siblings = siblings.collect::<Vec<_>>().join(", ");
        let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{siblings}]}}"#);
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let found = models.iter().find_map(|(name, files)| {
        let file = path.strip_prefix(&format!("/{name}/resolve/{COMMIT}/"))?;
        Some((file, files.get(file)?))
    });
    let Some((file, content)) = found else {
        let status = match path.contains("secret") {
            true => "401 Unauthorized",
            false => "404 Not Found",
        };
        return write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    };
    let (first, last) = range.as_deref().unwrap_or("0-").split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let end = last.parse().map_or(content.len(), |last: usize| last + 1);
    let is_weights = file.ends_with(".safetensors") || file.ends_with(".bin");
    let mood = match is_weights && range.as_deref() != Some("0-0") {
        true => std::mem::replace(&mut *mood.lock().unwrap(), Mood::Honest),
        false => Mood::Honest,
    };
    let hash: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // Large files go by their sha256, small ones by another hash.
    let tag = match is_weights {
        true => format!("X-Linked-Etag: \"{hash}\"\r\nETag: \"other\""),
        false => format!("ETag: W/\"{}\"", &hash[..40]),
    };
    let mut part = content[first..end].to_vec();
    let mut status = "206 Partial Content";
    let total = content.len();
    match mood {
        Mood::Lies => *part.last_mut().unwrap() ^= 1,
        Mood::IgnoresRanges => (part, status) = (content.clone(), "200 OK"),
        Mood::Honest | Mood::BreaksOffAfter(_) => {}
    }
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{tag}\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {first}-{}/{total}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        end - 1,
        part.len()
    )?;
    if let Mood::BreaksOffAfter(bytes) = mood {
        part.truncate(bytes);
    }
    stream.write_all(&part)
}

/// The files of a tiny model with random weights.
pub fn tiny_model(config: &LanguageModelConfig) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let model = config.init(&Device::flex());
    checkpoint::save(&model, config, folder.path()).unwrap();
    let read = |file: &str| (file.to_owned(), fs::read(folder.path().join(file)).unwrap());
    [read("config.json"), read("model.safetensors"), tokenizer()].into()
}

/// A `tokenizer.json` of sixteen words.
pub fn tokenizer() -> (String, Vec<u8>) {
    let words = [
        "the", "river", "runs", "to", "sea", "and", "a", "boat", "on", "it",
    ];
    let words = words.iter().map(ToString::to_string);
    let words = words
        .chain((0..5).map(|it| format!("word{it}")))
        .chain(["[UNK]".into()]);
    let vocabulary: Vec<String> = words
        .enumerate()
        .map(|(id, word)| format!(r#""{word}": {id}"#))
        .collect();
    let text = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {{"type": "Whitespace"}}, "post_processor": null, "decoder": null,
        "model": {{"type": "WordLevel", "vocab": {{{}}}, "unk_token": "[UNK]"}}}}"#,
        vocabulary.join(", ")
    );
    ("tokenizer.json".into(), text.into_bytes())
}

/// All files below a folder but links, with their sizes.
pub fn files_below(folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                found.push((name, entry.metadata().unwrap().len()));
            }
        }
    }
    found.sort();
    found
}
