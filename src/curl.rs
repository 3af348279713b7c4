//! A request as a command for a shell.
//!
//! Invariant: the command sends exactly what was run, whatever names the model has.

use crate::runtime::example::{Example, ExampleInput, Value};
use crate::tensor::{DataType, element_count};

/// JSON is written out for at most this many elements, which a person can read.
const MAX_WRITTEN: usize = 64;

/// A command that sends `example` to the model called `name` of the server at `address`. `options` are further ones of
/// curl's, with a space before each.
#[must_use]
pub fn command(example: &Example, address: &str, name: &str, options: &str) -> String {
    let url = url(address, &format!("/v1/models/{name}:predict"));
    let url = format!("{url}{options}");
    let elements = |input: &ExampleInput| element_count(&input.shape).unwrap_or(usize::MAX);
    let all = example.inputs.iter().map(elements);
    if all.fold(0, usize::saturating_add) <= MAX_WRITTEN {
        let inputs = example.inputs.iter().map(|input| {
            let value = input.value.json(input.datatype);
            format!("{}: {}", quoted(&input.name), nested(&input.shape, &value))
        });
        let body = format!(
            "{{\"inputs\": {{{}}}}}",
            inputs.collect::<Vec<_>>().join(", ")
        );
        return format!(
            "curl {url} -H 'Content-Type: application/json' -d {}",
            for_shell(&body)
        );
    }
    if let [input] = example.inputs.as_slice()
        && let Some(size) = input.datatype.size()
        && input.value == Value::Zero
    {
        return format!(
            "head -c {} /dev/zero | curl {url} -H 'Content-Type: application/octet-stream' -H 'X-Tensor-Shape: {}' --data-binary @-",
            elements(input).saturating_mul(size),
            sizes(&input.shape)
        );
    }
    // Large inputs of one value each are shorter as a program than as a text.
    let inputs = example.inputs.iter().map(|input| {
        let value = match (input.datatype, input.value) {
            (DataType::Bool, Value::Zero) => "False".to_owned(),
            (DataType::Bool, _) => "True".to_owned(),
            (datatype, value) => value.json(datatype),
        };
        format!(
            "{}: f([{}], {value})",
            quoted(&input.name),
            sizes(&input.shape)
        )
    });
    let program = format!(
        "import json; f = lambda s, v: [f(s[1:], v)] * s[0] if s else v; print(json.dumps({{\"inputs\": {{{}}}}}))",
        inputs.collect::<Vec<_>>().join(", ")
    );
    format!(
        "python3 -c {} | curl {url} -H 'Content-Type: application/json' --data-binary @-",
        for_shell(&program)
    )
}

/// The URL of `path` at `address`. Shells may take the brackets of an IPv6 address for a pattern.
#[must_use]
pub fn url(address: &str, path: &str) -> String {
    let url = format!("{address}{path}");
    if url.contains('[') {
        return for_shell(&url);
    }
    url
}

fn sizes(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    sizes.join(",")
}

/// `text` as a string in JSON, and in Python.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `text` as one word for a shell.
fn for_shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Nested arrays of `value`.
fn nested(sizes: &[usize], value: &str) -> String {
    match sizes {
        [] => value.to_owned(),
        [count, rest @ ..] => format!("[{}]", vec![nested(rest, value); *count].join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(inputs: &[(&str, DataType, &[usize], Value)]) -> Example {
        let input =
            |(name, datatype, shape, value): &(&str, DataType, &[usize], Value)| ExampleInput {
                name: (*name).to_owned(),
                datatype: *datatype,
                shape: shape.to_vec(),
                value: *value,
            };
        Example {
            inputs: inputs.iter().map(input).collect(),
        }
    }

    #[test]
    fn a_short_request_is_written_out_and_a_large_one_is_made_by_a_program() {
        let short = example(&[
            ("it's", DataType::Fp32, &[1, 2], Value::Half),
            ("b", DataType::Bool, &[1], Value::One),
            ("s", DataType::Bytes, &[], Value::Half),
        ]);
        assert_eq!(
            command(&short, "h:1", "m", ""),
            "curl h:1/v1/models/m:predict -H 'Content-Type: application/json' -d '{\"inputs\": {\"it'\\''s\": [[0.5,0.5]], \"b\": [true], \"s\": \"a\"}}'"
        );
        let zeros = example(&[("x", DataType::Fp64, &[1, 100], Value::Zero)]);
        let text = command(&zeros, "h:1", "m", "");
        assert!(text.starts_with("head -c 800 /dev/zero | curl"), "{text}");
        assert!(text.contains("X-Tensor-Shape: 1,100"), "{text}");
        let ones = example(&[("x", DataType::Int64, &[1, 100], Value::One)]);
        let text = command(&ones, "h:1", "m", "");
        assert!(text.contains("f([1,100], 1)"), "{text}");
    }
}
