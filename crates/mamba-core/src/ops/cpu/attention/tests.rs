use super::{
    super::{
        simd::tests::with_each_set,
        testing::{assert_close, assert_gradient, dot, noise, widen},
    },
    *,
};

const NAMES: [&str; 3] = ["query", "key", "value"];

struct Case {
    dims: AttentionDims,
    values: [Vec<f32>; 3],
}

impl Case {
    fn new([batch, len, seen]: [usize; 3], [heads, kv_heads, dim]: [usize; 3]) -> Self {
        let dims = AttentionDims {
            batch,
            len,
            seen,
            heads,
            kv_heads,
            dim,
        };
        let keys = batch * seen * kv_heads * dim;
        let mut values = [
            noise(batch * len * heads * dim, 1),
            noise(keys, 2),
            noise(keys, 3),
        ];
        // Far apart, so that the largest score moves from block to block.
        values[0].iter_mut().for_each(|it| *it *= 4.0);
        Self { dims, values }
    }

    fn inputs(&self) -> AttentionInputs<'_> {
        let dims = self.dims;
        let [query, key, value] = &self.values;
        AttentionInputs {
            dims,
            query: Rows::contiguous(query, dims.heads * dims.dim),
            key: Rows::contiguous(key, dims.kv_heads * dims.dim),
            value: Rows::contiguous(value, dims.kv_heads * dims.dim),
        }
    }

    fn gradients(&self, outputs: &AttentionOutputs, grad_y: &[f32]) -> AttentionGrads {
        let width = self.dims.heads * self.dims.dim;
        let saved = AttentionSaved {
            y: Rows::contiguous(&outputs.y, width),
            log_sums: &outputs.log_sums,
        };
        backward(&self.inputs(), saved, Rows::contiguous(grad_y, width))
    }
}

/// The definition in f64, one query at a time.
fn exact(dims: AttentionDims, [query, key, value]: &[Vec<f64>; 3]) -> Vec<f64> {
    let d = dims.dim;
    let mut y = vec![0.0; dims.batch * dims.len * dims.heads * d];
    for place in 0..dims.batch * dims.len * dims.heads {
        let (row, head) = (place / dims.heads, place % dims.heads);
        let (batch, t) = (row / dims.len, row % dims.len);
        let keys = dims.past() + t + 1;
        let theirs = |s: usize| {
            let start = ((batch * dims.seen + s) * dims.kv_heads + head / dims.group()) * d;
            start..start + d
        };
        let own = &query[place * d..][..d];
        let scores: Vec<f64> = (0..keys)
            .map(|s| {
                let products = own.iter().zip(&key[theirs(s)]).map(|(a, b)| a * b);
                products.sum::<f64>() / (d as f64).sqrt()
            })
            .collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|it| (it - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (s, weight) in weights.iter().enumerate() {
            let to = &mut y[place * d..][..d];
            for (to, value) in to.iter_mut().zip(&value[theirs(s)]) {
                *to += weight / total * value;
            }
        }
    }
    y
}

fn cases() -> Vec<Case> {
    [
        ([1, 1, 1], [1, 1, 1]),
        ([2, 17, 17], [2, 2, 5]),
        ([1, 130, 130], [3, 1, 32]),
        ([2, 65, 65], [4, 2, 20]),
        // Behind a cache, whose length is none of a block.
        ([1, 70, 203], [2, 1, 16]),
        ([3, 1, 90], [2, 2, 64]),
        ([1, 64, 128], [1, 1, 48]),
    ]
    .map(|(lengths, heads)| Case::new(lengths, heads))
    .into()
}

#[test]
fn outputs_equal_the_definition_on_every_instruction_set() {
    for case in cases() {
        let want = exact(case.dims, &case.values.clone().map(|it| widen(&it)));
        for (set, got) in with_each_set(|| forward(&case.inputs())) {
            let name = format!("{:?} on {set:?}", case.dims);
            assert_close(&name, &got.y, &want, 2e-6);
        }
    }
}

#[test]
fn gradients_equal_central_differences_on_every_instruction_set() {
    for case in cases() {
        let dims = case.dims;
        let weights = noise(dims.batch * dims.len * dims.heads * dims.dim, 9);
        for (set, grads) in with_each_set(|| case.gradients(&forward(&case.inputs()), &weights)) {
            let grads = [grads.query, grads.key, grads.value];
            let mut values = case.values.clone().map(|it| widen(&it));
            for (input, got) in grads.iter().enumerate() {
                let name = format!("{} of {dims:?} on {set:?}", NAMES[input]);
                let loss = |values: &[Vec<f64>; 3]| dot(&exact(dims, values), &weights);
                assert_gradient(&name, got, &mut values, input, loss);
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let case = Case::new([2, 150, 150], [4, 2, 24]);
    let weights = noise(2 * 150 * 4 * 24, 9);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let outputs = forward(&case.inputs());
            let grads = case.gradients(&outputs, &weights);
            [
                outputs.y,
                outputs.log_sums,
                grads.query,
                grads.key,
                grads.value,
            ]
        })
    };
    assert_eq!(on(1), on(3));
}

/// Rows of a projection that holds all three, read in place; and a block of queries whose lanes are not all filled, after one whose
/// are.
#[test]
fn strided_rows_are_read_in_place() {
    let case = Case::new([2, 100, 100], [2, 2, 12]);
    let width = 24;
    let mut whole = vec![f32::NAN; 200 * 80];
    for row in 0..200 {
        for (part, values) in case.values.iter().enumerate() {
            let to = row * 80 + part * width;
            whole[to..to + width].copy_from_slice(&values[row * width..][..width]);
        }
    }
    let part = |index: usize| Rows {
        data: &whole[index * width..],
        row_stride: 80,
    };
    let inputs = AttentionInputs {
        dims: case.dims,
        query: part(0),
        key: part(1),
        value: part(2),
    };
    assert_eq!(forward(&inputs).y, forward(&case.inputs()).y);
}

#[test]
fn a_nan_stays_with_the_queries_that_see_it() {
    let mut case = Case::new([1, 90, 90], [1, 1, 8]);
    case.values[1][80 * 8] = f32::NAN;
    let y = forward(&case.inputs()).y;
    assert!(y[..80 * 8].iter().all(|it| it.is_finite()));
    assert!(y[80 * 8..].iter().all(|it| it.is_nan()));
}

#[test]
#[should_panic(expected = "a key for each query")]
fn queries_without_keys_are_refused() {
    forward(&Case::new([1, 3, 2], [1, 1, 4]).inputs());
}
