//! The recurrence of Mamba-2: in chunks, position by position, and its gradients.
//!
//! ```text
//! h_t = exp(dt_t a) h_{t-1} + dt_t x_t B_t'        y_t = h_t C_t + d x_t
//! ```
//!
//! Within a chunk the recurrence is a product with the lower-triangular matrix
//! `M_ts = (C_t . B_s) exp(cum_t - cum_s)`, where `cum` adds `dt a` up from the chunk's beginning; between
//! chunks the states are passed on. Source: Dao and Gu 2024, "Transformers are SSMs", section 6 and listing 1.

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

use super::{Prim, continues};
use crate::ops::extension::{OptionalFloat, SsdGrads, SsdInputs, SsdOptions, SsdOutputs};

/// The sizes of a problem. The last of its `chunks` may be longer than what is left of the sequence.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    seq_len: usize,
    nheads: usize,
    headdim: usize,
    ngroups: usize,
    d_state: usize,
    chunk: usize,
    chunks: usize,
}

impl Sizes {
    fn of<B: Backend>(inputs: &SsdInputs<B>) -> Self {
        let [batch, seq_len, d_ssm] = Prim::<B>(inputs.x.clone()).dims();
        let [nheads] = Prim::<B>(inputs.a.clone()).dims();
        let [_, _, columns] = Prim::<B>(inputs.b.clone()).dims();
        let SsdOptions {
            ngroups,
            chunk_size,
            ..
        } = inputs.options;
        let chunk = chunk_size.min(seq_len);
        Self {
            batch,
            seq_len,
            nheads,
            headdim: d_ssm / nheads,
            ngroups,
            d_state: columns / ngroups,
            chunk,
            chunks: seq_len.div_ceil(chunk),
        }
    }

    fn state(&self) -> [usize; 4] {
        [self.batch, self.nheads, self.headdim, self.d_state]
    }

    /// `[batch, seq_len, rows * width]` as `[batch, chunks, rows, chunk, width]`, zeros past the end.
    fn chunked<B: Backend>(&self, x: &Prim<B>, rows: usize) -> Prim<B> {
        let [batch, seq_len, columns] = x.dims();
        let missing = self.chunks * self.chunk - seq_len;
        let x = match missing {
            0 => x.clone(),
            _ => Prim::cat(vec![x.clone(), x.like([batch, missing, columns], 0.0)], 1),
        };
        x.reshape([batch, self.chunks, self.chunk, rows, columns / rows])
            .swap(2, 3)
    }

    /// What [`Self::chunked`] cut, whole again.
    fn joined<B: Backend>(&self, x: &Prim<B>) -> Prim<B> {
        let [batch, chunks, rows, chunk, width] = x.dims();
        x.swap(2, 3)
            .reshape([batch, chunks * chunk, rows * width])
            .narrow(1, 0, self.seq_len)
    }

    /// `[batch, chunks, ngroups, chunk, d_state]` for each head of a group.
    fn for_heads<B: Backend>(&self, x: &Prim<B>) -> Prim<B> {
        let (chunks, chunk) = (self.chunks, self.chunk);
        let heads = self.nheads / self.ngroups;
        x.reshape([self.batch, chunks, self.ngroups, 1, chunk, self.d_state])
            .expand([self.batch, chunks, self.ngroups, heads, chunk, self.d_state])
            .reshape([self.batch, chunks, self.nheads, chunk, self.d_state])
    }

    /// The sum over the heads of each group: [`Self::for_heads`] backwards.
    fn over_heads<B: Backend>(&self, x: &Prim<B>) -> Prim<B> {
        let (chunks, chunk) = (self.chunks, self.chunk);
        let heads = self.nheads / self.ngroups;
        x.reshape([
            self.batch,
            chunks,
            self.ngroups,
            heads,
            chunk * self.d_state,
        ])
        .sum_dim(3)
        .reshape([self.batch, chunks, self.ngroups, chunk, self.d_state])
    }
}

