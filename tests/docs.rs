//! The documents say what the code says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use model_serving::config::ServeFlags;
use model_serving::telemetry::metrics::FAMILIES;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The settings, as `--help` states them.
fn settings() -> String {
    let mut table = "| flag | environment | default | meaning |\n|---|---|---|---|\n".to_owned();
    for argument in ServeFlags::command().get_arguments() {
        let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else {
            continue;
        };
        let defaults: Vec<String> = argument
            .get_default_values()
            .iter()
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        let help = argument
            .get_long_help()
            .or(argument.get_help())
            .unwrap()
            .to_string();
        let help = help.replace('\n', " ").replace('|', "\\|");
        let variable = variable.to_string_lossy();
        writeln!(
            table,
            "| `--{flag}` | `{variable}` | {} | {help} |",
            defaults.join(" ")
        )
        .unwrap();
    }
    table
}

/// The metrics, as `/metrics` states them.
fn metrics() -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for family in FAMILIES {
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            family.name,
            family.kind,
            labels.join(" "),
            family.help.trim()
        )
        .unwrap();
    }
    table
}

/// Compares, or with `UPDATE_DOCS=1` replaces, what stands between the marks `name` in the README.
fn check(name: &str, generated: &str) {
    let path = root().join("README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (
        format!("<!-- {name}:begin -->\n"),
        format!("<!-- {name}:end -->"),
    );
    let (before, rest) = text
        .split_once(&begin)
        .unwrap_or_else(|| panic!("no {begin}"));
    let (stated, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{begin}{generated}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(
        stated, generated,
        "run: UPDATE_DOCS=1 cargo test --test docs -- --test-threads=1"
    );
}

#[test]
fn the_settings_table_is_what_help_says() {
    check("settings", &settings());
}

#[test]
fn the_metrics_table_is_what_the_server_exposes() {
    check("metrics", &metrics());
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "models/README.md",
        "tests/fixtures/README.md",
    ] {
        let path = root().join(document);
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{document} is missing"));
        for (position, _) in text.match_indices("](") {
            let target = text[position + 2..].split(')').next().unwrap();
            let file = target.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(
                path.parent().unwrap().join(file).exists(),
                "{document} links to {target}"
            );
            checked += 1;
        }
    }
    assert!(checked > 5, "links were found");
}

#[test]
fn the_first_request_of_the_readme_names_files_that_exist() {
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    let samples: Vec<&str> = text
        .split('@')
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next())
        .collect();
    assert!(
        samples
            .iter()
            .any(|sample| sample.ends_with("digit-7.json"))
    );
    for sample in samples
        .iter()
        .filter(|sample| sample.starts_with("models/"))
    {
        assert!(root().join(sample).exists(), "{sample}");
    }
}
