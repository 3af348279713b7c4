//! Files that are taken for ONNX models and are something else.
//!
//! Invariant: what is said of a file is told by its bytes, or, where those say nothing, by its name; and each has a fix.

use std::path::Path;

/// How much of a file's start, and of its end, is searched for words.
const SEARCHED: usize = 1 << 20;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impostor {
    /// With its article.
    pub what: &'static str,
    /// What to do.
    pub fix: &'static str,
}

const TENSORFLOW: &str =
    "convert it (python -m tf2onnx.convert --saved-model DIR --output model.onnx)";
const TORCH: &str = "export the model in Python (torch.onnx.export)";
const UNPACK: &str = "unpack it, and serve the .onnx file in it";
const TRANSFORMERS: &str = "export the model (optimum-cli export onnx --model NAME DIR)";

const PICKLE: &str =
    "convert the model in Python (skl2onnx.to_onnx, torch.onnx.export, or onnxmltools)";
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// What begins with these bytes.
const STARTS: &[(&[u8], &str, &str)] = &[
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which stands for the file",
        "fetch the file itself (git lfs pull)",
    ),
    (b"\x1f\x8b", "compressed by gzip", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (b"\xfd7zXZ\0", "compressed by xz", UNPACK),
    (b"BZh", "compressed by bzip2", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"GGUF", "a GGUF file, weights for llama.cpp", TRANSFORMERS),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras writes it",
        "convert the model (python -m tf2onnx.convert --keras FILE --output model.onnx)",
    ),
    (
        b"\x93NUMPY",
        "a NumPy array",
        "serve the model, and send arrays to it as requests",
    ),
    (
        b"ftrt",
        "a TensorRT engine",
        "serve the .onnx file that it was built of",
    ),
    (
        b"\x7fELF",
        "a program or library",
        "set the path of the .onnx file",
    ),
    (b"%PDF-", "a PDF document", "set the path of the .onnx file"),
    (b"\x89PNG", "a picture", "set the path of the .onnx file"),
    (
        b"\xff\xd8\xff",
        "a picture",
        "set the path of the .onnx file",
    ),
];

/// Formats whose names say more than their bytes.
const ENDINGS: &[(&str, &str, &str)] = &[
    (
        "mlmodel",
        "a Core ML model",
        "serve the model that it was converted from, exported to ONNX",
    ),
    (
        "pdmodel",
        "a PaddlePaddle model",
        "convert it (paddle2onnx)",
    ),
    (
        "pdiparams",
        "weights of a PaddlePaddle model",
        "convert the model (paddle2onnx)",
    ),
    ("pb", "a TensorFlow graph", TENSORFLOW),
    ("pt", "a PyTorch file", TORCH),
    ("pth", "a PyTorch file", TORCH),
];

/// What the file at `path`, which is no ONNX model and holds `bytes`, is, if that is known.
#[must_use]
pub fn identify(path: &Path, bytes: &[u8]) -> Option<Impostor> {
    let found = |what, fix| Some(Impostor { what, fix });
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    if let Some((_, what, fix)) = STARTS.iter().find(|(start, ..)| bytes.starts_with(start)) {
        return found(*what, *fix);
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Some(archive(bytes));
    }
    match bytes.get(4..8) {
        Some(b"ORTM") => {
            return found(
                "a model in ONNX Runtime's own format (.ort)",
                "serve the .onnx file that it was made of",
            );
        }
        Some(b"TFL3") => {
            return found(
                "a TensorFlow Lite model",
                "convert it (python -m tf2onnx.convert --tflite FILE --output model.onnx)",
            );
        }
        _ => {}
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return found("a tar archive", UNPACK);
    }
    if !bytes.is_empty() && bytes.iter().all(|byte| *byte == 0) {
        return found(
            "nothing but zeros, as a download or copy that broke off leaves it",
            "copy or download the file again",
        );
    }
    if let [0x80, 2..=5, ..] = bytes {
        return Some(pickle(bytes));
    }
    if is_old_pickle(bytes) {
        return Some(pickle(bytes));
    }
    if is_zlib(bytes) {
        return found(
            "compressed by zlib, as joblib writes pickled models",
            PICKLE,
        );
    }
    if is_safetensors(bytes) {
        return found("a safetensors file, weights without a graph", TRANSFORMERS);
    }
    if [
        "saved_model_main_op",
        "serving_default",
        "__saved_model_init_op",
    ]
    .iter()
    .any(|word| holds(bytes, word.as_bytes()))
    {
        return found("a TensorFlow SavedModel", TENSORFLOW);
    }
    let ending = path.extension().and_then(|ending| ending.to_str());
    let by_name = ENDINGS
        .iter()
        .find(|(known, ..)| ending.is_some_and(|ending| ending.eq_ignore_ascii_case(known)));
    let text = text(bytes);
    match (text, by_name) {
        (Some(impostor), _) => Some(impostor),
        (None, Some((_, what, fix))) => found(*what, *fix),
        (None, None) => None,
    }
}

