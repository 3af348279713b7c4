//! Which operator of a model refused a run, out of what ONNX Runtime says of it.
//!
//! Invariant: what is told are names that the model's author wrote, and no text of the library.

/// The longest name that is told.
const MAX_NAME_BYTES: usize = 100;

/// Who refused a run of which ONNX Runtime said `text`, as a part of a sentence: `operator Gather ('lookup')`.
pub(super) fn who(text: &str) -> Option<String> {
    // "Non-zero status code returned while running Gather node. Name:'lookup' Status Message: ..."
    let (_, rest) = text.split_once("while running ")?;
    let (operator, rest) = rest.split_once(" node.")?;
    let plain = |text: &str| {
        let fits = !text.is_empty() && text.len() <= MAX_NAME_BYTES;
        fits && !text
            .chars()
            .any(|character| character.is_control() || character == '\'')
    };
    if !plain(operator) || operator.contains(' ') {
        return None;
    }
    let name = rest
        .trim_start()
        .strip_prefix("Name:'")
        .and_then(|rest| rest.split_once('\''))
        .map(|(name, _)| name)
        .filter(|name| plain(name));
    Some(match name {
        Some(name) => format!("operator {operator} ('{name}')"),
        None => format!("operator {operator}"),
    })
}

/// Why made-up inputs show nothing of a model that refused them with `text`.
#[must_use]
pub fn of_made_up(text: &str) -> String {
    match who(text) {
        Some(operator) => format!("the model's {operator} refuses made-up values"),
        None => "the model refuses made-up values".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_that_refused_is_named_and_nothing_else_is_told() {
        for (text, told) in [
            (
                "Non-zero status code returned while running Gather node. Name:'lookup' Status Message: /x/y.cc idx=9",
                "the model's operator Gather ('lookup') refuses made-up values",
            ),
            (
                "Non-zero status code returned while running Reshape node. Name:'' Status Message: x",
                "the model's operator Reshape refuses made-up values",
            ),
            (
                "Got invalid dimensions for input: x",
                "the model refuses made-up values",
            ),
            (
                "while running /a b/c node. Name:'x'",
                "the model refuses made-up values",
            ),
        ] {
            assert_eq!(of_made_up(text), told);
        }
    }
}
