//! The fixtures themselves: numbers that can expose a bug.

use std::collections::HashSet;

use mamba_tests::fixtures::{self, Fixture};

#[test]
fn all_floats_are_finite() {
    for name in fixtures::names("") {
        let fixture = Fixture::load(&name);
        for key in fixture.float_names() {
            let values = &fixture.floats(key).values;
            assert!(
                values.iter().all(|value| value.is_finite()),
                "{name}: {key}"
            );
        }
    }
}

#[test]
fn no_tensor_is_constant() {
    for name in fixtures::names("") {
        let fixture = Fixture::load(&name);
        for key in fixture.float_names() {
            let values = &fixture.floats(key).values;
            let distinct: HashSet<u32> = values.iter().map(|value| value.to_bits()).collect();
            // Entries that a loss cannot reach have gradients of zero: rows of tokens that do not
            // occur, positions past the sequence, states before a reset.
            assert!(
                values.len() < 2 || distinct.len() > values.len() / 4,
                "{name}: {key} has {} distinct values among {}",
                distinct.len(),
                values.len()
            );
        }
    }
}

#[test]
fn every_operation_and_model_has_its_cases() {
    let expected = [
        ("selective_scan_", 7),
        ("ssd_", 6),
        ("causal_conv1d_", 8),
        ("linear_cross_entropy_", 2),
        ("mamba1_block_", 3),
        ("mamba2_block_", 5),
        ("mamba1_lm", 1),
        ("mamba2_lm", 1),
        ("gpt2_lm", 1),
        ("llama_lm", 1),
        ("parity_", 13),
    ];
    for (prefix, cases) in expected {
        assert_eq!(fixtures::names(prefix).len(), cases, "{prefix}");
    }
    // Nothing is there that is not counted above.
    let all = expected.iter().map(|(_, cases)| cases).sum::<usize>();
    assert_eq!(fixtures::names("").len(), all);
    for original in ["mamba1_original", "mamba2_original"] {
        for file in ["config.json", "pytorch_model.bin"] {
            let file = fixtures::folder().join(original).join(file);
            assert!(file.is_file(), "{}", file.display());
        }
    }
}
