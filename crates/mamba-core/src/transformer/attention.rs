use super::causal::{causal_attention, shares_heads};
use super::kv_cache::KvCache;
use super::packing::Packing;
use super::rotary::{RotaryEmbedding, RotaryEmbeddingConfig};
use crate::init::{linear, rescale};
use crate::ops::{self, halves, has_attention, project, thirds};
use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::nn::Linear;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, Int, Tensor, assert_shape, s};

/// Configuration to create an [`Attention`] with [`init`](AttentionConfig::init).
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Width of the input and output.
    pub d_model: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads; a divisor of `num_heads`. Default: `num_heads`
    pub num_kv_heads: Option<usize>,
    /// Width of a head. Default: `d_model / num_heads`
    pub head_dim: Option<usize>,
    /// Whether the query, key and value projection has a bias. Default: false
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Whether the output projection has a bias. Default: false
    #[config(default = false)]
    pub out_bias: bool,
    /// Leading channels of a head that carry a rotary position; 0 for none. Default: 0
    #[config(default = 0)]
    pub rotary_dim: usize,
    /// Base of the rotary wave lengths. Default: 10000
    #[config(default = 10000.0)]
    pub rotary_base: f64,
    /// Rotate neighbouring channels (GPT-J) instead of halves (GPT-NeoX, Llama). Default: false
    #[config(default = false)]
    pub rotary_interleaved: bool,
}

impl AttentionConfig {
    /// Number of key and value heads.
    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads)
    }

    /// Width of a head.
    ///
    /// # Panics
    ///
    /// Panics if `head_dim` is not given and `num_heads` does not divide `d_model`.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| {
            assert!(
                self.num_heads > 0 && self.d_model.is_multiple_of(self.num_heads),
                "AttentionConfig: num_heads must divide d_model {} unless head_dim is set, got {}",
                self.d_model,
                self.num_heads
            );
            self.d_model / self.num_heads
        })
    }

    /// Initialises an [`Attention`]: weights `N(0, 0.02)`, biases zero.
    ///
    /// # Panics
    ///
    /// Panics if `num_kv_heads` does not divide `num_heads`, if `num_heads` does not divide
    /// `d_model` and `head_dim` is not given, or if `rotary_dim` is odd or above `head_dim`.
    pub fn init(&self, device: &Device) -> Attention {
        let (num_heads, num_kv_heads) = (self.num_heads, self.num_kv_heads());
        let head_dim = self.head_dim();
        assert!(
            num_kv_heads > 0 && num_heads.is_multiple_of(num_kv_heads),
            "AttentionConfig::init: num_kv_heads must divide num_heads {num_heads}, got {num_kv_heads}"
        );
        assert!(
            self.rotary_dim <= head_dim,
            "AttentionConfig::init: rotary_dim must be <= head_dim {head_dim}, got {}",
            self.rotary_dim
        );

        let d_qkv = (num_heads + 2 * num_kv_heads) * head_dim;
        let rotary = (self.rotary_dim > 0).then(|| {
            RotaryEmbeddingConfig::new(self.rotary_dim)
                .with_base(self.rotary_base)
                .with_interleaved(self.rotary_interleaved)
                .init(device)
        });

        Attention {
            in_proj: linear(self.d_model, d_qkv, self.qkv_bias, device),
            out_proj: linear(num_heads * head_dim, self.d_model, self.out_bias, device),
            rotary,
            num_heads,
            num_kv_heads,
            head_dim,
        }
    }
}