/// Time steps in their three forms, each `[batch, seq_len, nheads]`.
struct Steps<B: Backend> {
    /// With the bias.
    raw: Prim<B>,
    /// Through softplus, if it is wanted.
    positive: Prim<B>,
    /// Within the limits.
    dt: Prim<B>,
}

impl<B: Backend> Steps<B> {
    fn of(inputs: &SsdInputs<B>) -> Self {
        let raw = Prim::<B>(inputs.dt.clone());
        let raw = match inputs.dt_bias.clone().into_option() {
            Some(bias) => {
                let bias = Prim::<B>(bias);
                let [nheads] = bias.dims();
                &raw + &bias.reshape([1, 1, nheads])
            }
            None => raw,
        };
        let positive = match inputs.options.dt_softplus {
            true => raw.softplus(),
            false => raw.clone(),
        };
        let (least, most) = inputs.options.dt_limit;
        let dt = Prim(B::float_clamp_min(positive.0.clone(), least.into()));
        let dt = match most.is_finite() {
            true => Prim(B::float_clamp_max(dt.0, most.into())),
            false => dt,
        };
        Self { raw, positive, dt }
    }

    /// The gradient of the bare time step from that of [`Self::dt`].
    fn backward(&self, grad: &Prim<B>, options: &SsdOptions) -> Prim<B> {
        let (least, most) = options.dt_limit;
        let mut grad = grad * &self.positive.shift(-least).is_positive();
        if most.is_finite() {
            grad = &grad * &self.positive.scale(-1.0).shift(most).is_positive();
        }
        match options.dt_softplus {
            true => &grad * &self.raw.sigmoid(),
            false => grad,
        }
    }
}

/// The factors of all chunks at once. `heads` stands for `[batch, chunks, nheads]`.
struct Chunks<B: Backend> {
    sizes: Sizes,
    steps: Steps<B>,
    dt: Prim<B>, // [heads, chunk, 1]
    x: Prim<B>,  // [heads, chunk, headdim]
    /// `dt x`
    scaled: Prim<B>,
    b: Prim<B>, // [heads, chunk, d_state]
    c: Prim<B>, // [heads, chunk, d_state]
    /// `exp(cum_t - cum_s)` for `s <= t` of one run, else 0: `[heads, chunk, chunk]`.
    decay: Prim<B>,
    /// From before the chunk to each position: `[heads, chunk, 1]`.
    enter: Prim<B>,
    /// From each position to the end of the chunk: `[heads, chunk, 1]`.
    leave: Prim<B>,
    /// Through the chunk: `[heads, 1, 1]`.
    pass: Prim<B>,
    /// Ones on and below the diagonal: `[1, 1, 1, chunk, chunk]`.
    lower: Prim<B>,
}

impl<B: Backend> Chunks<B> {
    fn new(inputs: &SsdInputs<B>) -> Self {
        let sizes = Sizes::of(inputs);
        let Sizes { nheads, chunk, .. } = sizes;
        let steps = Steps::of(inputs);
        let dt = sizes.chunked(&steps.dt, nheads);
        let a = Prim::<B>(inputs.a.clone()).reshape([1, 1, nheads, 1, 1]);
        let cum = (&dt * &a).cumsum(3);
        let last = cum.narrow(3, chunk - 1, 1);

        let lower = dt.constant([1, 1, 1, chunk, chunk], |i| {
            f32::from(u8::from(i % chunk <= i / chunk))
        });
        // Exponents above the diagonal may be large: they are zeroed before and after.
        let decay = &(&(&cum - &cum.transpose()) * &lower).exp() * &lower;
        let (enter, leave, pass) = (cum.exp(), (&last - &cum).exp(), last.exp());
        let (decay, enter, leave, pass) = match inputs.seq_idx.clone().into_option() {
            None => (decay, enter, leave, pass),
            Some(seq_idx) => {
                let runs = Runs::new(&sizes, continues::<B>(seq_idx));
                (
                    &decay * &runs.here.equals(&runs.here.transpose()),
                    &enter * &runs.here.equals(&runs.before),
                    &leave * &runs.here.equals(&runs.last),
                    &pass * &runs.last.equals(&runs.before),
                )
            }
        };
        let x = sizes.chunked(&Prim(inputs.x.clone()), nheads);
        let heads =
            |x: &FloatTensor<B>| sizes.for_heads(&sizes.chunked(&Prim(x.clone()), sizes.ngroups));
        Self {
            scaled: &x * &dt,
            b: heads(&inputs.b),
            c: heads(&inputs.c),
            sizes,
            steps,
            dt,
            x,
            decay,
            enter,
            leave,
            pass,
            lower,
        }
    }

