//! Fixtures: tensors that PyTorch computed, in `tests/fixtures`.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A row-major tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<T> {
    /// Size of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The entries, the last axis fastest.
    pub values: Vec<T>,
}

impl<T> Array<T> {
    /// # Panics
    ///
    /// Panics if `values` does not hold one entry for each index of `shape`.
    pub fn new(shape: &[usize], values: Vec<T>) -> Self {
        let expected: usize = shape.iter().product();
        assert!(
            values.len() == expected,
            "Array: shape {shape:?} needs {expected} values, got {}",
            values.len()
        );
        Self {
            shape: shape.to_vec(),
            values,
        }
    }
}

impl Array<f32> {
    /// The entries in double precision.
    pub fn to_f64(&self) -> Vec<f64> {
        self.values.iter().copied().map(f64::from).collect()
    }
}

/// The tensors and settings of one fixture file.
#[derive(Clone, Debug)]
pub struct Fixture {
    name: String,
    floats: HashMap<String, Array<f32>>,
    ints: HashMap<String, Array<i64>>,
    settings: HashMap<String, String>,
}

impl Fixture {
    /// Reads `tests/fixtures/<name>.safetensors`.
    ///
    /// # Panics
    ///
    /// Panics if the file is missing, is no safetensors file, or holds a dtype other than F32 and
    /// I64.
    pub fn load(name: &str) -> Self {
        let path = path(name);
        let bytes = fs::read(&path).unwrap_or_else(|error| {
            panic!(
                "cannot read {}: {error}; run tests/fixtures/make_fixtures.py",
                path.display()
            )
        });
        let (header, tensors) = SafeTensors::read_metadata(&bytes)
            .and_then(|(_, header)| Ok((header, SafeTensors::deserialize(&bytes)?)))
            .unwrap_or_else(|error| {
                panic!("{} is not a safetensors file: {error}", path.display())
            });

        let mut fixture = Self {
            name: name.to_owned(),
            floats: HashMap::new(),
            ints: HashMap::new(),
            settings: header.metadata().clone().unwrap_or_default(),
        };
        for (key, tensor) in tensors.iter() {
            let (key, shape) = (key.to_owned(), tensor.shape());
            match tensor.dtype() {
                Dtype::F32 => {
                    let values = entries(&tensor, f32::from_le_bytes);
                    fixture.floats.insert(key, Array::new(shape, values));
                }
                Dtype::I64 => {
                    let values = entries(&tensor, i64::from_le_bytes);
                    fixture.ints.insert(key, Array::new(shape, values));
                }
                other => panic!("fixture {name}: {key} must be F32 or I64, got {other:?}"),
            }
        }
        fixture
    }

    /// The float tensor `key`.
    ///
    /// # Panics
    ///
    /// Panics if the fixture has no such tensor.
    #[track_caller]
    pub fn floats(&self, key: &str) -> &Array<f32> {
        self.find_floats(key)
            .unwrap_or_else(|| panic!("fixture {} has no float tensor {key}", self.name))
    }

    /// The integer tensor `key`.
    ///
    /// # Panics
    ///
    /// Panics if the fixture has no such tensor.
    #[track_caller]
    pub fn ints(&self, key: &str) -> &Array<i64> {
        self.find_ints(key)
            .unwrap_or_else(|| panic!("fixture {} has no integer tensor {key}", self.name))
    }

    /// The float tensor `key`, if the fixture has it.
    pub fn find_floats(&self, key: &str) -> Option<&Array<f32>> {
        self.floats.get(key)
    }

    /// The integer tensor `key`, if the fixture has it.
    pub fn find_ints(&self, key: &str) -> Option<&Array<i64>> {
        self.ints.get(key)
    }

    /// The names of all float tensors, sorted.
    pub fn float_names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.floats.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// All settings, as they are written.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The setting `key`, such as a dimension or a flag.
    ///
    /// # Panics
    ///
    /// Panics if the fixture has no such setting or it is no `T`.
    #[track_caller]
    pub fn setting<T: FromStr>(&self, key: &str) -> T {
        let value = self.settings.get(key);
        let value = value.unwrap_or_else(|| panic!("fixture {} has no setting {key}", self.name));
        value.parse().unwrap_or_else(|_| {
            let wanted = std::any::type_name::<T>();
            panic!(
                "fixture {}: {key} = {value} is not of type {wanted}",
                self.name
            )
        })
    }
}

/// Where the fixture `name` lies.
pub fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.safetensors"))
}

/// The names of all fixtures that begin with `prefix`, sorted.
///
/// # Panics
///
/// Panics if there is none.
#[track_caller]
pub fn names(prefix: &str) -> Vec<String> {
    let folder = folder();
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("the folder should be readable").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "safetensors")
        })
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| name.starts_with(prefix))
        .collect();
    assert!(
        !names.is_empty(),
        "no fixture in {} begins with {prefix:?}; run make_fixtures.py there",
        folder.display()
    );
    names.sort_unstable();
    names
}

/// Where all fixtures lie.
pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures"))
}

fn entries<T, const SIZE: usize>(
    tensor: &TensorView<'_>,
    from_le_bytes: fn([u8; SIZE]) -> T,
) -> Vec<T> {
    let (entries, _) = tensor.data().as_chunks::<SIZE>();
    entries.iter().copied().map(from_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "no_such.safetensors")]
    fn a_missing_fixture_is_named() {
        Fixture::load("no_such");
    }

    #[test]
    #[should_panic(expected = "fixture selective_scan_plain has no float tensor no_such")]
    fn a_missing_tensor_is_named() {
        Fixture::load("selective_scan_plain").floats("no_such");
    }

    #[test]
    #[should_panic(expected = "fixture selective_scan_plain has no setting no_such")]
    fn a_missing_setting_is_named() {
        Fixture::load("selective_scan_plain").setting::<usize>("no_such");
    }

    #[test]
    fn settings_keep_their_types() {
        let fixture = Fixture::load("mamba1_block_odd");
        assert_eq!(fixture.setting::<usize>("d_model"), 12);
        assert!(fixture.setting::<bool>("conv_bias"));
    }
}
