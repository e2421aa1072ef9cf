use serde::Serialize;

use super::flops::{PER_SCAN_STATE, PER_SSD_STATE};
use super::{Family, Model, Scan};

/// An operation of the catalogue.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// The recurrence of Mamba-1, with all that a mixer gives it; from a state, if it is a step.
    Scan(Scan),
    /// The recurrence of Mamba-2.
    Ssd(Ssd),
    /// The causal convolution with its SiLU.
    Conv(Conv),
    /// Causal attention.
    Attention(Heads),
}

/// Sizes of Mamba-2's recurrence, with one group.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)] // as documented on `mamba_core::ops::Ssd`
pub struct Ssd {
    pub batch: usize,
    pub seq_len: usize,
    pub nheads: usize,
    pub headdim: usize,
    pub d_state: usize,
}

/// Sizes of a causal convolution.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)] // as documented on `mamba_core::ops::CausalConv1d`
pub struct Conv {
    pub batch: usize,
    pub seq_len: usize,
    pub channels: usize,
    pub width: usize,
}

/// Sizes of attention.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)] // as documented on `mamba_core::transformer::AttentionConfig`
pub struct Heads {
    pub batch: usize,
    pub seq_len: usize,
    pub num_heads: usize,
    pub head_dim: usize,
}

impl Op {
    /// The catalogue at the sizes of a layer of the 130M models.
    pub fn all(batch: usize, seq_len: usize) -> [Self; 6] {
        let scan = |batch, seq_len| {
            Self::Scan(Scan {
                batch,
                seq_len,
                d_inner: 1536,
                d_state: 16,
            })
        };
        let ssd = |batch, seq_len| {
            Self::Ssd(Ssd {
                batch,
                seq_len,
                nheads: 24,
                headdim: 64,
                d_state: 128,
            })
        };
        [
            scan(batch, seq_len),
            scan(STEP_BATCH, 1),
            ssd(batch, seq_len),
            ssd(STEP_BATCH, 1),
            Self::Conv(Conv {
                batch,
                seq_len,
                channels: 1536,
                width: 4,
            }),
            Self::Attention(Heads {
                batch,
                seq_len,
                num_heads: 12,
                head_dim: 64,
            }),
        ]
    }

    /// The operations that models are made of, each once.
    pub fn of(models: &[Model]) -> Vec<Self> {
        let has = |family| models.iter().any(|model| model.family == family);
        let (mamba1, mamba2) = (has(Family::Mamba1), has(Family::Mamba2));
        let wanted = |op: &Self| match op {
            Self::Conv(_) => mamba1 || mamba2,
            Self::Scan(_) => mamba1,
            Self::Ssd(_) => mamba2,
            Self::Attention(_) => has(Family::Pythia) || has(Family::Gpt2),
        };
        Self::all(1, 64).into_iter().filter(wanted).collect()
    }

    /// The same operation at a size where neither chunks, lanes nor groups of states come out even.
    pub fn tiny(&self) -> Self {
        let seq_len = if self.is_step() { 1 } else { 70 };
        match self {
            Self::Scan(_) => Self::Scan(Scan {
                seq_len,
                ..Scan::SMALL
            }),
            Self::Ssd(_) => Self::Ssd(Ssd {
                batch: 2,
                seq_len,
                nheads: 3,
                headdim: 20,
                d_state: 12,
            }),
            Self::Conv(conv) => Self::Conv(Conv {
                batch: 2,
                seq_len,
                channels: 40,
                ..*conv
            }),
            Self::Attention(_) => Self::Attention(Heads {
                batch: 2,
                seq_len,
                num_heads: 3,
                head_dim: 20,
            }),
        }
    }

    /// The same operation at a size for the proofs of peers: short, with heads as kernels elsewhere expect them, and a
    /// length that fills no chunk.
    pub fn small(&self) -> Self {
        match self.tiny() {
            Self::Scan(scan) => Self::Scan(Scan {
                d_inner: 64,
                d_state: 16,
                ..scan
            }),
            Self::Ssd(ssd) => Self::Ssd(Ssd {
                headdim: 64,
                d_state: 128,
                ..ssd
            }),
            Self::Conv(conv) => Self::Conv(Conv {
                channels: 64,
                ..conv
            }),
            Self::Attention(heads) => Self::Attention(Heads {
                head_dim: 64,
                ..heads
            }),
        }
    }