    /// `C_t . B_s`
    fn scores(&self) -> Prim<B> {
        self.c.matmul(&self.b.transpose())
    }

    /// Entry `chunk` of axis 1 of a state, without that axis.
    fn at(&self, states: &Prim<B>, chunk: usize) -> Prim<B> {
        let [batch, _, nheads, rows, columns] = states.dims();
        states
            .narrow(1, chunk, 1)
            .reshape([batch, nheads, rows, columns])
    }

    /// States side by side along a new axis 1.
    fn stack(&self, states: Vec<Prim<B>>) -> Prim<B> {
        let [batch, nheads, headdim, d_state] = self.sizes.state();
        let shape = [batch, 1, nheads, headdim, d_state];
        let states = states.iter().map(|state| state.reshape(shape)).collect();
        Prim::cat(states, 1)
    }

    /// `y` before the skip connection, from the states before the chunks.
    fn read(&self, states: &Prim<B>) -> Prim<B> {
        let within = (&self.scores() * &self.decay).matmul(&self.scaled);
        &within + &(&self.c.matmul(&states.transpose()) * &self.enter)
    }
}

/// The number of a packed sequence at each position, from 0 on.
struct Runs<B: Backend> {
    here: Prim<B>,   // [batch, chunks, 1, chunk, 1]
    before: Prim<B>, // of the position before the chunk: [batch, chunks, 1, 1, 1]
    last: Prim<B>,   // of the chunk's last position
}

impl<B: Backend> Runs<B> {
    fn new(sizes: &Sizes, continues: Prim<B>) -> Self {
        let Sizes {
            batch,
            seq_len,
            chunk,
            chunks,
            ..
        } = *sizes;
        // What is past the end continues the last run.
        let begins = continues.one_minus().reshape([batch, seq_len, 1]);
        let missing = chunks * chunk - seq_len;
        let begins = match missing {
            0 => begins,
            _ => Prim::cat(
                vec![begins.clone(), begins.like([batch, missing, 1], 0.0)],
                1,
            ),
        };
        let here = begins.cumsum(1).reshape([batch, chunks, 1, chunk, 1]);
        let last = here.narrow(3, chunk - 1, 1);
        let first = here.like([batch, 1, 1, 1, 1], 0.0);
        let before = match chunks {
            1 => first,
            _ => Prim::cat(vec![first, last.narrow(1, 0, chunks - 1)], 1),
        };
        Self { here, before, last }
    }
}

fn initial_state<B: Backend>(inputs: &SsdInputs<B>, sizes: &Sizes) -> Prim<B> {
    match inputs.initial_state.clone().into_option() {
        Some(state) => Prim(state),
        None => Prim::<B>(inputs.x.clone()).like(sizes.state(), 0.0),
    }
}

/// The skip's factors, `[nheads]` or `[nheads, headdim]`, beside `[batch, chunks, nheads, chunk, headdim]`.
fn skip_factors<B: Backend>(d: FloatTensor<B>, nheads: usize) -> Prim<B> {
    let d = Prim::<B>(d);
    let width = d.len() / nheads;
    d.reshape([1, 1, nheads, 1, width])
}

