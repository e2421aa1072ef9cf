//! `mamba-lab bench` as users meet it.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use tempfile::TempDir;

fn bench(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("mamba-lab").unwrap();
    command
        .arg("bench")
        .args(arguments)
        .current_dir(folder)
        .env("RUST_BACKTRACE", "0");
    command
}

/// The shortest run there is.
const SHORT: [&str; 6] = [
    "--quick",
    "--device",
    "flex",
    "--lengths",
    "16,32",
    "--filter",
];

#[test]
fn a_suite_leaves_files_a_table_and_a_plot() {
    let folder = TempDir::new().unwrap();
    bench(folder.path(), &["scaling"])
        .args(SHORT)
        .args(["mamba1,transformer", "--out", "out"])
        .assert()
        .success()
        .stdout(
            contains("proved: scan on flex equals loops in f64")
                .and(contains("as fast at length"))
                .and(contains("Everything is in out")),
        )
        .stderr(contains("left] mamba1 at length 16"));
    let read = |name: &str| fs::read_to_string(folder.path().join("out").join(name)).unwrap();
    let rows = |text: &str| {
        text.lines()
            .filter(|line| line.contains("\"rounds_ms\""))
            .count()
    };
    assert_eq!(
        (rows(&read("results.jsonl")), rows(&read("results.json"))),
        (4, 4)
    );
    assert_eq!(read("results.csv").lines().count(), 5);
    let head: serde_json::Value =
        serde_json::from_str(read("results.jsonl").lines().next().unwrap()).unwrap();
    for field in [
        "cpu", "cores", "device", "features", "date", "command", "load",
    ] {
        assert!(!head[field].is_null(), "{field} of {head}");
    }
    let plot = read("scaling.svg");
    assert!(plot.contains("prefers-color-scheme: dark") && plot.contains("transformer"));

    // The same again goes elsewhere, or nowhere.
    bench(folder.path(), &["scaling"])
        .args(SHORT)
        .args(["mamba1", "--out", "out"])
        .assert()
        .code(1)
        .stderr(contains("not empty").and(contains("--out")));

    bench(
        folder.path(),
        &["compare", "out", "out/results.jsonl", "--fail-above", "10%"],
    )
    .assert()
    .success()
    .stdout(contains("mamba1").and(contains("1.000 +-")));
    // Ten times slower, and sure of it.
    let mut slower: serde_json::Value = serde_json::from_str(&read("results.json")).unwrap();
    for row in slower["rows"].as_array_mut().unwrap() {
        for field in ["median_ms", "q1_ms", "q3_ms"] {
            row["time"][field] = (10.0 * row["time"]["median_ms"].as_f64().unwrap()).into();
        }
    }
    fs::write(folder.path().join("slower.json"), slower.to_string()).unwrap();
    let compare = ["compare", "out", "slower.json"];
    bench(folder.path(), &compare)
        .assert()
        .success()
        .stdout(contains("slower"));
    bench(folder.path(), &compare)
        .args(["--fail-above", "10%"])
        .assert()
        .code(1)
        .stderr(contains("4 of 4 got slower by more than 10 %"));
}

