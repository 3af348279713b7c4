//! The drawing in ARCHITECTURE.md stays true: imports run downwards, and each foreign library stays in its layer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

mod imports;

use std::collections::BTreeMap;
use std::path::Path;

use imports::circles;

/// What each module of `src/` may import of ours, from above to below: in the order of the drawing in ARCHITECTURE.md.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "config",
        &[
            "server",
            "shutdown",
            "fetch",
            "healthcheck",
            "models",
            "http",
            "net",
            "runtime",
            "model",
            "telemetry",
            "address",
            "units",
        ],
    ),
    ("fetch", &["chance", "service_manager", "version"]),
    ("healthcheck", &["address"]),
    (
        "inspect",
        &[
            "container",
            "curl",
            "models",
            "runtime",
            "model",
            "telemetry",
            "tensor",
        ],
    ),
    (
        "tune",
        &["container", "models", "runtime", "model", "telemetry"],
    ),
    (
        "server",
        &[
            "admin",
            "watchdog",
            "testkit",
            "container",
            "process",
            "service_manager",
            "shutdown",
            "signals",
            "hints",
            "models",
            "http",
            "net",
            "service",
            "inference",
            "gpu",
            "runtime",
            "model",
            "telemetry",
            "address",
            "version",
        ],
    ),
    (
        "hints",
        &["curl", "models", "telemetry", "address", "text_file"],
    ),
    ("curl", &["runtime", "tensor"]),
    ("admin", &["net", "telemetry"]),
    (
        "watchdog",
        &[
            "testkit",
            "process",
            "models",
            "runtime",
            "service_manager",
            "telemetry",
        ],
    ),
    ("shutdown", &["signals", "net", "models"]),
    ("signals", &[]),
    ("process", &["runtime"]),
    ("container", &[]),
    (
        "http",
        &[
            "testkit",
            "net",
            "service",
            "wire",
            "models",
            "batching",
            "inference",
            "model",
            "telemetry",
            "tensor",
            "text_file",
            "units",
        ],
    ),
    (
        "service",
        &[
            "models",
            "batching",
            "inference",
            "model",
            "telemetry",
            "tensor",
        ],
    ),
    ("wire", &["inference", "model", "tensor", "units"]),
    ("net", &["testkit", "telemetry", "address", "chance"]),
    (
        "models",
        &[
            "testkit",
            "batching",
            "runtime",
            "model",
            "service_manager",
            "telemetry",
            "units",
        ],
    ),
    (
        "batching",
        &[
            "testkit",
            "runtime",
            "inference",
            "model",
            "telemetry",
            "tensor",
        ],
    ),
    ("inference", &["model", "telemetry", "tensor"]),
    ("gpu", &["testkit", "runtime", "telemetry"]),
    ("runtime", &["testkit", "model", "tensor", "text_file"]),
    ("model", &["tensor", "text_file", "units"]),
    ("service_manager", &[]),
    ("address", &[]),
    ("chance", &[]),
    ("telemetry", &["testkit"]),
    ("testkit", &[]),
    ("tensor", &[]),
    ("text_file", &[]),
    ("units", &[]),
    ("version", &[]),
];

