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
use model_serving::http::error::{ApiError, MAX_BODY};
use model_serving::service::error::ServeError;
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

/// Compares, or with `UPDATE_DOCS=1` replaces, what stands between the marks `name` in `document`.
fn check(document: &str, name: &str, generated: &str) {
    let path = root().join(document);
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
        "run: UPDATE_DOCS=1 cargo test --features testkit --test suite -- docs:: --test-threads=1"
    );
}

#[test]
fn the_settings_table_is_what_help_says() {
    check("docs/settings.md", "settings", &settings());
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
    check("docs/metrics.md", "metrics", &metrics());
}

/// Those that are not in `docs/`.
const DOCUMENTS: [&str; 11] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "benches/NOTES.md",
    "benches/results/latest.md",
    "charts/model-serving/README.md",
    "models/README.md",
    "tests/conformance/README.md",
    "tests/fixtures/README.md",
];

/// All of them.
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

/// The lines of a page that are no code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// What a link to each heading of a document has behind its `#`.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for line in prose(text).filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let anchor: String = heading.chars().filter(kept).collect();
        let anchor = anchor.replace(' ', "-");
        // A heading that stands twice has a number the second time.
        let mut number = 0;
        let mut unique = anchor.clone();
        while anchors.contains(&unique) {
            number += 1;
            unique = format!("{anchor}-{number}");
        }
        anchors.push(unique);
    }
    anchors
}

/// Where the links of a page lead to that are no addresses.
fn links(text: &str) -> Vec<&str> {
    let links = prose(text).flat_map(|line| line.split("](").skip(1));
    links
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://"))
        .collect()
}

/// The links of the page `text` at `document` that lead to no file, or to no heading of theirs.
fn broken_links<'a>(document: &str, text: &'a str) -> Vec<&'a str> {
    let path = root().join(document);
    let leads_somewhere = |target: &str| {
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        if file.is_empty() {
            return anchors(text).iter().any(|heading| heading == anchor);
        }
        let linked = path.parent().unwrap().join(file);
        if anchor.is_empty() {
            return linked.exists();
        }
        let page = std::fs::read_to_string(linked).unwrap_or_default();
        anchors(&page).iter().any(|heading| heading == anchor)
    };
    let mut links = links(text);
    links.retain(|target| !leads_somewhere(target));
    links
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let mut checked = 0;
    for document in documents() {
        let text = read(&document);
        checked += links(&text).len();
        assert_eq!(
            broken_links(&document, &text),
            Vec::<&str>::new(),
            "{document}"
        );
    }
    assert!(checked > 100, "links were found: {checked}");
}

#[test]
fn planted_links_that_lead_nowhere_are_found() {
    let page = "# A page\n\n## A `heading`, twice\n\n## A heading, twice\n\n```bash\n# a comment\n[code](none.md)\n```\n";
    for (target, leads_somewhere) in [
        ("api.md", true),
        ("api.md#routes", true),
        ("../README.md", true),
        ("../src", true),
        ("#a-heading-twice", true),
        ("#a-heading-twice-1", true),
        ("https://example.com/none.md#none", true),
        ("README.md", false),
        ("none.md", false),
        ("none.md#routes", false),
        ("api.md#none", false),
        ("../README.md#routes", false),
        ("#a-heading-twice-2", false),
        ("#a-comment", false),
    ] {
        let text = format!("{page}\nSee [this]({target}) and [that](api.md).\n");
        let expected = if leads_somewhere {
            vec![]
        } else {
            vec![target]
        };
        assert_eq!(broken_links("docs/planted.md", &text), expected, "{target}");
    }
}

/// The pages that other files than documents name, as `docs/kubernetes.md`.
fn named_pages(text: &str) -> Vec<String> {
    let name = |rest: &str| -> String {
        let is_name = |c: &char| c.is_ascii_lowercase() || *c == '-';
        rest.chars().take_while(is_name).collect()
    };
    text.split("docs/")
        .skip(1)
        .map(|rest| (name(rest), rest))
        .filter(|(name, rest)| {
            rest.get(name.len()..)
                .is_some_and(|it| it.starts_with(".md"))
        })
        .map(|(name, _)| format!("docs/{name}.md"))
        .collect()
}

fn texts(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts(&path, into);
        } else {
            into.push(path);
        }
    }
}

