//! Against the real WikiText-2: published token counts, and a second tokenizer file.
//!
//! The data comes from the folder in `MAMBA_LAB_DATA`, which holds `wikitext-2/`, or from
//! `../shared/datasets` beside the workspace. Without either, these tests say on standard error that
//! nothing was tested, and pass.

use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use mamba_train::corpus::{CorpusConfig, DatasetKind, Form, Identity, Split};
use mamba_train::encoded::EncodedCorpus;
use mamba_train::tokenizer::{Convention, Tokenizer};

/// Tokens of GPT-2 in train, valid and test.
const WHOLE_FILE: [usize; 3] = [2_448_382, 258_659, 295_877];
const ROWS: [usize; 3] = [2_422_480, 256_061, 292_943];
/// Valid and test of the raw form, as rows.
const RAW_ROWS: [usize; 2] = [247_289, 283_287];

/// A file or folder below the data folder, where it is there.
fn data(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("MAMBA_LAB_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/datasets"),
        PathBuf::from,
    );
    let path = root.join(name);
    if !path.exists() {
        let thread = std::thread::current();
        // Not by `eprintln`, which the test harness keeps to itself where a test passes.
        let _ = writeln!(
            stderr(),
            "NOT TESTED, {}: {} does not exist; set MAMBA_LAB_DATA to a folder that holds {name}",
            thread.name().unwrap_or_default(),
            path.display()
        );
        return None;
    }
    Some(path)
}

fn config(dataset: DatasetKind, dir: PathBuf) -> CorpusConfig {
    CorpusConfig {
        dataset,
        data_dir: Some(dir),
        ..Default::default()
    }
}

#[test]
fn gpt2_token_counts_are_the_published_ones() {
    let Some(dir) = data("wikitext-2") else {
        return;
    };
    let corpus = config(DatasetKind::Wikitext2, dir)
        .load(&Split::ALL, &[])
        .unwrap();
    assert_eq!(corpus.identity(), Identity::Wikitext2(Form::Tokens));
    let tokenizer = Tokenizer::gpt2().unwrap();
    for (convention, counts) in [
        (Convention::WholeFile, WHOLE_FILE),
        (Convention::Rows, ROWS),
    ] {
        for (split, count) in Split::ALL.into_iter().zip(counts) {
            let text = corpus.text(split).unwrap();
            let start = Instant::now();
            let encoded = EncodedCorpus::load_or_encode(text, &tokenizer, convention, None);
            let seconds = start.elapsed().as_secs_f32();
            println!("{split}, {convention}: encoded in {seconds:.2} s");
            assert_eq!(encoded.unwrap().len(), count, "{split}, {convention}");
        }
    }
}

#[test]
fn raw_token_counts_are_the_published_ones() {
    let Some(dir) = data("wikitext-2-raw") else {
        return;
    };
    let splits = [Split::Valid, Split::Test];
    let corpus = config(DatasetKind::Wikitext2Raw, dir)
        .load(&splits, &[])
        .unwrap();
    assert_eq!(corpus.identity(), Identity::Wikitext2(Form::Raw));
    let tokenizer = Tokenizer::gpt2().unwrap();
    for (split, count) in splits.into_iter().zip(RAW_ROWS) {
        let ids = tokenizer
            .encode_corpus(corpus.text(split).unwrap(), Convention::Rows)
            .unwrap();
        assert_eq!(ids.len(), count, "{split}");
    }
}

#[test]
fn the_carried_gpt2_is_the_published_tokenizer_file() {
    let (Some(file), Some(dir)) = (data("../tokenizers/gpt2.json"), data("wikitext-2")) else {
        return;
    };
    let published = Tokenizer::from_file(&file).unwrap();
    let carried = Tokenizer::gpt2().unwrap();
    assert_eq!(carried.vocab_size(), published.vocab_size());
    assert_eq!(carried.end_of_text(), published.end_of_text());
    let corpus = config(DatasetKind::Wikitext2, dir)
        .load(&[Split::Valid], &[])
        .unwrap();
    let text = corpus.text(Split::Valid).unwrap();
    let ids = carried.encode_corpus(text, Convention::WholeFile).unwrap();
    assert!(ids == published.encode(text).unwrap(), "the ids differ");
    assert!(
        carried.decode(&ids).unwrap() == text,
        "decoding does not give the text back"
    );
    for id in 0..carried.vocab_size() as u32 {
        assert_eq!(
            carried.decode(&[id]).unwrap(),
            published.decode(&[id]).unwrap(),
            "id {id}"
        );
    }
}

#[test]
fn gpt_neox_encodes_in_parallel_as_in_one_piece() {
    let (Some(file), Some(dir)) = (data("../tokenizers/gpt-neox-20b.json"), data("wikitext-2"))
    else {
        return;
    };
    let tokenizer = Tokenizer::from_file(&file).unwrap();
    assert_eq!(tokenizer.encode("Hello world").unwrap(), [12092, 1533]);
    let corpus = config(DatasetKind::Wikitext2, dir)
        .load(&[Split::Test], &[])
        .unwrap();
    let text = corpus.text(Split::Test).unwrap();
    let ids = tokenizer
        .encode_corpus(text, Convention::WholeFile)
        .unwrap();
    assert!(ids == tokenizer.encode(text).unwrap(), "the ids differ");
}

#[test]
fn forms_and_splits_are_not_mixed_up() {
    let (Some(tokens), Some(raw)) = (data("wikitext-2"), data("wikitext-2-raw")) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let place = |from: PathBuf, name: &str| std::fs::copy(from, dir.path().join(name)).unwrap();
    place(raw.join("wiki.valid.raw"), "valid.txt");
    place(tokens.join("test.txt"), "test.txt");
    let config = config(DatasetKind::Auto, dir.path().to_path_buf());
    let error = config
        .load(&[Split::Valid], &[Split::Test])
        .unwrap_err()
        .to_string();
    assert!(error.contains("mixes"), "{error}");
    place(tokens.join("valid.txt"), "train.txt");
    let error = config.load(&[Split::Train], &[]).unwrap_err().to_string();
    assert!(
        error.contains("holds the valid split of wikitext-2-v1"),
        "{error}"
    );
}
