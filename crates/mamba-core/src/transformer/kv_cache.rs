use burn::tensor::{Bool, Int, Tensor, TensorCreationOptions, assert_shape, s};

/// Tokens that an empty cache has room for.
const MIN_CAPACITY: usize = 64;

/// The keys and values of the tokens an attention layer has seen.
///
/// Tokens are written in place into buffers that double when they are full, so that decoding one
/// token costs one token's copy. Rows past `len` are zeros.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[batch, num_kv_heads, capacity, head_dim]`
    keys: Tensor<4>,
    /// `[batch, num_kv_heads, capacity, head_dim]`
    values: Tensor<4>,
    len: usize,
}

impl KvCache {
    /// A cache that has seen nothing, with room for the first tokens to come.
    ///
    /// `options` is the device, or the device and the type of the keys and values.
    pub fn empty(
        batch: usize,
        num_kv_heads: usize,
        head_dim: usize,
        options: impl Into<TensorCreationOptions>,
    ) -> Self {
        let (shape, options) = (
            [batch, num_kv_heads, MIN_CAPACITY, head_dim],
            options.into(),
        );
        Self {
            keys: Tensor::zeros(shape, options.clone()),
            values: Tensor::zeros(shape, options),
            len: 0,
        }
    }

    /// A cache that holds exactly these tokens. They are not copied.
    ///
    /// `keys`, `values`: `[batch, num_kv_heads, seq_len, head_dim]`
    pub(crate) fn from_tokens(keys: Tensor<4>, values: Tensor<4>) -> Self {
        let len = keys.dims()[2];
        Self { keys, values, len }
    }

    /// How many tokens it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has seen nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many tokens fit before the buffers grow.
    pub fn capacity(&self) -> usize {
        self.keys.dims()[2]
    }

    /// The size of both buffers in bytes, room for tokens to come included.
    pub fn num_bytes(&self) -> usize {
        [&self.keys, &self.values]
            .map(|buffer| buffer.shape().num_elements() * buffer.dtype().size())
            .iter()
            .sum()
    }

    /// Its `num_kv_heads` and `head_dim`.
    pub(crate) fn heads(&self) -> [usize; 2] {
        let [_, num_kv_heads, _, head_dim] = self.keys.dims();
        [num_kv_heads, head_dim]
    }

    /// The keys seen, `[batch, num_kv_heads, len, head_dim]`; not of an empty cache.
    pub(crate) fn keys(&self) -> Tensor<4> {
        self.keys.clone().narrow(2, 0, self.len)
    }

    /// The values seen, `[batch, num_kv_heads, len, head_dim]`; not of an empty cache.
    pub(crate) fn values(&self) -> Tensor<4> {
        self.values.clone().narrow(2, 0, self.len)
    }

    /// Writes the next tokens behind those it holds.
    ///
    /// `keys`, `values`: `[batch, num_kv_heads, seq_len, head_dim]`
    pub(super) fn append(self, keys: Tensor<4>, values: Tensor<4>) -> Self {
        let [batch, num_kv_heads, capacity, head_dim] = self.keys.dims();
        assert_shape!(keys, [batch, num_kv_heads, _, head_dim]);
        let (start, end) = (self.len, self.len + keys.dims()[2]);

        if self.is_empty() && end > capacity {
            return Self::from_tokens(keys, values);
        }

        // Owned all the way: a second handle on a buffer would turn each write into a copy of it.
        let write = |buffer: Tensor<4>, tokens: Tensor<4>| {
            // A cache begun in the weights' type, of a layer that computes in another.
            let buffer = match buffer.dtype() == tokens.dtype() {
                true => buffer,
                false => buffer.cast(tokens.dtype()),
            };
            let buffer = if end <= capacity {
                buffer
            } else {
                let shape = [batch, num_kv_heads, end.next_power_of_two(), head_dim];
                Tensor::zeros(shape, (&tokens.device(), tokens.dtype()))
                    .slice_assign(s![.., .., ..start, ..], buffer.narrow(2, 0, start))
            };
            buffer.slice_assign(s![.., .., start..end, ..], tokens)
        };
        Self {
            keys: write(self.keys, keys),
            values: write(self.values, values),
            len: end,
        }
    }

    /// Both whole buffers, and the mask of the rows past `len`, `[capacity]`, if there are any.
    pub(super) fn buffers(&self) -> (Tensor<4>, Tensor<4>, Option<Tensor<1, Bool>>) {
        let capacity = self.capacity();
        let unused = (self.len < capacity).then(|| {
            Tensor::<1, Int>::arange(0..capacity as i64, &self.keys.device())
                .greater_equal_elem(self.len as i64)
        });
        (self.keys.clone(), self.values.clone(), unused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    fn tokens(seq_len: usize, device: &Device) -> Tensor<4> {
        Tensor::random([2, 3, seq_len, 4], Distribution::Default, device)
    }

    #[test]
    fn appended_tokens_come_back_in_order_across_growth() {
        let device = Device::flex();
        let mut cache = KvCache::empty(2, 3, 4, &device);
        assert!(cache.is_empty());
        let (mut keys, mut values) = (Vec::new(), Vec::new());

        for seq_len in [1, 1, 60, 5, 1, 130] {
            let (k, v) = (tokens(seq_len, &device), tokens(seq_len, &device));
            keys.push(k.clone());
            values.push(v.clone());
            cache = cache.append(k, v);
        }

        assert_eq!(cache.len(), 198);
        assert_eq!(cache.capacity(), 256);
        assert_eq!(cache.num_bytes(), 2 * (2 * 3 * 256 * 4) * 4);
        let (keys, values) = (Tensor::cat(keys, 2), Tensor::cat(values, 2));
        cache.keys().to_data().assert_eq(&keys.to_data(), true);
        cache.values().to_data().assert_eq(&values.to_data(), true);
    }

    #[test]
    fn a_long_first_part_is_kept_as_it_is() {
        let device = Device::flex();
        let (k, v) = (tokens(100, &device), tokens(100, &device));
        let cache = KvCache::empty(2, 3, 4, &device).append(k.clone(), v);

        assert_eq!((cache.len(), cache.capacity()), (100, 100));
        let cache = cache.append(tokens(1, &device), tokens(1, &device));
        assert_eq!((cache.len(), cache.capacity()), (101, 128));
        cache
            .keys()
            .narrow(2, 0, 100)
            .to_data()
            .assert_eq(&k.to_data(), true);
    }

    #[test]
    fn a_copy_of_a_cache_is_not_changed_by_appending() {
        let device = Device::flex();
        let cache = KvCache::empty(2, 3, 4, &device).append(tokens(2, &device), tokens(2, &device));
        let before = cache.keys().to_data();
        let longer = cache.clone().append(tokens(1, &device), tokens(1, &device));

        assert_eq!((cache.len(), longer.len()), (2, 3));
        cache.keys().to_data().assert_eq(&before, true);
    }
}
