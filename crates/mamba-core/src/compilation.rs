//! How the kernels of GPU backends are compiled: what is kept on disk, and what is told.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static KEPT: OnceLock<PathBuf> = OnceLock::new();

/// The target of the `log` record (level info) that each compilation of a kernel makes after [`configure`].
pub const LOG_TARGET: &str = "cubecl::compilation";

/// Sets up the compilation of kernels for the whole process; for a program, before it starts its first device.
///
/// Every compilation makes one record under [`LOG_TARGET`]. With the feature `kernel-cache`, compiled CUDA, ROCm and
/// SPIR-V kernels and the choices of tuning are kept in a database in `folder`, where that can be written; see
/// [`kept_in`]. Several processes may share it. A kernel is found by its identity and the build of the program,
/// else by its generated source; kernels of one architecture never serve another, nor, on Linux, those of one NVIDIA
/// driver another. What is no longer asked for stays until the database is deleted.
///
/// A `cubecl.toml` or `burn.toml` of the user and the variables of CubeCL come first where they set a log, an
/// environment or its path. Without a GPU backend this does nothing.
#[allow(unused_variables)] // a build without GPUs compiles nothing
pub fn configure(folder: Option<&Path>) {
    #[cfg(feature = "cube")]
    if let Some(path) = cube::configure(folder) {
        // The configuration is accepted once, and so is this.
        let _ = KEPT.set(path);
    }
}

/// The database of compiled kernels, where [`configure`] was called and this build keeps them.
pub fn kept_in() -> Option<&'static Path> {
    KEPT.get().map(PathBuf::as_path)
}

#[cfg(feature = "cube")]
mod cube {
    use std::path::{Path, PathBuf};

    use burn_cubecl::cubecl::config::compilation::CompilationLogLevel;
    use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

    pub(super) fn configure(folder: Option<&Path>) -> Option<PathBuf> {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        let logger = &mut config.compilation.logger;
        if matches!(logger.level, CompilationLogLevel::Disabled) {
            logger.level = CompilationLogLevel::Basic;
        }
        // Info is its default.
        logger.log.get_or_insert_default();
        let kept = keep(&mut config, folder);
        // It is too late once a device has started.
        CubeClRuntimeConfig::try_set(config).then_some(kept)?
    }

    #[cfg(feature = "kernel-cache")]
    fn keep(config: &mut CubeClRuntimeConfig, folder: Option<&Path>) -> Option<PathBuf> {
        use burn_cubecl::cubecl::config::cache::CacheConfig;
        use burn_cubecl::cubecl::environment::{DEFAULT, file_name};
        use burn_cubecl::cubecl::records::RecordLevel;

        let environment = &mut config.environment;
        // A diary of compilations in the same database, which nobody reads.
        environment.records.level = RecordLevel::Off;
        if let (CacheConfig::Target, Some(folder)) = (&environment.path, folder) {
            environment.path = CacheConfig::Directory(folder.into());
        }
        if environment.name == DEFAULT
            && let Some(driver) = nvidia_driver()
        {
            environment.name = format!("nvidia-{driver}");
        }
        let root = environment.path.root();
        // CubeCL panics where it finds a kernel of another build in a database that it cannot write.
        let writable = folder.is_some() && is_writable(&root);
        config.compilation.cache = writable;
        config.autotune.disable_cache |= !writable;
        writable.then(|| root.join(file_name(&config.environment.name)))
    }

    #[cfg(not(feature = "kernel-cache"))]
    fn keep(_config: &mut CubeClRuntimeConfig, _folder: Option<&Path>) -> Option<PathBuf> {
        None
    }

    #[cfg(feature = "kernel-cache")]
    fn is_writable(folder: &Path) -> bool {
        let probe = folder.join(format!(".probe-{}", std::process::id()));
        let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&probe, []));
        written.and_then(|()| std::fs::remove_file(probe)).is_ok()
    }

    /// The version of the driver: one may refuse what was compiled for a newer one, as on another machine that
    /// shares the folder.
    #[cfg(feature = "kernel-cache")]
    fn nvidia_driver() -> Option<String> {
        let version = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
        Some(version.trim().into())
    }
}

#[cfg(all(test, feature = "kernel-cache"))]
mod tests {
    use super::*;
    use burn_cubecl::cubecl::environment;

    #[test]
    fn compiled_kernels_are_kept_in_the_folder_given() {
        let folder = std::env::temp_dir().join(format!("mamba-kernels-{}", std::process::id()));
        configure(Some(&folder));
        let database = kept_in().expect("nothing was configured before");
        assert_eq!(database.parent(), Some(folder.as_path()));
        assert_eq!(environment::path(), database);
        std::fs::remove_dir(folder).expect("no probe is left behind");
    }
}
