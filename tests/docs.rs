//! The documents say what the code says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use model_serving::config::{FetchFlags, ServeFlags};
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
fn the_page_about_fetch_has_its_flags_and_variables() {
    let page = read("docs/fetch.md");
    for argument in FetchFlags::command().get_arguments() {
        let flag = argument.get_long().map(|flag| format!("`--{flag}`"));
        let variable = argument.get_env();
        let variable = variable.map(|name| format!("`{}`", name.to_str().unwrap()));
        for name in flag.into_iter().chain(variable) {
            assert!(page.contains(&name), "docs/fetch.md lacks {name}");
        }
    }
}

#[test]
fn the_metrics_table_is_what_the_server_exposes() {
    check("metrics", &metrics());
}

const DOCUMENTS: [&str; 11] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "benches/README.md",
    "docs/kubernetes.md",
    "docs/runbooks.md",
    "models/README.md",
    "tests/conformance/README.md",
    "tests/fixtures/README.md",
];

/// All of them, those in `docs/` as well.
fn documents() -> Vec<String> {
    let folder = std::fs::read_dir(root().join("docs")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pages = names.map(|name| format!("docs/{name}"));
    DOCUMENTS
        .map(str::to_owned)
        .into_iter()
        .chain(pages)
        .collect()
}

fn read(document: &str) -> String {
    std::fs::read_to_string(root().join(document))
        .unwrap_or_else(|_| panic!("{document} is missing"))
}

/// What a link to each heading of a document has behind its `#`.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            heading.chars().filter(kept).collect::<String>()
        })
        .map(|heading| heading.replace(' ', "-"))
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for document in documents() {
        let path = root().join(&document);
        let text = read(&document);
        for (position, _) in text.match_indices("](") {
            let target = text[position + 2..].split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap().join(file)
            };
            assert!(linked.exists(), "{document} links to {target}");
            if !anchor.is_empty() {
                let headings = anchors(&std::fs::read_to_string(linked).unwrap());
                assert!(
                    headings.iter().any(|heading| heading == anchor),
                    "{document} links to {target}, which is no heading there"
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "links were found: {checked}");
}

/// The recipes of the Makefile, by line: a name, and what it is for if `make help` lists it.
fn recipes(makefile: &str) -> Vec<(&str, Option<&str>)> {
    makefile
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let is_name = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            (is_name && !rest.starts_with('=')).then_some(())?;
            Some((name, rest.split_once("## ").map(|(_, purpose)| purpose)))
        })
        .collect()
}

#[test]
fn recipes_that_the_documents_name_exist() {
    let makefile = read("Makefile");
    let recipes = recipes(&makefile);
    let mut named = 0;
    for document in documents() {
        let text = read(&document);
        // Behind every other backtick stands code, in blocks too, since these begin and end with three.
        for line in text.split('`').skip(1).step_by(2).flat_map(str::lines) {
            let mut words = line.split_whitespace().skip_while(|word| *word != "make");
            words.next();
            for word in words.take_while(|word| {
                word.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            }) {
                assert!(
                    recipes.iter().any(|(name, _)| *name == word),
                    "{document} names `make {word}`"
                );
                named += 1;
            }
        }
    }
    assert!(named > 20, "recipes were found: {named}");
}

#[test]
fn make_test_runs_every_recipe_that_help_lists_as_its_part_in_that_order() {
    let makefile = read("Makefile");
    let (_, rest) = makefile.split_once("##@ Parts of `make test`\n").unwrap();
    let (parts, _) = rest.split_once("\n##@ ").unwrap();
    let listed: Vec<&str> = recipes(parts)
        .into_iter()
        .filter_map(|(name, purpose)| purpose.map(|_| name))
        .collect();
    let (_, rest) = makefile.split_once("\nALL_CHECKS := ").unwrap();
    let (run, _) = rest.split_once("\n\n").unwrap();
    let run: Vec<&str> = run
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect();
    assert_eq!(run, listed);
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
