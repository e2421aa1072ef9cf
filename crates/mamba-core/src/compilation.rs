//! How the kernels of GPU backends are compiled: what is told, and what is kept on disk.
//!
//! # Kernels on disk
//!
//! With the feature `kernel-cache`, CubeCL keeps what it compiled for CUDA, ROCm and SPIR-V in a database, so that a second
//! start compiles nothing. It knows a kernel by a 128-bit hash of its type's name, its constants, its arguments' forms and
//! its cube, and by the build id of the program; not by its source.
//!
//! That hash was not enough. In CubeCL 0.11.3 an enum that derives `CubeLaunch` hashes the fields of its variant and
//! leaves out which variant it is (cubecl-macros 0.11.3, `generate/cube_type/generate_enum.rs`, line 430). So
//! `ComptimeOption`s `[Some(tensor), None]` and `[None, Some(tensor)]` hash alike. `==` tells them apart, which is enough in
//! memory; on disk the second kernel got the code of the first: a scan that starts from states was run as the scan that
//! writes checkpoints, which gave NaN or an illegal address. Every kernel of ours that takes several options is therefore
//! told which there are, as one constant (`present` in mamba-kernels, and a test that none was forgotten).
//!
//! Burn's and cubek's kernels were read for the same (0.22.1, 0.3.1). One such enum is left in those that we launch: how the
//! products' cubes are laid over a problem (`CubeMappingStrategy`). It follows from a constant that is hashed,
//! but for problems of more than 65,535 cubes along an axis, as of that many matrices at once, which no model here comes
//! to. Newer versions have to be read again.
//!
//! A database serves one build of the program, told by the length and the time of its file, and one NVIDIA driver; what is
//! in it has to match a digest that [`seal`] leaves beside it, or it is deleted when the next program starts.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

#[cfg(any(test, feature = "kernel-cache"))]
mod kept;

/// The target of the `log` record (level info) that each compilation of a kernel makes after [`configure`].
pub const LOG_TARGET: &str = "cubecl::compilation";

static KEPT: OnceLock<PathBuf> = OnceLock::new();

/// Sets up the compilation of kernels for the whole process; for a program, before it starts its first device.
///
/// Every compilation makes one record under [`LOG_TARGET`]. With the feature `kernel-cache`, compiled kernels and the
/// choices of tuning are kept in a database in `folder`, where that can be written; see [`kept_in`]. Several processes may
/// share it. Databases of other builds are deleted, but for the last few.
///
/// A `cubecl.toml` or `burn.toml` of the user and the variables of CubeCL come first where they set a log, an environment
/// or its path. Without a GPU backend this does nothing.
#[allow(unused_variables)] // a build without GPUs compiles nothing
pub fn configure(folder: Option<&Path>) {
    #[cfg(feature = "cube")]
    {
        use burn_cubecl::cubecl::config::compilation::CompilationLogLevel;
        use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        let logger = &mut config.compilation.logger;
        if matches!(logger.level, CompilationLogLevel::Disabled) {
            logger.level = CompilationLogLevel::Basic;
        }
        // Info is its default.
        logger.log.get_or_insert_default();
        #[cfg(feature = "kernel-cache")]
        let database = keep(&mut config, folder);
        #[cfg(not(feature = "kernel-cache"))]
        let database = None;
        // It is too late once a device has started, and then kernels are neither counted nor kept.
        if let (true, Some(database)) = (CubeClRuntimeConfig::try_set(config), database) {
            let _ = KEPT.set(database);
        }
    }
}

/// The database of compiled kernels, where [`configure`] was called and this build keeps them.
pub fn kept_in() -> Option<&'static Path> {
    KEPT.get().map(PathBuf::as_path)
}

/// Vouches for the kernels kept so far: what was not vouched for is not read by the next program. For a program, once it
/// has compiled what it needs, and before it ends.
pub fn seal() {
    #[cfg(feature = "kernel-cache")]
    if let Some(database) = kept_in() {
        // A folder that became full or read-only costs the next start its kernels.
        if let Err(error) = kept::seal(database) {
            log::warn!("the compiled kernels are not kept: {error}");
        }
    }
}

#[cfg(feature = "kernel-cache")]
fn keep(
    config: &mut burn_cubecl::cubecl::config::CubeClRuntimeConfig,
    folder: Option<&Path>,
) -> Option<PathBuf> {
    use burn_cubecl::cubecl::config::cache::CacheConfig;
    use burn_cubecl::cubecl::environment::{DEFAULT, file_name};
    use burn_cubecl::cubecl::records::RecordLevel;

    let environment = &mut config.environment;
    // Whoever names an environment keeps it themselves.
    if environment.name != DEFAULT || !matches!(environment.path, CacheConfig::Target) {
        return None;
    }
    let kept = folder.and_then(|folder| {
        let name = kept::name()?;
        let database = folder.join(file_name(&name));
        kept::prepare(folder, &database).then_some((folder, name, database))
    });
    config.compilation.cache = kept.is_some();
    config.autotune.disable_cache |= kept.is_none();
    config.throughput.disable_cache |= kept.is_none();
    let (folder, name, database) = kept?;
    // A diary of compilations in the same database, which nobody reads.
    environment.records.level = RecordLevel::Off;
    environment.path = CacheConfig::Directory(folder.into());
    environment.name = name;
    Some(database)
}

#[cfg(all(test, feature = "kernel-cache"))]
mod tests {
    use super::*;
    use burn_cubecl::cubecl::environment;

    #[test]
    fn compiled_kernels_are_kept_in_the_folder_given() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("kernels");
        configure(Some(&folder));
        let database = kept_in().expect("nothing was configured before");
        assert_eq!(database.parent(), Some(folder.as_path()));
        assert_eq!(environment::path(), database);
        std::fs::remove_dir(folder).expect("no probe is left behind");
    }
}
