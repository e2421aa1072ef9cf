//! What the dashboard shows besides burn-train's own loss and learning rate.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorReadError};
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry,
};

use crate::hardware::resident_memory;

/// The input of [`TokenLossMetric`] and [`PerplexityMetric`].
pub struct TokenLossInput {
    /// Mean cross-entropy in nats. Shape `[1]`.
    pub loss: Tensor<1>,
    /// The tokens it is a mean over.
    pub tokens: usize,
}

/// The mean cross-entropy a token, in nats.
///
/// burn-train's own loss metric weighs every batch alike, also a shorter last one.
#[derive(Clone)]
pub struct TokenLossMetric {
    name: MetricName,
    state: NumericMetricState,
}

impl Default for TokenLossMetric {
    fn default() -> Self {
        Self {
            name: Arc::new("Loss".into()),
            state: NumericMetricState::new(),
        }
    }
}

impl TokenLossMetric {
    fn format(&self) -> FormatOptions {
        FormatOptions::new(self.name.clone()).precision(4)
    }
}

impl Metric for TokenLossMetric {
    type Input = TokenLossInput;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: false,
        }
        .into()
    }

    fn update(
        &mut self,
        input: &TokenLossInput,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        let loss = input.loss.clone().try_into_scalar::<f64>()?;
        self.state.update(loss, input.tokens);
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for TokenLossMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}

/// The exponential of the mean loss.
#[derive(Clone)]
pub struct PerplexityMetric {
    name: MetricName,
    loss: TokenLossMetric,
}

impl Default for PerplexityMetric {
    fn default() -> Self {
        Self {
            name: Arc::new("Perplexity".into()),
            loss: TokenLossMetric::default(),
        }
    }
}

impl PerplexityMetric {
    fn entry(&self) -> SerializedEntry {
        let epoch = self.loss.state.running_value().current().exp();
        let batch = self.loss.state.current_value().current().exp();
        SerializedEntry::new(
            format!("epoch {epoch:.2} - batch {batch:.2}"),
            batch.to_string(),
        )
    }
}

impl Metric for PerplexityMetric {
    type Input = TokenLossInput;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: false,
        }
        .into()
    }

    fn update(
        &mut self,
        input: &TokenLossInput,
        metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        self.loss.update(input, metadata)?;
        Ok(self.entry())
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.entry())
    }

    fn clear(&mut self) {
        self.loss.clear();
    }
}

impl Numeric for PerplexityMetric {
    fn value(&self) -> Option<NumericEntry> {
        self.loss.value().map(exponential)
    }

    fn running_value(&self) -> Option<NumericEntry> {
        self.loss.running_value().map(exponential)
    }

    fn final_value(&self) -> NumericEntry {
        exponential(self.loss.final_value())
    }
}

fn exponential(entry: NumericEntry) -> NumericEntry {
    match entry {
        NumericEntry::Value(loss) => NumericEntry::Value(loss.exp()),
        NumericEntry::Final(loss) => NumericEntry::Final(loss.exp()),
        NumericEntry::Aggregated {
            aggregated_value,
            count,
        } => NumericEntry::Aggregated {
            aggregated_value: aggregated_value.exp(),
            count,
        },
    }
}

/// The input of [`ThroughputMetric`].
pub struct ThroughputInput {
    /// Tokens processed.
    pub tokens: usize,
    /// Seconds they took.
    pub seconds: f64,
}

/// Tokens trained on per second of computation.
#[derive(Clone)]
pub struct ThroughputMetric(Gauge);

impl Default for ThroughputMetric {
    fn default() -> Self {
        Self(Gauge::new("Tokens/s", None, true))
    }
}

/// Memory that the process holds, in MiB. Known on Linux only.
#[derive(Clone)]
pub struct MemoryMetric(Gauge);

impl Default for MemoryMetric {
    fn default() -> Self {
        Self(Gauge::new("Memory", Some("MiB"), false))
    }
}

