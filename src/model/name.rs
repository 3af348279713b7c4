//! What models and their versions may be called.
//!
//! Invariant: a name fits a segment of a URL's path and a metric's label.

/// What a model's name may be.
pub(super) const NAME_RULE: &str =
    "1 to 128 letters, digits, '.', '_' or '-', not beginning with '.'";

/// Whether a model can be called so: the name must be fit for a segment of a URL's path and for a metric's label.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain)
}

/// Whether a version can be called so. It is a metric's label, too.
pub(super) fn is_version(version: &str) -> bool {
    is_name(&version.replace('+', "-"))
}