/// Causal multi-head attention, also grouped-query, with optional rotary positions.
///
/// ```text
/// [q | k | v] = x W_in + b_in
/// o_h = softmax(rotary(q_h) rotary(k_g)^T / sqrt(head_dim) + causal mask) v_g
/// y = [o_1 | .. | o_num_heads] W_out + b_out
/// ```
///
/// Where:
/// - `h` counts query heads and `g = h / (num_heads / num_kv_heads)`, rounded down, key and value heads
/// - token `t` of a sequence sees tokens `0..=t` of it, those in the cache included
///
/// On Flex fused loops never hold more scores than those of 64 queries and 64 keys, and the tape keeps one number a query and
/// head besides inputs and output. Elsewhere, and with `seq_idx`, the scores go through Burn's attention op. Outside of
/// training no backend need hold all of them; under autodiff Burn 0.22 falls back to separate operations, which keep
/// the scores of all heads for the backward pass: a few times `4 * num_heads * seq_len` bytes a token.
///
/// Should be created using [`AttentionConfig`].
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Attention {
    /// `[d_model, (num_heads + 2 * num_kv_heads) * head_dim]`: queries, keys, values.
    pub in_proj: Linear,
    /// `[num_heads * head_dim, d_model]`
    pub out_proj: Linear,
    rotary: Option<RotaryEmbedding>,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

/// What [`Attention::project`] makes of its input, each `[batch, seq_len, its heads, head_dim]`.
struct Projected {
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
}

impl Attention {
    /// Attends over whole sequences from their first token and keeps nothing: the call to train with.
    ///
    /// With `seq_idx`, a row holds several sequences end to end: each run of equal values is one,
    /// its tokens see only that run and its positions start at 0.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, seq_len, d_model]`
    /// - seq_idx: `[batch, seq_len]`
    /// - output: `[batch, seq_len, d_model]`
    ///
    /// # Panics
    ///
    /// Panics if the last axis of `x` is not `d_model` or `seq_idx` has another shape.
    pub fn forward_sequence(&self, x: Tensor<3>, seq_idx: Option<Tensor<2, Int>>) -> Tensor<3> {
        let [batch, seq_len, _] = x.dims();
        assert_shape!(x, [_, _, self.d_model()]);

        let (positions, mask) = match seq_idx {
            Some(seq_idx) => {
                assert_shape!(seq_idx, [batch, seq_len]);
                let packing = Packing::new(seq_idx);
                let mask = packing
                    .other_run
                    .expand([batch, self.num_heads, seq_len, seq_len]);
                (packing.positions, Some(mask))
            }
            None => (positions(0, seq_len, &x.device()), None),
        };
        if mask.is_none() && has_attention(&x) {
            let [query, key, value] = self.project_flat(x, positions);
            let context = ops::causal_attention(query, key, value, self.num_heads);
            return project(&self.out_proj, context);
        }
        let Projected { query, key, value } = self.project(x, positions);
        let context = self.attend(query, key.swap_dims(1, 2), value.swap_dims(1, 2), mask);
        project(&self.out_proj, context)
    }

    /// Attends over the next tokens of sequences whose earlier tokens are in `cache`.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, seq_len, d_model]`
    /// - output: `[batch, seq_len, d_model]`
    ///
    /// # Panics
    ///
    /// Panics if the last axis of `x` is not `d_model` or `cache` is of another batch or layer.
    pub fn forward(&self, x: Tensor<3>, cache: Option<KvCache>) -> (Tensor<3>, KvCache) {
        let [_, seq_len, _] = x.dims();
        assert_shape!(x, [_, _, self.d_model()]);

        let start = cache.as_ref().map_or(0, KvCache::len);
        let positions = positions(start, seq_len, &x.device());
        let Projected { query, key, value } = self.project(x, positions);
        let (key, value) = (key.swap_dims(1, 2), value.swap_dims(1, 2));

        let cache = match cache {
            Some(cache) => cache.append(key, value),
            None => KvCache::from_tokens(key, value),
        };
        let context = self.attend(query, cache.keys(), cache.values(), None);
        (project(&self.out_proj, context), cache)
    }

    /// [`forward`](Self::forward) for one token.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, d_model]`
    /// - output: `[batch, d_model]`
    ///
    /// # Panics
    ///
    /// Panics if the last axis of `x` is not `d_model` or `cache` is of another batch or layer.
    pub fn step(&self, x: Tensor<2>, cache: KvCache) -> (Tensor<2>, KvCache) {
        let [batch, _] = x.dims();
        assert_shape!(x, [_, self.d_model()]);
        let (num_kv_heads, head_dim) = (self.num_kv_heads, self.head_dim);
        let group = self.num_heads / num_kv_heads;

        let positions = positions(cache.len(), 1, &x.device());
        let Projected { query, key, value } = self.project(x.unsqueeze_dim(1), positions);
        let cache = cache.append(key.swap_dims(1, 2), value.swap_dims(1, 2));

        // The heads of a group stand as rows of one query, so that nothing is repeated; and the whole
        // buffers are read, for cutting them to length would copy every token at every step.
        let (keys, values, unused) = cache.buffers();
        let capacity = cache.capacity();
        let context = attention(
            query.reshape([batch, num_kv_heads, group, head_dim]),
            keys,
            values,
            unused.map(|unused| {
                unused
                    .reshape([1, 1, 1, capacity])
                    .expand([batch, num_kv_heads, group, capacity])
            }),
            None,
            AttentionModuleOptions::default(),
        );
        let context = context.reshape([batch, self.num_heads * head_dim]);
        (project(&self.out_proj, context), cache)
    }

    /// A cache to start [`step`](Self::step) from.
    pub fn empty_cache(&self, batch: usize, device: &Device) -> KvCache {
        let dtype = self.in_proj.weight.dtype();
        KvCache::empty(batch, self.num_kv_heads, self.head_dim, (device, dtype))
    }

    /// Multiplies the weights that write to the residual stream by `factor`.
    ///
    /// GPT-2 divides them by the root of the number of residual additions in the model.
    pub fn rescale_residual(mut self, factor: f64) -> Self {
        self.out_proj = rescale(self.out_proj, factor);
        self
    }

    fn d_model(&self) -> usize {
        self.in_proj.weight.dims()[0]
    }

    /// `x`: `[batch, seq_len, d_model]`, `positions`: `[batch or 1, seq_len]`
    fn project(&self, x: Tensor<3>, positions: Tensor<2, Int>) -> Projected {
        let [batch, seq_len, _] = x.dims();
        let (num_heads, num_kv_heads) = (self.num_heads, self.num_kv_heads);
        let num_qk_heads = num_heads + num_kv_heads;

        let qkv = project(&self.in_proj, x).reshape([
            batch,
            seq_len,
            num_qk_heads + num_kv_heads,
            self.head_dim,
        ]);
        let value = qkv.clone().slice(s![.., .., num_qk_heads.., ..]);
        let query_key = qkv.slice(s![.., .., ..num_qk_heads, ..]);
        let query_key = match &self.rotary {
            Some(rotary) => rotary.forward(query_key, positions),
            None => query_key,
        };
        Projected {
            query: query_key.clone().slice(s![.., .., ..num_heads, ..]),
            key: query_key.slice(s![.., .., num_heads.., ..]),
            value,
        }
    }

    /// [`project`](Self::project) with the heads side by side, each `[batch, seq_len, its heads * head_dim]`: parts of the
    /// projection in place, whose gradients are put together once.
    fn project_flat(&self, x: Tensor<3>, positions: Tensor<2, Int>) -> [Tensor<3>; 3] {
        let [batch, seq_len, _] = x.dims();
        let [queries, keys] = [self.num_heads, self.num_kv_heads].map(|it| it * self.head_dim);
        let qkv = project(&self.in_proj, x);
        let Some(rotary) = &self.rotary else {
            return thirds(qkv, queries, keys);
        };
        let [query_key, value] = halves(qkv, queries + keys);
        let num_qk_heads = self.num_heads + self.num_kv_heads;
        let apart = query_key.reshape([batch, seq_len, num_qk_heads, self.head_dim]);
        let rotated = rotary.forward(apart, positions);
        let [query, key] = halves(rotated.reshape([batch, seq_len, queries + keys]), queries);
        [query, key, value]
    }

    /// Causal attention of the last tokens over all tokens.
    ///
    /// - query: `[batch, seq_len, num_heads, head_dim]`
    /// - key, value: `[batch, num_kv_heads, seen, head_dim]`, `seen >= seq_len`
    /// - mask: `true` where to look away, `[batch, num_heads, seq_len, seen]`
    /// - output: `[batch, seq_len, num_heads * head_dim]`
    fn attend(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        mask: Option<Tensor<4, Bool>>,
    ) -> Tensor<3> {
        let [batch, seq_len, num_heads, head_dim] = query.dims();
        let query = query.swap_dims(1, 2);
        let (key, value) = match shares_heads(&query, mask.as_ref()) {
            true => (key, value),
            false => (self.repeat_heads(key), self.repeat_heads(value)),
        };
        causal_attention(query, key, value, mask)
            .swap_dims(1, 2)
            .reshape([batch, seq_len, num_heads * head_dim])
    }

    /// `[batch, num_kv_heads, seen, head_dim]` to `[batch, num_heads, seen, head_dim]`; only some
    /// backends' attention accepts fewer key than query heads.
    fn repeat_heads(&self, tensor: Tensor<4>) -> Tensor<4> {
        let [batch, num_kv_heads, seen, head_dim] = tensor.dims();
        let group = self.num_heads / num_kv_heads;
        if group == 1 {
            return tensor;
        }
        tensor
            .unsqueeze_dim::<5>(2)
            .expand([batch, num_kv_heads, group, seen, head_dim])
            .reshape([batch, self.num_heads, seen, head_dim])
    }
}

/// `[1, seq_len]`: `start, start + 1, ..`
fn positions(start: usize, seq_len: usize, device: &Device) -> Tensor<2, Int> {
    Tensor::<1, Int>::arange(start as i64..(start + seq_len) as i64, device).unsqueeze()
}

impl ModuleDisplay for Attention {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let rotary_dim = self.rotary.as_ref().map_or(0, RotaryEmbedding::rotary_dim);
        content
            .add("d_model", &self.d_model())
            .add("num_heads", &self.num_heads)
            .add("num_kv_heads", &self.num_kv_heads)
            .add("head_dim", &self.head_dim)
            .add("rotary_dim", &rotary_dim)
            .optional()
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
