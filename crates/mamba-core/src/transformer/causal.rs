use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, Tensor};

use crate::ops::{self, has_attention};

/// Queries per call of the attention op on Flex. Training on 1024 tokens of 4 heads of 64 took 40 %
/// less CPU time and memory than in one call, with blocks of 64 to 128 alike; a longer block wastes
/// more of its last keys, a shorter one splits the matrix products.
#[cfg(feature = "flex")]
const FLEX_QUERY_BLOCK: usize = 128;

/// Attention in which each query sees the keys up to its own; the last query's own is the last key. On Flex by fused loops, where
/// there is no mask, else by Burn's attention.
///
/// # Shapes
///
/// - query: `[batch, num_heads, seq_len, head_dim]`
/// - key, value: `[batch, num_heads, seen, head_dim]`, `seen >= seq_len`; on Flex, without a mask, a divisor of `num_heads` does
/// - mask: `true` where to look away, `[batch, num_heads, seq_len, seen]`
/// - output: `[batch, num_heads, seq_len, head_dim]`
pub fn causal_attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<Tensor<4, Bool>>,
) -> Tensor<4> {
    if mask.is_none() && has_attention(&query) {
        let [batch, num_heads, seq_len, head_dim] = query.dims();
        let [query, key, value] = [query, key, value].map(|tensor| {
            let [batch, heads, len, head_dim] = tensor.dims();
            tensor
                .swap_dims(1, 2)
                .reshape([batch, len, heads * head_dim])
        });
        return ops::causal_attention(query, key, value, num_heads)
            .reshape([batch, seq_len, num_heads, head_dim])
            .swap_dims(1, 2);
    }
    by_burn(query, key, value, mask)
}

/// Whether [`causal_attention`] takes fewer heads of keys and values than of queries.
pub(super) fn shares_heads(query: &Tensor<4>, mask: Option<&Tensor<4, Bool>>) -> bool {
    mask.is_none() && has_attention(query)
}

/// [`causal_attention`] by Burn's op, in blocks of queries.
fn by_burn(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<Tensor<4, Bool>>,
) -> Tensor<4> {
    let [_, _, seq_len, _] = query.dims();
    let past = key.dims()[2] - seq_len;
    let block = query_block(&query.device());
    if seq_len <= block {
        return one_call(query, key, value, mask);
    }

    let blocks = (0..seq_len).step_by(block).map(|start| {
        let len = block.min(seq_len - start);
        let seen = past + start + len;
        one_call(
            query.clone().narrow(2, start, len),
            key.clone().narrow(2, 0, seen),
            value.clone().narrow(2, 0, seen),
            mask.clone()
                .map(|mask| mask.narrow(2, start, len).narrow(3, 0, seen)),
        )
    });
    Tensor::cat(blocks.collect(), 2)
}

fn one_call(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<Tensor<4, Bool>>,
) -> Tensor<4> {
    let options = AttentionModuleOptions {
        is_causal: true,
        ..Default::default()
    };
    attention(query, key, value, mask, None, options)
}

/// How many queries to hand to the attention op at once.
///
/// Flex computes the scores of later keys before it masks them, and so does the fallback under
/// autodiff, which keeps them too: blocks of queries that leave out the keys behind them save up
/// to half of that. GPUs get whole sequences: their kernels skip such tiles themselves, and each
/// shape of a block would be tuned apart.
fn query_block(device: &Device) -> usize {
    #[cfg(feature = "flex")]
    if *device == Device::flex() {
        return FLEX_QUERY_BLOCK;
    }
    #[cfg(not(feature = "flex"))]
    let _ = device;
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Int, Tolerance, s};

    #[test]
    fn values_and_gradients_do_not_depend_on_the_way() {
        let device = Device::flex().autodiff();
        let random = |seq_len| {
            let shape = [2, 3, seq_len, 4];
            Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device)
        };
        // Queries that follow others, as behind a cache.
        let [query, key, value] = [270, 300, 300].map(|len| random(len).require_grad());
        let weights = random(270);
        let mask = Tensor::<4, Int>::zeros([2, 3, 270, 300], &device)
            .bool()
            .slice_fill(s![.., .., 100.., ..50], true);

        for mask in [None, Some(mask)] {
            let run =
                |f: fn(Tensor<4>, Tensor<4>, Tensor<4>, Option<Tensor<4, Bool>>) -> Tensor<4>| {
                    let y = f(query.clone(), key.clone(), value.clone(), mask.clone());
                    let grads = (y.clone() * weights.clone()).sum().backward();
                    let grads = [&query, &key, &value].map(|tensor| tensor.grad(&grads).unwrap());
                    [y.inner()].into_iter().chain(grads).collect::<Vec<_>>()
                };
            let whole = run(one_call);
            for way in [causal_attention, by_burn] {
                for (parts, whole) in run(way).into_iter().zip(&whole) {
                    parts
                        .to_data()
                        .assert_approx_eq::<f32>(&whole.to_data(), Tolerance::absolute(2e-5));
                }
            }
        }
    }
}
