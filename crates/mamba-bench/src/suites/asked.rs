use anyhow::{Context, Result, ensure};

use super::{SUITES, Suite};

/// What stands for every suite.
const ALL: &str = "all";

/// A suite that a user asks for, and what is asked of it alone.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The suite.
    pub suite: &'static Suite,
    /// Lengths of its own; those of all suites if there are none.
    pub lengths: Vec<usize>,
    /// Batches of its own.
    pub batches: Vec<usize>,
}

impl Asked {
    /// `NAME`, `NAME:LENGTHS` or `NAME:BATCHESxLENGTHS`, such as `prefill:1x128,1024`, where the name may be `all`.
    ///
    /// # Errors
    ///
    /// If there is no such suite, or what follows is not of that form.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        let (name, sizes) = match text.split_once(':') {
            Some((name, sizes)) => (name, Some(sizes)),
            None => (text, None),
        };
        let (batches, lengths) = match sizes {
            None => (Vec::new(), Vec::new()),
            Some(sizes) => match sizes.split_once('x') {
                Some((batches, lengths)) => (numbers(text, batches)?, numbers(text, lengths)?),
                None => (Vec::new(), numbers(text, sizes)?),
            },
        };
        let suites: Vec<&Suite> = match name {
            ALL => SUITES.iter().collect(),
            name => {
                let suite = Suite::find(name)?;
                ensure!(
                    suite.batches || batches.is_empty(),
                    "`{text}`: {name} chooses its batches itself: leave out what is before the x"
                );
                vec![suite]
            }
        };
        let asked = |suite| Self {
            suite,
            lengths: lengths.clone(),
            batches: batches.clone(),
        };
        Ok(suites.into_iter().map(asked).collect())
    }
}

fn numbers(text: &str, list: &str) -> Result<Vec<usize>> {
    let number = |item: &str| {
        let number = item.parse().ok();
        number.filter(|&number| number > 0)
    };
    let numbers: Option<Vec<usize>> = list.split(',').map(number).collect();
    let numbers = numbers.with_context(|| {
        format!(
            "`{text}` asks for sizes that are none: expected SUITE:LENGTHS or SUITE:BATCHESxLENGTHS, such as \
             prefill:1024 or prefill:1x128,1024"
        )
    })?;
    ensure!(!numbers.is_empty(), "`{text}` names no sizes");
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (&'static str, Vec<usize>, Vec<usize>) {
        let mut asked = Asked::parse(text).unwrap();
        assert_eq!(asked.len(), 1, "{text}");
        let asked = asked.remove(0);
        (asked.suite.name, asked.batches, asked.lengths)
    }

    #[test]
    fn a_suite_comes_alone_with_lengths_or_with_batches_too() {
        assert_eq!(one("decode"), ("decode", vec![], vec![]));
        assert_eq!(one("decode:1024"), ("decode", vec![], vec![1024]));
        let sizes = ("prefill", vec![1, 8], vec![128, 1024]);
        assert_eq!(one("prefill:1,8x128,1024"), sizes);
        let names = Asked::parse("all:64").unwrap();
        assert!(
            names
                .iter()
                .map(|it| it.suite.name)
                .eq(SUITES.iter().map(|it| it.name))
        );
        assert!(names.iter().all(|it| it.lengths == [64]));
    }

    #[test]
    fn what_is_no_size_is_refused_with_what_is_one() {
        for text in [
            "prefill:",
            "prefill:0",
            "prefill:1x",
            "prefill:x64",
            "all:1e3",
            "prefill:1x2x3",
        ] {
            let error = Asked::parse(text).unwrap_err().to_string();
            assert!(
                error.contains(text) && error.contains("prefill:1x128,1024"),
                "{error}"
            );
        }
        let error = Asked::parse("kernels:2x64").unwrap_err().to_string();
        assert!(
            error.contains("kernels chooses its batches itself"),
            "{error}"
        );
        assert!(
            Asked::parse("speed:64")
                .unwrap_err()
                .to_string()
                .contains("`speed`")
        );
    }
}
