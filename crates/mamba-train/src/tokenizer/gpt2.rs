//! GPT-2's tokenizer, rebuilt from the ranks that the `tiktoken-rs` crate carries.
//!
//! `tiktoken` stores a rank for every byte string; the `tokenizers` crate wants the vocabulary in
//! its printable alphabet and the list of merges. A merge is recovered by encoding an entry with
//! only the entries before it: two parts remain, and they are the pair that was merged.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::cache::hex;

/// Byte strings with a rank; `<|endoftext|>` follows them.
const RANKS: u32 = 50_256;
const END_OF_TEXT: &str = "<|endoftext|>";

/// The tokenizer and the fingerprint of its byte strings.
pub(super) fn build() -> Result<(Tokenizer, String)> {
    let carried = tiktoken_rs::r50k_base()?;
    let mut entries: Vec<Vec<u8>> = Vec::with_capacity(RANKS as usize);
    let mut digest = Sha256::new();
    for rank in 0..RANKS {
        let bytes = carried
            .decode_bytes(&[rank])
            .map_err(|error| anyhow!("{error}"))?;
        digest.update((bytes.len() as u32).to_le_bytes());
        digest.update(&bytes);
        entries.push(bytes);
    }
    let ranks: HashMap<&[u8], u32> = entries.iter().map(Vec::as_slice).zip(0..).collect();
    ensure!(ranks.len() == entries.len(), "an entry appears twice");

    let alphabet = alphabet();
    let printable = |bytes: &[u8]| -> String {
        bytes
            .iter()
            .map(|&byte| alphabet[usize::from(byte)])
            .collect()
    };
    let mut merges = Vec::with_capacity(entries.len());
    for (bytes, rank) in entries.iter().zip(0..).filter(|(bytes, _)| bytes.len() > 1) {
        let middle = last_merge(bytes, rank, &ranks)
            .with_context(|| format!("entry {rank} is not a merge of two earlier ones"))?;
        merges.push((printable(&bytes[..middle]), printable(&bytes[middle..])));
    }
    let mut vocab: Vocab = entries
        .iter()
        .map(|bytes| printable(bytes))
        .zip(0..)
        .collect();
    vocab.insert(END_OF_TEXT.into(), RANKS);

    let model = BPE::builder().vocab_and_merges(vocab, merges).build();
    let mut tokenizer = Tokenizer::new(model.map_err(|error| anyhow!(error))?);
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level))
        .add_special_tokens([AddedToken::from(END_OF_TEXT, true)])
        .map_err(|error| anyhow!(error))?;
    Ok((tokenizer, hex(&digest.finalize())))
}

/// Where `bytes` splits into the two parts whose merge is `rank`.
fn last_merge(bytes: &[u8], rank: u32, ranks: &HashMap<&[u8], u32>) -> Option<usize> {
    // The starts of the parts, and the end of the last.
    let mut bounds: Vec<usize> = (0..=bytes.len()).collect();
    while bounds.len() > 3 {
        let (_, part) = bounds
            .windows(3)
            .enumerate()
            .filter_map(|(i, part)| Some((*ranks.get(&bytes[part[0]..part[2]])?, i)))
            .filter(|&(merged, _)| merged < rank)
            .min()?;
        bounds.remove(part + 1);
    }
    Some(bounds[1])
}

/// GPT-2's printable character for each byte: itself where it prints, else one from U+0100 on.
fn alphabet() -> [char; 256] {
    let mut stand_in = 0x100..;
    std::array::from_fn(|byte| match byte as u8 {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte as u8),
        _ => stand_in
            .next()
            .and_then(char::from_u32)
            .unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_alphabet_is_the_one_of_the_tokenizers_crate() {
        let ours: HashSet<char> = alphabet().into_iter().collect();
        assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
        assert_eq!(
            (
                alphabet()[usize::from(b' ')],
                alphabet()[usize::from(b'\n')]
            ),
            ('Ġ', 'Ċ')
        );
    }

    #[test]
    fn the_first_merges_are_the_published_ones() {
        let entries: [&[u8]; 5] = [b" ", b"t", b"h", b" t", b"th"];
        let ranks = entries.into_iter().zip(0..).collect();
        assert_eq!(last_merge(b" t", 3, &ranks), Some(1));
        assert_eq!(last_merge(b" th", 5, &ranks), Some(2));
        assert_eq!(last_merge(b"xyz", 5, &ranks), None);
    }
}