/// The only places in which a foreign library may be named.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("axum", &["http"]),
    (
        "hyper",
        &[
            "net/connection/mod.rs",
            "net/connection/service.rs",
            "net/connection/body.rs",
            "healthcheck",
        ],
    ),
    ("hyper_util", &["net/connection/mod.rs", "healthcheck"]),
    ("tower", &["net/site.rs"]),
    ("tower_http", &["http"]),
    ("socket2", &["net/accept.rs", "net/connection/transport.rs"]),
    ("ort", &["runtime"]),
    ("nvml_wrapper", &["gpu"]),
    ("prost", &["model/proto.rs"]),
    // Nothing else than the command `fetch` asks anybody for anything.
    ("reqwest", &["fetch"]),
    ("object_store", &["fetch"]),
    ("rustls", &["fetch"]),
    ("indicatif", &["fetch/progress.rs"]),
    ("httpdate", &["fetch/web.rs"]),
    ("humantime", &["fetch/bucket.rs", "telemetry/timestamp.rs"]),
    (
        "sha2",
        &["model/onnx.rs", "http/api_keys.rs", "fetch/digest.rs"],
    ),
    ("toml", &["model/sidecar.rs"]),
    ("toml_edit", &["model/sidecar.rs"]),
    // The composition root passes on the error of a registration that went wrong.
    ("prometheus", &["telemetry", "server"]),
    // A test reads what an instance logs.
    ("tracing_subscriber", &["telemetry", "batching/tests.rs"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("clap", &["config"]),
    ("clap_complete", &["config"]),
    ("clap_mangen", &["config"]),
    ("sd_notify", &["service_manager"]),
    (
        "libc",
        &[
            "net/accept.rs",
            "net/listening.rs",
            "process",
            "text_file.rs",
        ],
    ),
];

/// What is wrong with the file at `path` (relative to `src/`) that holds `text`.
fn violations(path: &str, text: &str) -> Vec<String> {
    let module = path.split('/').next().unwrap().trim_end_matches(".rs");
    // Tests at the end of a file may reach across; they are not part of the house.
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut found = Vec::new();
    if !matches!(module, "lib" | "main") {
        let allowed = LAYERS.iter().find(|(name, _)| *name == module);
        let Some((_, allowed)) = allowed else {
            return vec![format!(
                "{path}: the layer table does not know the module {module}"
            )];
        };
        for imported in names_after(text, "crate::") {
            if imported != module && !allowed.contains(&imported) {
                found.push(format!("{path}: {module} may not import {imported}"));
            }
        }
    }
    for (library, places) in LIBRARIES {
        let used = uses_library(text, library);
        let permitted = places
            .iter()
            .any(|place| *place == module || *place == path);
        if used && !permitted && path != "main.rs" {
            found.push(format!(
                "{path}: {library} is used outside {}",
                places.join(", ")
            ));
        }
    }
    found
}

/// The identifiers that follow `prefix`, also those of a list in braces.
fn names_after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let identifier = |text: &'a str| {
        let end = text
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(text.len());
        &text[..end]
    };
    let code = text
        .match_indices(prefix)
        .filter(|(position, _)| !in_comment(text, *position));
    let mut names = Vec::new();
    for (position, _) in code {
        let rest = &text[position + prefix.len()..];
        match rest.strip_prefix('{') {
            None => names.push(identifier(rest)),
            Some(list) => {
                // Only the first identifier of each member names a module; deeper lists are skipped.
                let mut depth = 0;
                let mut expects = true;
                for (index, character) in list.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => expects = true,
                        c if depth == 0 && expects && !c.is_whitespace() => {
                            names.push(identifier(&list[index..]));
                            expects = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

/// Whether `text` names the crate `library` in code.
fn uses_library(text: &str, library: &str) -> bool {
    let path = format!("{library}::");
    text.match_indices(&path).any(|(position, _)| {
        let before = text[..position].chars().next_back();
        let own = before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        !own && !in_comment(text, position)
    })
}

fn in_comment(text: &str, position: usize) -> bool {
    let line_start = text[..position]
        .rfind('\n')
        .map_or(0, |newline| newline + 1);
    text[line_start..position].contains("//")
}

fn sources(folder: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else {
            into.push(path);
        }
    }
}

#[test]
fn imports_run_downwards_and_libraries_stay_in_their_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "the sources were found");
    let found: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let path = file
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            violations(&path, &std::fs::read_to_string(file).unwrap())
        })
        .collect();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn no_files_take_from_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    let files: BTreeMap<String, String> = paths
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            (name.to_owned(), std::fs::read_to_string(path).unwrap())
        })
        // Tests in files of their own may reach across, and are reached for faults on demand.
        .filter(|(name, _)| {
            let file = name.rsplit('/').next().unwrap();
            !matches!(
                file,
                "tests.rs" | "testing.rs" | "testkit.rs" | "simulation.rs"
            )
        })
        .collect();
    assert!(files.len() > 100, "the sources were found");
    assert_eq!(circles(&files), Vec::<Vec<String>>::new());
}

