//! Why ONNX Runtime does not load a model, in words that name the fault and the fix.
//!
//! Invariant: names and versions come from the model's own file where it has them, from the library's text only what no
//! file can say (how far the library reaches). The library's text itself goes to the log.

use super::library::one_line;
use crate::model::onnx::OnnxFile;
use crate::model::operators::between;

/// What to do about a graph that contradicts itself.
const CHECK: &str = "export the model again, or look for the fault with onnx.checker.check_model(PATH, full_check=True)";

/// What is known of a model that was not loaded.
pub(super) struct Facts<'a> {
    pub(super) ir_version: i64,
    /// Operator-set versions by domain.
    pub(super) opset: &'a dyn Fn(&str) -> Option<i64>,
    /// Whether the graph has an operator: its domain and its name.
    pub(super) has: &'a dyn Fn(&str, &str) -> bool,
    /// The version of ONNX Runtime.
    pub(super) library: &'a str,
}

/// Why the library refused `file` with `text`.
pub(super) fn explain(text: &str, file: &OnnxFile, library: &str) -> String {
    explain_by(
        text,
        &Facts {
            ir_version: file.ir_version,
            opset: &|domain| file.opsets.get(domain).copied(),
            has: &|domain, name| file.operators.has(domain, name),
            library,
        },
    )
}

fn explain_by(text: &str, facts: &Facts<'_>) -> String {
    let library = facts.library;
    let line = one_line(text);
    let versions = ir_version(&line, facts).or_else(|| operator_set(&line, facts));
    if let Some(reason) = versions.or_else(|| unknown_operator(&line, facts)) {
        return reason;
    }
    if let Some(operator) = between(&line, "Op registered for ", " is deprecated") {
        return format!(
            "operator {operator} is not part of its operator set any more; export the model again, for an operator set that has it"
        );
    }
    if let Some(domain) = between(&line, "No opset import for domain '", "'") {
        return format!(
            "it uses operators of the domain '{domain}' without saying of which operator set; {CHECK}"
        );
    }
    if let Some(operator) = between(&line, "Could not find an implementation for ", "(") {
        return format!(
            "ONNX Runtime {library} cannot compute operator {operator} with the datatypes that this model gives it on this device; export the model with others, such as FP32"
        );
    }
    if let Some(datatype) = between(&line, "MLDataType for: ", " is not currently registered") {
        return format!(
            "it uses the datatype {datatype}, which ONNX Runtime {library} does not have; export the model with others, such as FP32"
        );
    }
    if let Some((_, fault)) = line.split_once("Type Error: ") {
        return format!("datatypes in its graph do not fit each other ({fault}); {CHECK}");
    }
    if let Some((_, fault)) = line.split_once("[ShapeInferenceError] ") {
        let operator = between(&line, "Op (", ")").unwrap_or("an operator");
        return format!(
            "shapes in its graph do not fit each other (at {operator}: {fault}); {CHECK}"
        );
    }
    if line.contains("xternal data") || line.contains("xternal initializer") {
        return format!(
            "its external data does not fit it ({line}); copy the model with all its files again"
        );
    }
    let fault = ["This is an invalid model. ", "Invalid model. ", "Error: "]
        .iter()
        .fold(line.as_str(), |line, start| line.trim_start_matches(start));
    if fault.len() < line.len() {
        let fault = fault
            .rsplit_once(" , Error ")
            .map_or(fault, |(_, fault)| fault);
        let fault = fault.trim_end_matches('.');
        return format!("its graph is not valid ({fault}); {CHECK}");
    }
    format!("ONNX Runtime {library} says: {line}")
}

fn ir_version(line: &str, facts: &Facts<'_>) -> Option<String> {
    let (_, most) = line.split_once("max supported IR version: ")?;
    let most = number(most)?;
    Some(format!(
        "its IR version is {}, and ONNX Runtime {} reads {most} at most; save it with an older onnx package (or set model.ir_version = {most} in Python and save it), or use a newer ONNX Runtime",
        facts.ir_version, facts.library
    ))
}

fn operator_set(line: &str, facts: &Facts<'_>) -> Option<String> {
    let (_, rest) = line.split_once("official support for domain ")?;
    let (domain, rest) = rest.split_once(" is till opset ")?;
    let most = number(rest)?;
    let asked = (facts.opset)(domain)?;
    let example = match domain {
        "ai.onnx" => format!(" (torch.onnx.export(..., opset_version={most}))"),
        "ai.onnx.ml" => format!(" (skl2onnx.to_onnx(..., target_opset={{'ai.onnx.ml': {most}}}))"),
        _ => String::new(),
    };
    Some(format!(
        "it needs operator set {asked} of {domain}, and ONNX Runtime {} has {most} at most; export it for an older one{example}, or use a newer ONNX Runtime",
        facts.library
    ))
}

/// An operator that the library does not have.
fn unknown_operator(line: &str, facts: &Facts<'_>) -> Option<String> {
    if let Some(rest) = line.strip_prefix("Fatal error: ") {
        let (name, _) = rest.split_once('(')?;
        let (domain, operator) = name.rsplit_once(':')?;
        return (facts.has)(domain, operator).then(|| foreign(domain, operator, facts.library));
    }
    let (_, rest) = line.split_once("No Op registered for ")?;
    let (operator, rest) = rest.split_once(" with domain_version of ")?;
    let version = number(rest)?;
    (facts.has)("ai.onnx", operator).then(|| {
        format!(
            "operator {operator} is not in operator set {version} of ai.onnx; export the model for an operator set that has it, or with standard operators only"
        )
    })
}