    /// Its name in results.
    pub fn name(&self) -> &'static str {
        match (self, self.is_step()) {
            (Self::Scan(_), false) => "scan",
            (Self::Scan(_), true) => "scan step",
            (Self::Ssd(_), false) => "ssd",
            (Self::Ssd(_), true) => "ssd step",
            (Self::Conv(_), _) => "conv",
            (Self::Attention(_), _) => "attention",
        }
    }

    /// Sequences and positions.
    pub fn size(&self) -> [usize; 2] {
        match *self {
            Self::Scan(Scan { batch, seq_len, .. })
            | Self::Ssd(Ssd { batch, seq_len, .. })
            | Self::Conv(Conv { batch, seq_len, .. })
            | Self::Attention(Heads { batch, seq_len, .. }) => [batch, seq_len],
        }
    }

    /// Whether it reads one token and a state.
    pub fn is_step(&self) -> bool {
        self.size()[1] == 1
    }

    /// Operations that its definition needs, forward; as [`flops`](super::flops) counts them.
    pub fn flops(&self) -> f64 {
        let [batch, seq_len] = self.size();
        let positions = batch as f64 * seq_len as f64;
        let per_position = match *self {
            // Step size and its softplus, gate with its SiLU, skip.
            Self::Scan(Scan {
                d_inner, d_state, ..
            }) => d_inner as f64 * (PER_SCAN_STATE * d_state as f64 + 12.0),
            Self::Ssd(Ssd {
                nheads,
                headdim,
                d_state,
                ..
            }) => (nheads * headdim) as f64 * (PER_SSD_STATE * d_state as f64 + 3.0),
            Self::Conv(Conv {
                channels, width, ..
            }) => (channels * (2 * width + 4)) as f64,
            Self::Attention(Heads {
                num_heads,
                head_dim,
                ..
            }) => (num_heads * head_dim) as f64 * 2.0 * (seq_len as f64 + 1.0),
        };
        positions * per_position
    }

    /// Bytes of inputs and outputs, each moved once, with activations of `size` bytes and states of four.
    pub fn bytes(&self, size: usize) -> f64 {
        let float = |count: usize| count as f64;
        let [batch, seq_len] = self.size();
        let [batch, seq_len] = [batch, seq_len].map(|it| it as f64);
        let values = batch
            * seq_len
            * float(match *self {
                // u, delta, z and y; B and C.
                Self::Scan(Scan {
                    d_inner, d_state, ..
                }) => 4 * d_inner + 2 * d_state,
                // x and y; dt; B and C.
                Self::Ssd(Ssd {
                    nheads,
                    headdim,
                    d_state,
                    ..
                }) => 2 * nheads * headdim + nheads + 2 * d_state,
                Self::Conv(Conv { channels, .. }) => 2 * channels,
                Self::Attention(Heads {
                    num_heads,
                    head_dim,
                    ..
                }) => 4 * num_heads * head_dim,
            });
        // Written at the end, and read at the start of a step.
        let states = batch
            * float(1 + usize::from(self.is_step()))
            * float(match *self {
                Self::Scan(Scan {
                    d_inner, d_state, ..
                }) => d_inner * d_state,
                Self::Ssd(Ssd {
                    nheads,
                    headdim,
                    d_state,
                    ..
                }) => nheads * headdim * d_state,
                Self::Conv(Conv {
                    channels, width, ..
                }) => channels * (width - 1),
                Self::Attention(_) => 0,
            });
        values * float(size) + states * 4.0
    }
}

/// Sequences of a step: with fewer, a GPU's time is that of a launch.
const STEP_BATCH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sizes_are_counted() {
        let ops = Op::all(8, 2048);
        let names: std::collections::BTreeSet<_> = ops.iter().map(Op::name).collect();
        assert_eq!(names.len(), ops.len());
        // Four sequences of 8 x 2048 x 1536 floats, B and C, the last state.
        let scan = 4.0 * (8.0 * 2048.0 * (4.0 * 1536.0 + 32.0) + 8.0 * 1536.0 * 16.0);
        assert_eq!(ops[0].bytes(4), scan);
        // Half of the scores of 12 heads, two products of 64 each.
        assert_eq!(
            ops[5].flops(),
            8.0 * 2048.0 * 2049.0 / 2.0 * 12.0 * 4.0 * 64.0
        );
    }

    #[test]
    fn the_proof_of_a_step_is_a_step() {
        for op in Op::all(1, 64) {
            assert_eq!(
                (op.name(), op.is_step()),
                (op.tiny().name(), op.tiny().is_step())
            );
            assert_eq!(op.name(), op.small().name());
        }
    }
}