#[test]
fn planted_circles_are_found() {
    let found = |files: &[(&str, &str)]| {
        let files = files.iter();
        circles(
            &files
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
                .collect(),
        )
    };
    let pair = |first: &str, second: &str| {
        found(&[
            ("a/mod.rs", "pub mod b;\npub mod c;\n"),
            ("a/b.rs", first),
            ("a/c.rs", second),
        ])
    };
    let circle = [["a/b.rs", "a/c.rs"].map(str::to_owned)];
    for (first, second) in [
        (
            "use super::c::C;\npub struct B;",
            "use super::b::B;\npub struct C;",
        ),
        ("use crate::a::{c::{C, D}};", "fn f(b: super::b::B) {}"),
        (
            "use super::c;\nfn f() { c::g(); }",
            "use crate::a::b::{self as other, B};",
        ),
    ] {
        assert_eq!(pair(first, second), circle, "{first} {second}");
    }
    // A parent that takes from its child, and the child from it.
    let parent = "mod b;\nuse b::B;\npub struct A(B);";
    let expected = [["a/b.rs", "a/mod.rs"].map(str::to_owned)];
    assert_eq!(
        found(&[
            ("a/mod.rs", parent),
            ("a/b.rs", "use super::A;\npub struct B;")
        ]),
        expected
    );
    for (first, second) in [
        ("use super::c::C;", "pub struct C;"),
        ("use super::c::C;", "// crate::a::b::B\npub struct C;"),
        (
            "use super::c::C;",
            "pub struct C;\n#[cfg(test)]\nmod tests {\n    use super::super::b::B;\n}",
        ),
    ] {
        assert!(pair(first, second).is_empty(), "{first} {second}");
    }
    // What a parent only hands on counts for the file that defines it.
    let face = "mod b;\nmod c;\npub use b::B;";
    assert!(
        found(&[
            ("a/mod.rs", face),
            ("a/b.rs", "pub struct B;"),
            ("a/c.rs", "use super::B;")
        ])
        .is_empty()
    );
}

#[test]
fn planted_violations_are_reported() {
    for (path, text, part) in [
        (
            "batching/queue/mod.rs",
            "use crate::http::App;",
            "batching may not import http",
        ),
        (
            "http/predict.rs",
            "use crate::runtime::Model;",
            "http may not import runtime",
        ),
        (
            "tensor.rs",
            "fn f() { crate::model::onnx::read(); }",
            "tensor may not import model",
        ),
        (
            "model/mod.rs",
            "use crate::{tensor::Shape, batching};",
            "model may not import batching",
        ),
        (
            "runtime/mod.rs",
            "use crate::{\n    model::{onnx, sidecar},\n    config,\n};",
            "runtime may not import config",
        ),
        (
            "batching/mod.rs",
            "use ort::session::Session;",
            "ort is used outside runtime",
        ),
        (
            "models/registry.rs",
            "fn f() -> axum::Router { todo }",
            "axum is used outside http",
        ),
        (
            "server.rs",
            "let x = ort::init();",
            "ort is used outside runtime",
        ),
        ("novel.rs", "", "does not know the module novel"),
    ] {
        let found = violations(path, text);
        assert!(
            found.iter().any(|violation| violation.contains(part)),
            "{path} {text}: {found:?}"
        );
    }
    for (path, text) in [
        (
            "http/predict.rs",
            "use crate::batching::{Scheduler, Timings};\nuse axum::Router;",
        ),
        (
            "batching/mod.rs",
            "// crate::http is above this layer\nuse super::queue;",
        ),
        (
            "tensor.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::batching::testing;\n}",
        ),
        ("http/export.rs", "let x = testing::axum_like();"),
    ] {
        assert_eq!(violations(path, text), Vec::<String>::new(), "{path}");
    }
}

/// The part of a page under the heading `name`, up to the next one of that rank.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let heading = format!("\n## {name}\n");
    let (_, rest) = page.split_once(&heading).unwrap_or_default();
    rest.split("\n## ").next().unwrap_or_default()
}

/// The column in which the drawing has its modules.
const MODULES_COLUMN: usize = 15;

/// How the drawing and the rooms of `page`, which is ARCHITECTURE.md, differ from `table`.
fn differences(page: &str, table: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let drawing = section(page, "Layers").split("```").nth(1);
    let drawn: Vec<String> = drawing
        .unwrap_or_default()
        .lines()
        .skip(1)
        .map(|line| line.chars().skip(MODULES_COLUMN))
        .map(|rest| rest.take_while(|c| !c.is_whitespace()).collect::<String>())
        .filter(|module| !module.is_empty())
        .collect();
    if drawn != table {
        found.push(format!("the drawing has {drawn:?}, the table {table:?}"));
    }
    let rooms: Vec<(&str, &str)> = section(page, "Rooms")
        .lines()
        .filter_map(|line| line.strip_prefix("- **`")?.split_once("`**"))
        .collect();
    let names: Vec<&str> = rooms.iter().map(|(name, _)| *name).collect();
    if names != table {
        found.push(format!("the rooms are {names:?}, the table has {table:?}"));
    }
    for (name, said) in rooms {
        if said.matches("**Invariant:** ").count() != 1 {
            found.push(format!("the room {name} has not one invariant"));
        }
    }
    found
}