fn archive(bytes: &[u8]) -> Impostor {
    let (what, fix) = if holds(bytes, b"data.pkl") {
        ("a PyTorch file (torch.save or torch.jit.save)", TORCH)
    } else if holds(bytes, b"model.weights.h5") {
        (
            "a Keras model",
            "export it in Python (model.export(PATH, format=\"onnx\"))",
        )
    } else if holds(bytes, b".mlmodel") {
        (
            "a Core ML package",
            "serve the model that it was converted from, exported to ONNX",
        )
    } else if holds(bytes, b".npy") {
        (
            "an archive of NumPy arrays",
            "serve the model, and send arrays to it as requests",
        )
    } else {
        ("a zip archive", UNPACK)
    };
    Impostor { what, fix }
}

fn pickle(bytes: &[u8]) -> Impostor {
    /// The number that old versions of `PyTorch` begin their files with.
    const TORCH_MAGIC: &[u8] = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    let (what, fix) = if holds(bytes, TORCH_MAGIC) || holds(bytes, b"torch") {
        ("a PyTorch file (torch.save)", TORCH)
    } else if holds(bytes, b"sklearn") {
        (
            "a pickled scikit-learn model",
            "convert it in Python (skl2onnx.to_onnx)",
        )
    } else {
        ("a Python pickle", PICKLE)
    };
    Impostor { what, fix }
}

/// Whether it is a pickle as Python 2 wrote them, in which names stand on lines of their own.
fn is_old_pickle(bytes: &[u8]) -> bool {
    let head = bytes.get(..bytes.len().min(4096)).unwrap_or_default();
    let names = [&b"copy_reg\n"[..], b"c__main__\n", b"csklearn", b"cnumpy"];
    bytes.ends_with(b".")
        && names
            .iter()
            .any(|name| memchr::memmem::find(head, name).is_some())
}

/// Whether it is compressed by zlib, without gzip around it: the first two bytes are a multiple of 31.
fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [0x78, flags, ..] if (0x7800 + u16::from(*flags)).is_multiple_of(31) && flags & 0x20 == 0)
}

/// A length of eight bytes, and JSON of that length.
fn is_safetensors(bytes: &[u8]) -> bool {
    let length = bytes
        .first_chunk()
        .map(|length| u64::from_le_bytes(*length));
    let fits = length.is_some_and(|length| length <= bytes.len() as u64);
    fits && bytes
        .get(8..10)
        .is_some_and(|json| json == b"{\"" || json == b"{}")
}

/// What a text is.
fn text(bytes: &[u8]) -> Option<Impostor> {
    let head = bytes.get(..bytes.len().min(4096)).unwrap_or_default();
    let head = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A character may be cut.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(head.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c');
    let start = head.trim_start_matches('\u{feff}').trim_start();
    if start.is_empty() || head.chars().any(is_control) {
        return None;
    }
    let lower = start.to_ascii_lowercase();
    let is_html = ["<!doctype html", "<html", "<head", "<body"]
        .iter()
        .any(|tag| lower.contains(tag));
    let (what, fix) = if lower.starts_with('<') && is_html {
        (
            "an HTML page, as a site sends it in the place of a file",
            "download the file itself (on Hugging Face /resolve/ instead of /blob/ in the address, or hf download)",
        )
    } else if lower.starts_with('<') && lower.contains("<net ") {
        (
            "an OpenVINO model",
            "serve the model that it was converted from, exported to ONNX",
        )
    } else if lower.starts_with('<') && lower.contains("ir_version:") {
        (
            "a model in ONNX's text form",
            "save it as .onnx in Python (onnx.save(onnx.parser.parse_model(TEXT), PATH))",
        )
    } else if lower.starts_with("[internetshortcut]") || lower.starts_with("[desktop entry]") {
        (
            "a shortcut to an address, and not the file that lies there",
            "download what is behind it",
        )
    } else if lower.starts_with("<?xml") || lower.starts_with("<error") {
        (
            "an XML document, such as a bucket's error message",
            "read it, and download the file again",
        )
    } else if is_address(start) {
        (
            "an address, and not the file that lies there",
            if lower.starts_with("http") {
                "download what is behind it (curl -L -o model.onnx ADDRESS)"
            } else {
                "download what is behind it"
            },
        )
    } else if is_json(start) {
        ("a JSON text", "set the path of the .onnx file")
    } else {
        (
            "a text",
            "set the path of the .onnx file, or download it again",
        )
    };
    Some(Impostor { what, fix })
}

/// Whether a text begins as JSON does.
fn is_json(text: &str) -> bool {
    let opens = |open, next: fn(char) -> bool| {
        text.strip_prefix(open)
            .is_some_and(|rest| rest.trim_start().starts_with(next))
    };
    opens('{', |c| matches!(c, '"' | '}'))
        || opens('[', |c| {
            matches!(c, '[' | ']' | '{' | '"' | '-' | '0'..='9')
        })
}

/// Whether a text is one address, such as a link that was saved in the place of its file.
fn is_address(text: &str) -> bool {
    let text = text.trim();
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    let is_scheme = |scheme: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(fits)
    };
    scheme.is_some_and(is_scheme) && !text.contains(char::is_whitespace)
}

