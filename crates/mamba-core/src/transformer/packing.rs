use burn::tensor::{Bool, Int, Tensor};

/// Several sequences laid end to end in one row, told apart by the runs of equal `seq_idx`.
pub(super) struct Packing {
    /// `true` where query and key lie in different runs, `[batch, 1, seq_len, seq_len]`.
    pub other_run: Tensor<4, Bool>,
    /// Distance from the start of the own run, `[batch, seq_len]`.
    pub positions: Tensor<2, Int>,
}

impl Packing {
    /// `seq_idx`: `[batch, seq_len]`. A value that comes back after another one is a run of its own.
    pub fn new(seq_idx: Tensor<2, Int>) -> Self {
        let [batch, seq_len] = seq_idx.dims();
        let device = seq_idx.device();

        // The first token meets the row's last one here. Whether that counts as a boundary is of no
        // consequence: it shifts all run numbers alike, and its index is 0.
        let boundary = seq_idx.clone().not_equal(seq_idx.roll_dim(1, 1)).int();
        let index = Tensor::<1, Int>::arange(0..seq_len as i64, &device).unsqueeze::<2>();
        let run_start = (boundary.clone() * index.clone()).cummax(1);
        let run = boundary.cumsum(1);

        Self {
            other_run: run
                .clone()
                .reshape([batch, 1, seq_len, 1])
                .not_equal(run.reshape([batch, 1, 1, seq_len])),
            positions: index - run_start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn positions_restart_and_only_contiguous_runs_see_each_other() {
        let device = Device::flex();
        let seq_idx = Tensor::from_ints([[3, 3, 5, 5, 5, 3], [0, 0, 0, 0, 0, 0]], &device);
        let packing = Packing::new(seq_idx);

        packing
            .positions
            .to_data()
            .assert_eq(&[[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]].into(), false);

        let runs = [[0, 0, 1, 1, 1, 2], [0; 6]];
        let expected: Vec<bool> = runs
            .iter()
            .flat_map(|run| {
                run.iter()
                    .flat_map(move |q| run.iter().map(move |k| q != k))
            })
            .collect();
        let other_run: Vec<bool> = packing.other_run.to_data().iter::<bool>().collect();
        assert_eq!(other_run, expected);
    }

    #[test]
    fn a_single_token_is_one_run() {
        let packing = Packing::new(Tensor::from_ints([[4], [2]], &Device::flex()));
        packing
            .positions
            .to_data()
            .assert_eq(&[[0], [0]].into(), false);
    }
}
