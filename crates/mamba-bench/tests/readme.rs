//! What the README shows is what `artifacts/bench` holds.

use std::fs;
use std::path::Path;

#[test]
fn the_readme_shows_the_measured_results() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (path, expected) in mamba_bench::readme::files(&root).unwrap() {
        let found = fs::read_to_string(root.join(path)).unwrap_or_default();
        assert!(
            found == expected,
            "{path} is not what artifacts/bench says: cargo run --release -p mamba-bench --example readme"
        );
    }
}