/// Whether `word` stands near the start or the end of `bytes`.
fn holds(bytes: &[u8], word: &[u8]) -> bool {
    let head = bytes.get(..SEARCHED).unwrap_or(bytes);
    let tail = bytes.get(bytes.len().saturating_sub(SEARCHED)..);
    let find = |part: &[u8]| memchr::memmem::find(part, word).is_some();
    find(head) || tail.is_some_and(find)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_known(bytes: &[u8], what: &str, fix: &str) {
        let found = identify(Path::new("m.onnx"), bytes);
        let found = found.unwrap_or_else(|| panic!("{what}"));
        assert!(found.what.contains(what), "{what}: {found:?}");
        assert!(found.fix.contains(fix), "{what}: {found:?}");
    }

    #[test]
    fn impostors_are_known_by_their_bytes() {
        let torch = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, what, fix) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\n"[..],
                "Git LFS",
                "git lfs pull",
            ),
            (
                b"\n<!DOCTYPE html><html>",
                "HTML",
                "download the file itself",
            ),
            (b"<html lang=\"en\">", "HTML", "download the file itself"),
            (
                b"<?xml version=\"1.0\"?><Error><Code>AccessDenied",
                "XML",
                "download",
            ),
            (
                b"<?xml version=\"1.0\"?>\n<net name=\"x\">",
                "OpenVINO",
                "exported to ONNX",
            ),
            (b"\x1f\x8b\x08\0", "gzip", "unpack"),
            (
                b"PK\x03\x04..archive/data.pkl",
                "PyTorch",
                "torch.onnx.export",
            ),
            (
                b"PK\x03\x04..config.json..model.weights.h5",
                "Keras",
                "model.export",
            ),
            (b"PK\x03\x04..arr_0.npy", "NumPy", "requests"),
            (b"PK\x03\x04..model.onnx", "zip", "unpack"),
            (&tar, "tar", "unpack"),
            (torch, "PyTorch", "torch.onnx.export"),
            (
                b"\x80\x04\x95...sklearn.linear_model",
                "scikit-learn",
                "skl2onnx",
            ),
            (b"\x80\x05}.", "pickle", "skl2onnx"),
            (b"\x02\0\0\0\0\0\0\0{}", "safetensors", "optimum-cli"),
            (b"GGUF\x03\0\0\0", "GGUF", "optimum-cli"),
            (b"\x18\0\0\0ORTM", ".ort", "the .onnx file"),
            (b"\x1c\0\0\0TFL3", "TensorFlow Lite", "--tflite"),
            (
                b"\x08\x01\x12\xff..serving_default..",
                "SavedModel",
                "--saved-model",
            ),
            (b"\x93NUMPY\x01\0", "NumPy", "requests"),
            (b"\x89HDF\r\n\x1a\n", "Keras", "--keras"),
            (
                b"ccopy_reg\n_reconstructor\np0\n(csklearn.svm\nSVC\n.",
                "scikit-learn",
                "skl2onnx",
            ),
            (b"x\x9c\x8b..", "zlib", "skl2onnx"),
            (&[0; 64], "zeros", "again"),
        ] {
            assert_known(bytes, what, fix);
        }
        let by_name = identify(Path::new("m.mlmodel"), b"\x08\x05\x12\x80").unwrap();
        assert!(by_name.what.contains("Core ML"));
        assert_eq!(identify(Path::new("m.onnx"), b"\x08\x05\x12\x80\xff"), None);
    }

    #[test]
    fn texts_in_the_place_of_a_model_are_told_apart() {
        for (bytes, what, fix) in [
            (&b"{\"model\": 1}"[..], "JSON", ".onnx file"),
            (
                b"https://example.com/m.onnx?x=1\n",
                "an address",
                "download",
            ),
            (b"s3://bucket/m.onnx", "an address", "download"),
            (
                b"[InternetShortcut]\r\nURL=https://example.com",
                "a shortcut",
                "download",
            ),
            (b"[model]\nname = \"x\"", "a text", ".onnx file"),
            (b"[1, 2]", "JSON", ".onnx file"),
            (
                b"<\n  ir_version: 8,\n  opset_import: [\"\" : 17]\n>",
                "ONNX's text form",
                "onnx.parser",
            ),
            (b"<!-- x --><html>", "HTML", "download the file itself"),
            (
                b"<?xml version=\"1.0\"?><!DOCTYPE html>",
                "HTML",
                "download the file itself",
            ),
            (b"<plist>", "a text", ".onnx file"),
            (
                b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\n",
                "Git LFS",
                "git lfs pull",
            ),
            (b"see https://example.com", "a text", ".onnx file"),
            ("Grüße".as_bytes(), "a text", ".onnx file"),
        ] {
            assert_known(bytes, what, fix);
        }
    }
}
