//! The transformer baseline: causal attention with a key-value cache, and the gated or plain MLP.
//!
//! Three well-known forms come out of the same parts:
//!
//! | form | norm | positions | MLP |
//! |---|---|---|---|
//! | GPT-2 | `LayerNorm` | learned, added to the embedding | [`Activation::Gelu`] with bias |
//! | GPT-NeoX | `LayerNorm` | rotary over a share of each head | [`Activation::GeluExact`] with bias, beside the attention instead of behind it (`parallel_residual`) |
//! | Llama | `RmsNorm` | rotary (`rotary_dim = head_dim`) | [`Activation::SwiGlu`] without bias |

mod attention;
mod causal;
mod kv_cache;
mod mlp;
mod packing;
mod rotary;

pub use attention::{Attention, AttentionConfig};
pub use causal::causal_attention;
pub use kv_cache::KvCache;
pub use mlp::{Activation, Mlp, MlpConfig};
pub use rotary::{RotaryEmbedding, RotaryEmbeddingConfig};
