//! What configurations may ask for.

/// The largest size of an axis: products of two still fit in 64 bits, also when several are added.
const MOST: usize = 1 << 31;

/// Refuses sizes of 0, and those whose products no number holds, by the names of their fields.
pub(crate) fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), String> {
    match sizes.iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => Err(format!("{field} must be at least 1")),
        None => check_bounds(sizes),
    }
}

/// As [`check_sizes`], for sizes that may be 0.
pub(crate) fn check_bounds(sizes: &[(&str, usize)]) -> Result<(), String> {
    match sizes.iter().find(|(_, value)| *value > MOST) {
        Some((field, value)) => Err(format!("{field} must be at most {MOST}, got {value}")),
        None => Ok(()),
    }
}

/// Refuses initial time steps that are not between `dt_min` and `dt_max`, two finite numbers above 0, or have no floor.
pub(crate) fn check_time_steps(dt_min: f64, dt_max: f64, floor: f64) -> Result<(), String> {
    if !(0.0 < dt_min && dt_min <= dt_max && dt_max.is_finite()) {
        return Err(format!(
            "dt_min must be above 0 and at most dt_max, which must be finite, got {dt_min} and {dt_max}"
        ));
    }
    if !(0.0 <= floor && floor.is_finite()) {
        return Err(format!(
            "dt_init_floor must be a finite number of at least 0, got {floor}"
        ));
    }
    Ok(())
}

/// Refuses a number that is not positive and finite.
pub(crate) fn check_positive(field: &str, value: f64) -> Result<(), String> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(format!("{field} must be positive and finite, got {value}")),
    }
}