#[test]
fn pages_that_sources_and_artifacts_name_exist() {
    let mut files: Vec<PathBuf> = [
        "Makefile",
        "Dockerfile",
        "Dockerfile.gpu",
        "docker-compose.yml",
    ]
    .map(|file| root().join(file))
    .to_vec();
    for folder in [
        ".github",
        "charts",
        "examples",
        "k8s",
        "monitoring",
        "packaging",
        "scripts",
        "src",
        "terraform",
    ] {
        texts(&root().join(folder), &mut files);
    }
    let mut named = 0;
    for file in files {
        // What is no text names nothing.
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        for page in named_pages(&text) {
            assert!(
                root().join(&page).exists(),
                "{} names {page}",
                file.display()
            );
            named += 1;
        }
    }
    assert!(named > 30, "pages were named: {named}");
    assert_eq!(
        named_pages("see docs/none.md, docs/ and docs/1.txt"),
        ["docs/none.md"]
    );
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(
        lines <= 200,
        "README.md has {lines} lines of 200; a chapter belongs into docs/"
    );
}

#[test]
fn the_readme_leads_to_every_page() {
    let readme = read("README.md");
    let linked: Vec<&str> = links(&readme)
        .into_iter()
        .map(|target| target.split('#').next().unwrap())
        .collect();
    for document in documents() {
        let is_chapter = document.starts_with("docs/") || !document.contains('/');
        assert!(
            !is_chapter || document == "README.md" || linked.contains(&document.as_str()),
            "README.md does not lead to {document}"
        );
    }
}

/// The commands of the README's deployments that the page which it links to does not have.
fn commands_that_pages_lack(readme: &str) -> (usize, Vec<String>) {
    let (_, rest) = readme.split_once("\n## Deploy it\n").unwrap();
    let deployments = rest.split("\n## ").next().unwrap();
    let (mut found, mut lacking) = (0, Vec::new());
    for deployment in deployments.split("\n### ").skip(1) {
        let Some(commands) = deployment.split("```bash\n").nth(1) else {
            continue;
        };
        let commands = commands.split("```").next().unwrap();
        let page = *links(deployment).first().unwrap();
        let text = read(page);
        for command in commands.lines() {
            found += 1;
            if !text.contains(command) {
                lacking.push(format!("{page} lacks: {command}"));
            }
        }
    }
    (found, lacking)
}

#[test]
fn the_deployments_of_the_readme_are_those_of_their_pages() {
    let readme = read("README.md");
    let (found, lacking) = commands_that_pages_lack(&readme);
    assert_eq!(lacking, Vec::<String>::new());
    assert!(found >= 10, "commands were found: {found}");
    let planted = readme.replace(
        "kubectl apply -k k8s/overlays/local\n",
        "kubectl apply -k k8s/base\n",
    );
    assert_eq!(
        commands_that_pages_lack(&planted).1,
        ["docs/kubernetes.md lacks: kubectl apply -k k8s/base"]
    );
}

/// The rows of the table of statuses in docs/api.md: statuses, and codes.
fn stated_errors(page: &str) -> Vec<(Vec<u16>, Vec<String>)> {
    let (_, rest) = page.split_once("\n## Errors\n").unwrap();
    let rows = rest.split("\n## ").next().unwrap().lines();
    rows.filter(|row| row.starts_with("| ") && !row.starts_with("| status"))
        .map(|row| {
            let mut cells = row.trim_matches('|').split('|');
            let statuses = cells.next().unwrap().split(',');
            let codes = cells.next().unwrap().split('`').skip(1).step_by(2);
            (
                statuses
                    .map(|status| status.trim().parse().unwrap())
                    .collect(),
                codes.map(str::to_owned).collect(),
            )
        })
        .collect()
}

#[test]
fn the_table_of_errors_has_every_code_of_the_server() {
    let page = read("docs/api.md");
    let rows = stated_errors(&page);
    for error in [
        ApiError::Invalid(String::new()),
        ApiError::Framing(""),
        ApiError::Unauthorized,
        ApiError::NotFound(String::new()),
        ApiError::MethodNotAllowed,
        ApiError::BodyTimeout,
        ApiError::BodyTooLarge(1),
        ApiError::UriTooLong(1),
        ApiError::HeadersTooLarge(String::new()),
        ApiError::UnsupportedMediaType(String::new()),
        ApiError::Unprocessable(String::new()),
        ApiError::Internal,
        ServeError::Starting.into(),
        ServeError::Draining.into(),
        ServeError::DeadlineExceeded.into(),
        ServeError::RequestTooLarge.into(),
    ] {
        let (status, code) = (error.status().as_u16(), error.code());
        let stated = rows.iter().any(|(statuses, codes)| {
            statuses.contains(&status) && codes.iter().any(|stated| stated == code)
        });
        assert!(stated, "docs/api.md lacks {status} {code}");
    }
    let most = format!("at most {MAX_BODY} bytes");
    assert!(page.contains(&most), "docs/api.md lacks: {most}");
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
