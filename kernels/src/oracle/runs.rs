/// For each position of one sequence, where its run begins.
///
/// A run is a maximal stretch of equal `seq_idx`: one document of a packed sequence. An index that
/// returns after another one begins a run of its own. Without `seq_idx` the sequence is one run.
pub(super) fn run_starts(seq_idx: Option<&[i64]>, seq_len: usize) -> Vec<usize> {
    let Some(seq_idx) = seq_idx else {
        return vec![0; seq_len];
    };
    let mut start = 0;
    (0..seq_len)
        .map(|t| {
            if t > 0 && seq_idx[t] != seq_idx[t - 1] {
                start = t;
            }
            start
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_indices_there_is_one_run() {
        assert_eq!(run_starts(None, 3), [0, 0, 0]);
    }

    #[test]
    fn an_index_that_returns_begins_its_own_run() {
        assert_eq!(run_starts(Some(&[4, 4, 7, 4, 4]), 5), [0, 0, 2, 3, 3]);
    }
}
