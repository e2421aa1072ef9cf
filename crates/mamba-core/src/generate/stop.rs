//! Texts that end a text.

/// Holds back text that may turn out to be the beginning of a stop text, wherever its pieces are cut.
///
/// ```
/// use mamba_core::StopFilter;
///
/// let mut text = StopFilter::new(["END".to_string()]);
/// assert_eq!(text.push("one E"), "one ");
/// assert_eq!(text.push("lse, E"), "Else, ");
/// assert_eq!(text.push("ND two"), "");
/// assert!(text.stopped());
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopFilter {
    stop: Vec<String>,
    pending: String,
    stopped: bool,
}

impl StopFilter {
    /// Stops before the first of these texts, of which an empty one never comes.
    pub fn new(stop: impl IntoIterator<Item = String>) -> Self {
        Self {
            stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
            pending: String::new(),
            stopped: false,
        }
    }

    /// Whether a stop text has come: it and what follows are never given.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text that is certain once `piece` has come.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.pending.push_str(piece);
        let found = self
            .stop
            .iter()
            .filter_map(|stop| self.pending.find(stop.as_str()))
            .min();
        if let Some(at) = found {
            self.stopped = true;
            self.pending.truncate(at);
            return std::mem::take(&mut self.pending);
        }
        let held = self
            .pending
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| {
                self.stop
                    .iter()
                    .any(|stop| stop.starts_with(&self.pending[*at..]))
            })
            .unwrap_or(self.pending.len());
        let rest = self.pending.split_off(held);
        std::mem::replace(&mut self.pending, rest)
    }

    /// What was held back, once no more will come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(stop: &[&str], pieces: &[&str]) -> String {
        let mut filter = StopFilter::new(stop.iter().map(ToString::to_string));
        let mut text: String = pieces.iter().map(|piece| filter.push(piece)).collect();
        text.push_str(&filter.finish());
        text
    }

    #[test]
    fn a_stop_text_is_found_across_pieces_and_not_shown() {
        assert_eq!(filtered(&["END"], &["one E", "N", "D two"]), "one ");
        assert_eq!(filtered(&["\n", "END"], &["oneEND\ntwo"]), "one");
    }

    #[test]
    fn what_only_begins_like_a_stop_text_is_shown() {
        assert_eq!(filtered(&["END"], &["an E", "N", " of E"]), "an EN of E");
        assert_eq!(filtered(&["aab"], &["aa", "ab"]), "a");
        assert_eq!(filtered(&[], &["é", "à"]), "éà");
    }
}
