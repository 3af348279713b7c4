//! Which file of `src/` takes something from which other, read from the sources; and the circles among them.
//!
//! A name that a module hands on (`pub use`) counts for the file that defines it.

#![allow(
    unreachable_pub,
    clippy::indexing_slicing,
    reason = "as in the module beside this one"
)]

use std::collections::{BTreeMap, BTreeSet};

/// A path in the crate, such as `["net", "phase", "State"]`.
type CratePath = Vec<String>;

/// What one file takes and hands on.
#[derive(Default)]
struct Imports {
    taken: Vec<CratePath>,
    /// By the name under which it is handed on.
    handed_on: BTreeMap<String, CratePath>,
}

/// The files that take from each other in a circle, each circle sorted. `files` are the texts of the sources by their paths
/// below `src/`.
pub fn circles(files: &BTreeMap<String, String>) -> Vec<Vec<String>> {
    let modules: BTreeMap<CratePath, &str> = files
        .keys()
        .filter(|path| *path != "main.rs")
        .map(|path| (module_of(path), path.as_str()))
        .collect();
    let imports: BTreeMap<&str, Imports> = files
        .iter()
        .map(|(path, text)| (path.as_str(), imports_of(path, text, &modules)))
        .collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, found) in &imports {
        let targets = found.taken.iter().filter_map(|taken| {
            let target = definer(taken, &modules, &imports, 0)?;
            (target != *path && target != "lib.rs").then_some(target)
        });
        edges.insert(path, targets.collect());
    }
    components(&edges)
}

fn module_of(path: &str) -> CratePath {
    let path = path.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if matches!(path, "lib" | "main") {
        return Vec::new();
    }
    path.split('/').map(str::to_owned).collect()
}

/// The code of `text`: without comments, and without the tests at its end.
fn code_of(text: &str) -> String {
    let end = [
        "#[cfg(test)]\nmod tests {",
        "#[cfg(test)]\npub(super) mod tests {",
    ]
    .iter()
    .filter_map(|start| text.find(start))
    .min();
    let lines = text[..end.unwrap_or(text.len())].lines();
    let code = lines.map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

fn imports_of(path: &str, text: &str, modules: &BTreeMap<CratePath, &str>) -> Imports {
    let own = module_of(path);
    let code = code_of(text);
    let mut imports = Imports::default();
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        let line = statement.lines().rev().find(|line| is_use(line.trim()));
        let start = line.and_then(|line| statement.find(line));
        let Some(start) = start else {
            rest.push_str(statement);
            continue;
        };
        let used = statement[start..].trim().trim_end_matches(';');
        rest.push_str(&statement[..start]);
        let (visibility, tree) = used.split_once("use ").unwrap_or_default();
        for path in expanded(tree) {
            let Some(path) = absolute(&path, &own, modules) else {
                continue;
            };
            if visibility.trim().is_empty() {
                imports.taken.push(path);
            } else if let Some(name) = path.last().cloned() {
                imports.handed_on.insert(name, path);
            }
        }
    }
    let known: BTreeMap<String, CratePath> = imports
        .taken
        .iter()
        .filter_map(|path| Some((path.last()?.clone(), path.clone())))
        .collect();
    for path in paths_in(&rest) {
        let first = path.split("::").next().unwrap_or_default();
        let full = match known.get(first) {
            Some(module) => {
                let inner = path.split("::").skip(1).map(str::to_owned);
                Some(module.iter().cloned().chain(inner).collect())
            }
            None => absolute(&path, &own, modules),
        };
        imports.taken.extend(full);
    }
    imports
}

fn is_use(line: &str) -> bool {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')').map_or("", |(_, rest)| rest),
        Some(rest) => rest,
        None => line,
    };
    line.trim_start().starts_with("use ")
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn expanded(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, list)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split_whitespace().collect()];
    };
    let list = list.trim_end().strip_suffix('}').unwrap_or(list);
    let (mut depth, mut members) = (0, vec![String::new()]);
    for character in list.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        match members.last_mut() {
            _ if character == ',' && depth == 0 => members.push(String::new()),
            Some(member) => member.push(character),
            None => {}
        }
    }
    let members = members.iter().filter(|member| !member.trim().is_empty());
    members
        .flat_map(|member| expanded(member))
        .map(|member| format!("{}{member}", prefix.trim()))
        .collect()
}

/// The paths of at least two segments in `code`.
fn paths_in(code: &str) -> Vec<String> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    code.split(|character| !is_part(character))
        .map(|word| word.trim_matches(':'))
        .filter(|word| word.contains("::"))
        .map(str::to_owned)
        .collect()
}

/// `path`, as the file of the module `own` means it, from the crate's root; nothing if it is of another crate.
fn absolute(path: &str, own: &[String], modules: &BTreeMap<CratePath, &str>) -> Option<CratePath> {
    let mut segments: Vec<&str> = path.split("::").collect();
    let mut base = own.to_vec();
    match *segments.first()? {
        "crate" => {
            base.clear();
            segments.remove(0);
        }
        "self" => drop(segments.remove(0)),
        "super" => {
            while segments.first() == Some(&"super") {
                base.pop();
                segments.remove(0);
            }
        }
        first => {
            let child = own.iter().cloned().chain([first.to_owned()]);
            if !modules.contains_key(&child.collect::<CratePath>()) {
                return None;
            }
        }
    }
    base.extend(segments.into_iter().map(str::to_owned));
    // `a::{self, b}` names the module itself.
    if base.last().is_some_and(|last| last == "self") {
        base.pop();
    }
    Some(base)
}

/// The file that defines what `path` names; nothing for a module as such, whose items are named elsewhere.
fn definer<'f>(
    path: &[String],
    modules: &BTreeMap<CratePath, &'f str>,
    imports: &BTreeMap<&'f str, Imports>,
    depth: usize,
) -> Option<&'f str> {
    let (length, file) = (0..=path.len())
        .rev()
        .find_map(|length| Some((length, *modules.get(&path[..length])?)))?;
    let name = path.get(length)?;
    match imports[file].handed_on.get(name) {
        Some(origin) if depth < 8 && origin.as_slice() != path => {
            let inner = path[length + 1..].iter().cloned();
            let origin: CratePath = origin.iter().cloned().chain(inner).collect();
            definer(&origin, modules, imports, depth + 1)
        }
        _ => Some(file),
    }
}

/// The groups of more than one file in which each can be reached from each.
fn components(edges: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<Vec<String>> {
    let reached = |start: &str| {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut next: Vec<&str> = edges[start].iter().copied().collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(&edges[file]);
            }
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|file| (*file, reached(file))).collect();
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for (file, others) in &reach {
        if others.contains(file) {
            let circle = others.iter().filter(|other| reach[**other].contains(file));
            found.insert(circle.map(|file| (*file).to_owned()).collect());
        }
    }
    found.into_iter().collect()
}