/// `y + d x`, in chunks.
fn skip<B: Backend>(y: Prim<B>, x: &Prim<B>, d: &OptionalFloat<B>) -> Prim<B> {
    let [_, _, nheads, _, _] = x.dims();
    match d.clone().into_option() {
        Some(d) => &y + &(x * &skip_factors(d, nheads)),
        None => y,
    }
}

/// All chunks at once but for the passing of states: listing 1 of the paper.
pub(crate) fn forward<B: Backend>(inputs: SsdInputs<B>, save_checkpoints: bool) -> SsdOutputs<B> {
    let parts = Chunks::new(&inputs);
    // The listing's step 2: what each chunk adds to the state.
    let added = (&parts.scaled * &parts.leave).transpose().matmul(&parts.b);
    // Its step 3: the states before the chunks.
    let mut state = initial_state(&inputs, &parts.sizes);
    let mut states = Vec::with_capacity(parts.sizes.chunks);
    for chunk in 0..parts.sizes.chunks {
        let next = &(&state * &parts.at(&parts.pass, chunk)) + &parts.at(&added, chunk);
        states.push(std::mem::replace(&mut state, next));
    }
    let states = parts.stack(states);
    // Its steps 1 and 4: the outputs within chunks, and those of the states before them.
    let y = skip(parts.read(&states), &parts.x, &inputs.d);
    SsdOutputs {
        y: parts.sizes.joined(&y).0,
        final_state: state.0,
        checkpoints: save_checkpoints.then_some(states.0).into(),
    }
}

/// One position after the other: a path of its own beside [`forward`], to check one against the other.
pub(crate) fn forward_sequential<B: Backend>(inputs: SsdInputs<B>) -> SsdOutputs<B> {
    let sizes = Sizes {
        chunk: 1,
        chunks: Sizes::of(&inputs).seq_len,
        ..Sizes::of(&inputs)
    };
    let Sizes {
        batch,
        seq_len,
        nheads,
        headdim,
        d_state,
        ngroups,
        ..
    } = sizes;
    let dt = Steps::of(&inputs).dt;
    let a = Prim::<B>(inputs.a.clone()).reshape([1, 1, nheads]);
    let decay = (&dt * &a).exp();
    let decay = match inputs.seq_idx.clone().into_option() {
        Some(seq_idx) => &decay * &continues::<B>(seq_idx).reshape([batch, seq_len, 1]),
        None => decay,
    };
    let x = sizes.chunked(&Prim(inputs.x.clone()), nheads);
    let heads = |x: &FloatTensor<B>| sizes.for_heads(&sizes.chunked(&Prim(x.clone()), ngroups));
    let (b, c) = (heads(&inputs.b), heads(&inputs.c));

    let mut state = initial_state(&inputs, &sizes);
    let mut rows = Vec::with_capacity(seq_len);
    for t in 0..seq_len {
        let at = |x: &Prim<B>, width: usize| x.narrow(1, t, 1).reshape([batch, nheads, width, 1]);
        let input = &at(&x, headdim) * &at(&dt, 1);
        state = &(&state * &at(&decay, 1)) + &(&input * &at(&b, d_state).transpose());
        let read = (&state * &at(&c, d_state).transpose()).sum_dim(3);
        rows.push(read.reshape([batch, 1, nheads, 1, headdim]));
    }
    let y = skip(Prim::cat(rows, 1), &x, &inputs.d);
    SsdOutputs {
        y: sizes.joined(&y).0,
        final_state: state.0,
        checkpoints: OptionalFloat::Absent,
    }
}