/// What a table of layers lets a module import that does not stand below it.
fn upward<'a>(table: &[(&'a str, &[&'a str])]) -> Vec<(&'a str, &'a str)> {
    let mut found = Vec::new();
    for (index, (name, allowed)) in table.iter().enumerate() {
        let (_, below) = table.split_at(index + 1);
        let is_below = |import: &&&str| below.iter().any(|(name, _)| name == *import);
        found.extend(
            allowed
                .iter()
                .filter(|import| !is_below(import))
                .map(|import| (*name, *import)),
        );
    }
    found
}

fn architecture() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    std::fs::read_to_string(path).unwrap()
}

fn modules() -> Vec<&'static str> {
    LAYERS.iter().map(|(name, _)| *name).collect()
}

#[test]
fn the_drawing_and_the_rooms_of_the_architecture_are_the_table_of_layers() {
    assert_eq!(
        differences(&architecture(), &modules()),
        Vec::<String>::new()
    );
}

#[test]
fn the_table_of_layers_lets_nobody_import_from_above() {
    assert_eq!(upward(LAYERS), []);
    assert_eq!(
        upward(&[("a", &["b", "c"]), ("b", &["a"]), ("c", &["c"])]),
        [("b", "a"), ("c", "c")]
    );
}

#[test]
fn planted_differences_between_the_drawing_and_the_table_are_found() {
    let page = architecture();
    let line = |module: &str| {
        let mut lines = section(&page, "Layers").lines();
        let is_wanted = |line: &&str| {
            let rest: String = line.chars().skip(MODULES_COLUMN).collect();
            rest.split(' ').next() == Some(module)
        };
        lines.find(is_wanted).unwrap().to_owned()
    };
    let (models, batching) = (line("models"), line("batching"));
    let swapped = page
        .replace(&models, "HERE")
        .replace(&batching, &models)
        .replace("HERE", &batching);
    let (room, _) = page.split_once("- **`wire`**").unwrap();
    let (_, after) = page[room.len()..].split_once('\n').unwrap();
    for (planted, part) in [
        (swapped, "the drawing has"),
        (page.replace(&format!("{models}\n"), ""), "the drawing has"),
        (
            page.replace("wire              ", "wires             "),
            "\"wires\"",
        ),
        (
            page.replace(
                &batching,
                &format!("{batching}\n               novel             a layer"),
            ),
            "\"novel\"",
        ),
        (
            page.replace("\n## Layers\n", "\n## Storeys\n"),
            "the drawing has []",
        ),
        (format!("{room}{after}"), "the rooms are"),
        (
            page.replace(
                "**Invariant:** it knows neither axum",
                "It knows neither axum",
            ),
            "the room net has not one invariant",
        ),
    ] {
        assert_ne!(planted, page, "{part}");
        let found = differences(&planted, &modules());
        assert!(
            found.iter().any(|difference| difference.contains(part)),
            "{part}: {found:?}"
        );
    }
    // A module that the table knows and the page does not.
    let mut more = modules();
    more.insert(3, "novel");
    assert_eq!(differences(&page, &more).len(), 2);
}

/// How a file could ask which execution provider it has, instead of what the provider's row says.
const PROVIDER_QUESTIONS: &[&str] = &[
    "== ExecutionProvider::",
    "!= ExecutionProvider::",
    "== Device::CPU",
    "!= Device::CPU",
    "matches!(provider",
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "OpenVINOExecutionProvider",
];

#[test]
fn only_the_table_of_providers_knows_which_one_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        if file.starts_with(root.join("runtime/providers")) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for question in PROVIDER_QUESTIONS {
            let asks = code
                .match_indices(question)
                .any(|(position, _)| !in_comment(code, position));
            assert!(
                !asks,
                "{} asks which provider it is ({question}); make it a field of the row in runtime/providers",
                file.display()
            );
        }
    }
}