#[test]
fn several_suites_share_a_process_and_have_a_folder_each() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let results = |suite: &str| -> serde_json::Value {
        let text = fs::read_to_string(out.join(suite).join("results.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    // Nothing of kernels is called mamba1.
    bench(folder.path(), &["scaling:16,32", "kernels", "decode:1x16"])
        .args(["--quick", "--device", "flex", "--rounds", "3"])
        .args(["--filter", "mamba1", "--out", "out"])
        .assert()
        .success()
        .stdout(
            contains("== decode (3 of 3)")
                .and(contains("kernels").and(contains("--filter mamba1 leaves nothing")))
                .and(contains(format!(
                    "Everything is in {}",
                    Path::new("out/decode").display()
                ))),
        )
        .stderr(contains("left] decode: mamba1-small, 1 x 16"));
    let sizes = |suite: &str| -> Vec<u64> {
        let results = results(suite);
        let rows = results["rows"].as_array().unwrap().iter();
        rows.map(|row| row["length"].as_u64().unwrap()).collect()
    };
    assert_eq!(
        (sizes("scaling"), sizes("decode")),
        (vec![16, 32], vec![16])
    );
    // Proved once, and written where it counts.
    let [scaling, decode] = ["scaling", "decode"].map(|suite| results(suite)["proofs"].clone());
    assert_eq!(scaling, decode);
    assert_eq!(scaling.as_array().unwrap().len(), 4);
    assert!(out.join("scaling/scaling.svg").is_file() && out.join("decode/decode.svg").is_file());

    // They go on in the same folder, for nothing is overwritten; what time does not allow is named.
    bench(folder.path(), &["scaling", "decode"])
        .args(["--quick", "--device", "flex", "--out", "out", "--time-limit", "1"])
        .assert()
        .success()
        .stdout(
            contains("Not measured: every problem by mamba-lab on flex: the 1 s of --time-limit are over")
                .and(contains("The 1 s of --time-limit were over before the end")),
        );
    let absent = &results("decode-2")["absent"][0];
    assert_eq!(absent["reason"], "the 1 s of --time-limit are over");
    assert!(
        !results("scaling-2")["absent"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn memory_is_measured_in_processes_of_its_own() {
    let folder = TempDir::new().unwrap();
    bench(folder.path(), &["memory"])
        .args(["--quick", "--device", "flex", "--lengths", "64,128"])
        .args(["--filter", "mamba1,gpt2", "--out", "out"])
        .assert()
        .success();
    let text = fs::read_to_string(folder.path().join("out/results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&text).unwrap();
    let state = |index: usize| {
        results["rows"][index]["figures"]["state_mib"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(state(0), state(1), "Mamba's state is of one size");
    assert_eq!(2.0 * state(2), state(3), "a key-value cache grows");
    if cfg!(target_os = "linux") {
        // An embedding of 8,192 rows of 256 numbers is 8 MiB, all of it less than twice that.
        let weights = results["rows"][0]["figures"]["weights_mib"]
            .as_f64()
            .unwrap();
        assert!((8.0..20.0).contains(&weights), "{weights} MiB");
    }
}

#[cfg(unix)]
#[test]
fn a_peer_that_is_missing_or_fails_is_told_and_the_run_goes_on() {
    use std::os::unix::fs::PermissionsExt;

    let folder = TempDir::new().unwrap();
    let python = folder.path().join("python");
    let lines = [
        "#!/bin/sh",
        "while read -r line; do case $line in",
        "*offers*) echo '{\"engines\": [{\"engine\": \"one\", \"missing\": \"no module one\"}, \
         {\"engine\": \"two\", \"missing\": null}]}' ;;",
        "*compute*) echo '{\"error\": \"RuntimeError: broken\"}' ;;",
        "*) echo '{}' ;;",
        "esac; done",
    ];
    fs::write(&python, lines.join("\n")).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let kernels = |out: &str, python: &str| {
        bench(folder.path(), &["kernels", "--quick", "--device", "flex"])
            .args(["--lengths", "16", "--filter", "conv", "--rounds", "3"])
            .args(["--out", out, "--peers", "--python", python])
            .assert()
            .success()
    };
    kernels("first", python.to_str().unwrap()).stdout(
        contains("conv by one on flex at length 16: no module one")
            .and(contains(
                "conv by two on flex at length 16: RuntimeError: broken",
            ))
            .and(contains("Everything is in first")),
    );
    kernels("second", "false").stdout(contains("every problem by python on flex: Python stopped"));
    kernels("third", "/no/python").stdout(contains("--python"));
    bench(folder.path(), &["compare", "first", "second"])
        .assert()
        .success();
}

#[cfg(unix)]
#[test]
fn a_peer_is_started_once_for_several_suites() {
    use std::os::unix::fs::PermissionsExt;

    let folder = TempDir::new().unwrap();
    let python = folder.path().join("python");
    let lines = [
        "#!/bin/sh",
        "echo started >> started",
        "while read -r line; do case $line in",
        "*hello*) echo '{\"torch\": \"2\", \"transformers\": \"5\"}' ;;",
        "*) echo '{\"error\": \"ValueError: no weights\"}' ;;",
        "esac; done",
    ];
    fs::write(&python, lines.join("\n")).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    bench(folder.path(), &["scaling:16", "memory:16", "decode:1x16"])
        .args(["--quick", "--device", "flex", "--rounds", "3"])
        .args(["--filter", "mamba1", "--out", "out", "--peers"])
        .arg("--python")
        .arg(&python)
        .assert()
        .success()
        .stdout(contains("peers have no part in this suite"));
    let started = fs::read_to_string(folder.path().join("started")).unwrap();
    assert_eq!(started, "started\n");
    for (suite, peers) in [("scaling", 1), ("memory", 0), ("decode", 1)] {
        let text = fs::read_to_string(folder.path().join("out").join(suite).join("table.txt"));
        let text = text.unwrap();
        assert_eq!(
            text.matches("beside PyTorch 2, transformers 5").count(),
            peers
        );
        assert_eq!(
            text.matches("ValueError: no weights").count(),
            peers,
            "{text}"
        );
    }
}

#[test]
fn bad_input_is_refused_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "mine").unwrap();
    let refused = |arguments: &[&str], message: &str| {
        bench(folder.path(), arguments).assert().code(1).stderr(
            contains("Error: ")
                .and(contains(message))
                .and(contains("panicked").not()),
        );
    };
    refused(&["speed"], "unknown suite `speed`: there are scaling,");
    refused(&[], "which suite?");
    refused(&["decode", "prefill:long"], "prefill:1x128,1024");
    refused(
        &["scaling", "--device", "abacus"],
        "unknown device `abacus`",
    );
    refused(
        &["scaling", "--device", "flex", "--out", "file/out"],
        "choose a folder with --out",
    );
    refused(
        &["scaling", "decode", "--device", "flex", "--out", "file/out"],
        "Error: cannot make file/out",
    );
    refused(
        &[
            "scaling", "--device", "flex", "--filter", "rnn", "--out", "empty",
        ],
        "there are mamba1, mamba2, transformer",
    );
    assert!(!folder.path().join("empty").exists());
    refused(
        &["kernels", "--device", "flex", "--batches", "2"],
        "--batches is for prefill, decode, train",
    );
    refused(&["memory:2x64"], "memory chooses its batches itself");
    refused(&["compare", "file", "nowhere"], "no results of bench");
    refused(&["compare", "nowhere", "file"], "nowhere");
    assert_eq!(
        fs::read_to_string(folder.path().join("file")).unwrap(),
        "mine"
    );
    for option in ["--python", "--python-path"] {
        bench(folder.path(), &["prefill", option, "here"])
            .assert()
            .code(2)
            .stderr(contains("--peers"));
    }
    bench(folder.path(), &["--help"]).assert().success().stdout(
        contains("scaling")
            .and(contains("backends"))
            .and(contains("--time-limit"))
            .and(contains("--filter")),
    );
}
