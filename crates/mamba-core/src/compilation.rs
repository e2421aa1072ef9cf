//! How the kernels of GPU backends are compiled: what is told.
//!
//! CubeCL 0.11 can keep compiled kernels on disk, with its feature `persistence`. On an H100 through CUDA a second start
//! then took a second instead of ten; but a larger model gave NaN or an illegal address from a fresh cache, and right
//! results without one. So it is off. The driver keeps what it makes of them in a cache of its own.

/// The target of the `log` record (level info) that each compilation of a kernel makes after [`configure`].
pub const LOG_TARGET: &str = "cubecl::compilation";

/// Lets every compilation of a kernel make one record under [`LOG_TARGET`]; for a program, before it starts its first
/// device.
///
/// A `cubecl.toml` or `burn.toml` of the user and the variables of CubeCL come first where they set a log. Without a GPU
/// backend this does nothing.
pub fn configure() {
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
        // It is too late once a device has started, and then kernels are not counted.
        CubeClRuntimeConfig::try_set(config);
    }
}