/// Why an operator of a domain other than the standard's is not there.
fn foreign(domain: &str, operator: &str, library: &str) -> String {
    let (what, fix) = match domain {
        "ai.onnx.contrib" => (
            "a custom operator of onnxruntime-extensions",
            "export the model without the steps before and after it, and make those in the client",
        ),
        "com.microsoft" => (
            "an operator that this ONNX Runtime does not have",
            "use a newer ONNX Runtime, or export the model with standard operators",
        ),
        "ai.onnx.preview.training" | "ai.onnx.training" => {
            ("an operator for training", "export the model for inference")
        }
        "org.pytorch.aten" | "aten" => (
            "an operator of PyTorch that was not translated",
            "export the model with operators that ONNX has",
        ),
        _ => (
            "a custom operator",
            "export the model with standard operators",
        ),
    };
    format!(
        "operator {operator} of the domain '{domain}' is {what} (ONNX Runtime {library}, and this server loads no libraries of custom operators); {fix}"
    )
}

/// The number at the start of `text`.
fn number(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text.get(..end.unwrap_or(text.len()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        let facts = Facts {
            ir_version: 99,
            opset: &|domain| match domain {
                "ai.onnx" => Some(98),
                "ai.onnx.ml" | "com.microsoft" => Some(99),
                _ => None,
            },
            has: &|domain, name| {
                let known = [
                    ("ai.onnx", "Hologram"),
                    ("com.acme", "Frob"),
                    ("ai.onnx.contrib", "StringUpper"),
                ];
                known.contains(&(domain, name))
            },
            library: "1.31.1",
        };
        explain_by(text, &facts)
    }

    #[test]
    fn what_the_library_says_becomes_a_fault_and_a_fix() {
        for (text, parts) in [
            (
                "Load model failed:/onnxruntime_src/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const PathString&) Unsupported model IR version: 99, max supported IR version: 13",
                &[
                    "its IR version is 99",
                    "1.31.1 reads 13 at most",
                    "newer ONNX Runtime",
                ][..],
            ),
            (
                "/onnxruntime_src/core/graph/model_load_utils.h:46 void f(const std::unordered_map<int>&, bool) ONNX Runtime only *guarantees* support for models stamped with official released onnx opset versions. Opset 98 is under development. Current official support for domain ai.onnx is till opset 26.",
                &[
                    "operator set 98 of ai.onnx",
                    "has 26 at most",
                    "opset_version=26",
                ],
            ),
            (
                "Fatal error: ai.onnx.contrib:StringUpper(-1) is not a registered function/op",
                &[
                    "StringUpper",
                    "'ai.onnx.contrib'",
                    "onnxruntime-extensions",
                    "in the client",
                ],
            ),
            (
                "Fatal error: com.acme:Frob(-1) is not a registered function/op",
                &[
                    "Frob",
                    "'com.acme'",
                    "a custom operator",
                    "standard operators",
                ],
            ),
            (
                "This is an invalid model. In Node, (\"h\", Hologram, \"\", -1) : (\"x\": tensor(float),) -> (\"y\": tensor(float),) , Error No Op registered for Hologram with domain_version of 17",
                &["operator Hologram is not in operator set 17"],
            ),
            (
                "This is an invalid model. In Node, (\"\", Upsample, \"\", -1) : () -> () , Error Op registered for Upsample is deprecated in domain_version of 17",
                &["Upsample is not part of its operator set any more"],
            ),
            (
                "This is an invalid model. In Node, () : () -> () , Error No opset import for domain 'com.acme'",
                &["domain 'com.acme' without saying", "onnx.checker"],
            ),
            (
                "Could not find an implementation for Relu(14) node with name ''",
                &["cannot compute operator Relu with the datatypes", "FP32"],
            ),
            (
                "Type Error: Type parameter (T) of Optype (Add) bound to different types (tensor(float) and tensor(int64) in node ().",
                &["datatypes in its graph", "tensor(int64)", "onnx.checker"],
            ),
            (
                "Node () Op (MatMul) [ShapeInferenceError] Incompatible dimensions",
                &["at MatMul: Incompatible dimensions", "onnx.checker"],
            ),
            (
                "This is an invalid model. Error: the graph is not acyclic.",
                &["its graph is not valid (the graph is not acyclic)"],
            ),
            (
                "This is an invalid model. In Node, (\"\", Cast, \"\", -1) : () -> () , Error Required attribute 'to' is missing.",
                &["not valid (Required attribute 'to' is missing)"],
            ),
            (
                "Current official support for domain ai.onnx.ml is till opset 5.",
                &["operator set 99 of ai.onnx.ml", "{'ai.onnx.ml': 5}"],
            ),
            (
                "Current official support for domain com.microsoft is till opset 1.",
                &["99 of com.microsoft", "export it for an older one, or"],
            ),
            (
                "Exception during loading: MLDataType for: tensor(complex64) is not currently registered or supported",
                &["the datatype tensor(complex64)", "such as FP32"],
            ),
            (
                "Something else",
                &["ONNX Runtime 1.31.1 says: Something else"],
            ),
        ] {
            let told = told(text);
            for part in parts {
                assert!(told.contains(part), "{text}: {told}");
            }
            for library in ["onnxruntime_src", "-1)", "std::", "Fatal error"] {
                assert!(!told.contains(library), "{told}");
            }
        }
    }
}