/// All chunks at once, but for the gradient of the state, which walks them backwards.
pub(crate) fn backward<B: Backend>(
    inputs: SsdInputs<B>,
    checkpoints: FloatTensor<B>,
    grad_y: FloatTensor<B>,
    grad_final_state: OptionalFloat<B>,
) -> SsdGrads<B> {
    let parts = Chunks::new(&inputs);
    let sizes = parts.sizes;
    let Sizes { nheads, chunk, .. } = sizes;
    let before = Prim::<B>(checkpoints);
    let grad_y = sizes.chunked(&Prim(grad_y), nheads);

    // Of the state after each chunk.
    let read = (&grad_y * &parts.enter).transpose().matmul(&parts.c);
    let mut grad_state = match grad_final_state.into_option() {
        Some(grad) => Prim(grad),
        None => grad_y.like(sizes.state(), 0.0),
    };
    let mut after = Vec::with_capacity(sizes.chunks);
    for chunk in (0..sizes.chunks).rev() {
        let next = &(&grad_state * &parts.at(&parts.pass, chunk)) + &parts.at(&read, chunk);
        after.push(std::mem::replace(&mut grad_state, next));
    }
    after.reverse();
    let after = parts.stack(after);

    let (scores, products) = (parts.scores(), grad_y.matmul(&parts.scaled.transpose()));
    let mixing = &scores * &parts.decay;
    let grad_scaled =
        mixing.transpose().matmul(&grad_y) + (&parts.b.matmul(&after.transpose()) * &parts.leave);
    let grad_scores = &products * &parts.decay;
    let from_state = &grad_y.matmul(&before) * &parts.enter;
    let to_state = &parts.scaled.matmul(&after) * &parts.leave;
    let grad_c = grad_scores.matmul(&parts.b) + from_state.clone();
    let grad_b = grad_scores.transpose().matmul(&parts.c) + to_state.clone();

    // Of the sums `cum`: every exponential is its own derivative. A position with itself cancels, and is left
    // out before it is rounded.
    let strict = &parts.lower - &parts.lower.transpose();
    let pairs = &(&products * &mixing) * &strict.clamp(0.0, 1.0);
    let (entered, left) = (
        (&from_state * &parts.c).sum_dim(4),
        (&to_state * &parts.b).sum_dim(4),
    );
    let kept = &(&after * &before).sum_dim(4).sum_dim(3) * &parts.pass;
    let end = grad_y.constant([1, 1, 1, chunk, 1], |t| f32::from(u8::from(t + 1 == chunk)));
    let grad_cum = &(&(&pairs.sum_dim(4) - &pairs.sum_dim(3).transpose()) + &(&entered - &left))
        + &(&(&left.sum_dim(3) + &kept) * &end);
    // `dt a` enters the sums of its own position and of all later ones.
    let upper = parts.lower.transpose();
    let grad_exponent = upper.matmul(&grad_cum);

    let a = Prim::<B>(inputs.a.clone()).reshape([1, 1, nheads, 1, 1]);
    let grad_dt = &(&grad_exponent * &a) + &(&parts.x * &grad_scaled).sum_dim(4);
    let grad_dt = parts
        .steps
        .backward(&sizes.joined(&grad_dt), &inputs.options);
    let per_head = |x: &Prim<B>| x.sum_dim(3).sum_dim(1).sum_dim(0);
    let grad_a = per_head(&(&grad_exponent * &parts.dt)).reshape([nheads]);
    let grad_x = skip(&grad_scaled * &parts.dt, &grad_y, &inputs.d);
    let grad_d = inputs.d.into_option().map(|d| {
        let d = Prim::<B>(d);
        let grad = per_head(&(&parts.x * &grad_y));
        match d.len() == nheads {
            true => grad.sum_dim(4).reshape([nheads]).0,
            false => grad.reshape([nheads, sizes.headdim]).0,
        }
    });
    let grad_bias = grad_dt.sum_dim(1).sum_dim(0).reshape([nheads]);
    SsdGrads {
        x: sizes.joined(&grad_x).0,
        a: grad_a.0,
        b: sizes.joined(&sizes.over_heads(&grad_b)).0,
        c: sizes.joined(&sizes.over_heads(&grad_c)).0,
        d: grad_d.into(),
        dt_bias: inputs.dt_bias.into_option().map(|_| grad_bias.0).into(),
        initial_state: inputs
            .initial_state
            .into_option()
            .map(|_| grad_state.0)
            .into(),
        dt: grad_dt.0,
    }
}