/// A quantity read off at every step.
#[derive(Clone)]
struct Gauge {
    name: MetricName,
    attributes: NumericAttributes,
    state: NumericMetricState,
}

impl Gauge {
    fn new(name: &str, unit: Option<&str>, higher_is_better: bool) -> Self {
        Self {
            name: Arc::new(name.into()),
            attributes: NumericAttributes {
                unit: unit.map(Into::into),
                higher_is_better,
            },
            state: NumericMetricState::new(),
        }
    }

    fn format(&self) -> FormatOptions {
        let format = FormatOptions::new(self.name.clone()).precision(0);
        match &self.attributes.unit {
            Some(unit) => format.unit(unit),
            None => format,
        }
    }

    fn update(&mut self, value: Option<f64>) -> SerializedEntry {
        match value {
            Some(value) => self.state.update(value, 1),
            None => return SerializedEntry::not_available(self.attributes.unit.as_deref()),
        }
        self.state.compute_update(self.format())
    }
}

/// Everything of a metric over a [`Gauge`] that does not depend on what it reads.
macro_rules! impl_gauge {
    ($metric:ty, $input:ty, $read:expr) => {
        impl Metric for $metric {
            type Input = $input;

            fn name(&self) -> MetricName {
                self.0.name.clone()
            }

            fn attributes(&self) -> MetricAttributes {
                self.0.attributes.clone().into()
            }

            fn update(
                &mut self,
                input: &$input,
                _metadata: &MetricMetadata,
            ) -> Result<SerializedEntry, TensorReadError> {
                let read: fn(&$input) -> Option<f64> = $read;
                Ok(self.0.update(read(input)))
            }

            fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
                Ok(self.0.state.compute_final(self.0.format()))
            }

            fn clear(&mut self) {
                self.0.state.reset();
            }
        }

        impl Numeric for $metric {
            fn value(&self) -> Option<NumericEntry> {
                let value = self.0.state.current_value();
                value.current().is_finite().then_some(value)
            }

            fn running_value(&self) -> Option<NumericEntry> {
                let value = self.0.state.running_value();
                value.current().is_finite().then_some(value)
            }

            fn final_value(&self) -> NumericEntry {
                self.0.state.final_value()
            }
        }
    };
}

impl_gauge!(ThroughputMetric, ThroughputInput, |input| {
    (input.seconds > 0.0).then(|| input.tokens as f64 / input.seconds)
});

impl_gauge!(MemoryMetric, (), |_| {
    resident_memory().map(|bytes| bytes as f64 / (1 << 20) as f64)
});

#[cfg(test)]
mod tests {
    use super::*;
    use burn::data::dataloader::Progress;
    use burn::tensor::Device;

    fn metadata() -> MetricMetadata {
        MetricMetadata {
            progress: Progress::new(1, 1, None),
            iteration: None,
            lr: None,
        }
    }

    #[test]
    fn perplexity_is_the_exponential_of_the_mean_over_tokens() {
        let mut metric = PerplexityMetric::default();
        for (loss, tokens) in [(1.0, 3), (5.0, 1)] {
            let loss = Tensor::<1>::from_floats([loss], &Device::default());
            metric
                .update(&TokenLossInput { loss, tokens }, &metadata())
                .unwrap();
        }
        assert!((metric.value().unwrap().current() - 5f64.exp()).abs() < 1e-4);
        assert!((metric.final_value().current() - 2f64.exp()).abs() < 1e-4);
    }

    #[test]
    fn throughput_divides_tokens_by_seconds() {
        let mut metric = ThroughputMetric::default();
        assert!(metric.value().is_none());
        metric
            .update(
                &ThroughputInput {
                    tokens: 300,
                    seconds: 0.5,
                },
                &metadata(),
            )
            .unwrap();
        assert_eq!(metric.value().unwrap().current(), 600.0);
    }
}
