//! What a configuration of a language model may say.

use super::LanguageModelConfig;
use crate::block::MixerKind;
use crate::limits::{check_bounds, check_positive, check_sizes};

impl LanguageModelConfig {
    /// What keeps [`LanguageModelConfig::init`] from working, naming the field. Of the mixers, those of the pattern are
    /// looked at.
    pub fn validate(&self) -> Result<(), String> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("n_layer", self.n_layer),
            ("pattern", self.pattern.len()),
        ])?;
        check_bounds(&[
            ("pad_vocab_size_multiple", self.pad_vocab_size_multiple),
            ("max_positions", self.max_positions),
        ])?;
        check_positive("norm_epsilon", self.norm_epsilon)?;
        let widths = [
            ("mamba1", self.mamba1.d_model),
            ("mamba2", self.mamba2.d_model),
            ("attention", self.attention.d_model),
            ("mlp", self.mlp.d_model),
        ];
        for (field, width) in widths {
            if width != 0 && width != self.d_model {
                return Err(format!(
                    "{field}.d_model must be left out or equal d_model = {}, got {width}",
                    self.d_model
                ));
            }
        }
        if self.pattern.contains(&MixerKind::Mamba1) {
            let mut mamba1 = self.mamba1.clone();
            mamba1.d_model = self.d_model;
            mamba1.validate().map_err(|it| format!("mamba1.{it}"))?;
        }
        if self.pattern.contains(&MixerKind::Mamba2) {
            let mut mamba2 = self.mamba2.clone();
            mamba2.d_model = self.d_model;
            mamba2.validate().map_err(|it| format!("mamba2.{it}"))?;
        }
        if self.pattern.contains(&MixerKind::Attention) {
            self.validate_attention()?;
        }
        if self.pattern.contains(&MixerKind::Mlp) {
            let mut mlp = self.mlp.clone();
            mlp.d_model = self.d_model;
            check_sizes(&[("mlp.d_hidden", mlp.d_hidden())])?;
        }
        Ok(())
    }

    fn validate_attention(&self) -> Result<(), String> {
        let (attention, heads) = (&self.attention, self.attention.num_heads);
        check_sizes(&[("attention.num_heads", heads)])?;
        if attention.head_dim.is_none() && !self.d_model.is_multiple_of(heads) {
            return Err(format!(
                "attention.num_heads = {heads} must divide d_model = {}",
                self.d_model
            ));
        }
        let kv_heads = attention.num_kv_heads();
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "attention.num_kv_heads = {kv_heads} must divide num_heads = {heads}"
            ));
        }
        let head_dim = attention.head_dim.unwrap_or(self.d_model / heads);
        check_sizes(&[("attention.head_dim", head_dim)])?;
        let rotary_dim = attention.rotary_dim;
        if !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            return Err(format!(
                "attention.rotary_dim must be even and at most the {head_dim} channels of a head, got {rotary_dim}"
            ));
        }
        match rotary_dim {
            0 => Ok(()),
            _ => check_positive("attention.rotary_base", attention.rotary_base),
        }
    }
}
