//! Repositories in temporary folders: what is found in them, and what is said of the rest.

use super::*;

#[test]
fn settings_that_contradict_a_repository_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    for model in ["a/1", "b/2"] {
        fs::create_dir_all(path.join(model)).unwrap();
        fs::write(path.join(model).join("model.onnx"), b"x").unwrap();
    }
    assert!(find(path, None).is_ok());
    assert!(matches!(
        find(path, Some("x")),
        Err(RepositoryError::NameForFolder { .. })
    ));
    let sidecar = path.join("b/2/model.toml");
    fs::write(&sidecar, "name = \"a\"").unwrap();
    assert!(matches!(
        find(path, None),
        Err(RepositoryError::SameName { .. })
    ));
    fs::write(&sidecar, "version = \"3\"").unwrap();
    assert!(matches!(
        find(path, None),
        Err(RepositoryError::Version { .. })
    ));
    fs::write(&sidecar, "version = \"2\"").unwrap();
    assert!(find(path, None).is_ok());
}

/// A repository with these files; a name that ends with `/` is a folder.
fn repository(files: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in files {
        let path = root.path().join(file);
        if file.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
    }
    root
}

fn versions(found: &Found) -> Vec<(&str, &str)> {
    let sources = found.sources.iter();
    sources
        .map(|source| (source.name.as_str(), source.version.as_str()))
        .collect()
}

#[test]
fn a_repository_serves_the_highest_version_of_each_model() {
    let root = repository(&[
        "b/1/model.onnx",
        "a/9/model.onnx",
        "a/10/model.onnx",
        "a/010/model.onnx",
        "a/11/readme.txt",
        ".git/1/model.onnx",
        "c/x/model.onnx",
        "d/007/model.onnx",
    ]);
    let found = scan(root.path(), None).unwrap();
    assert_eq!(versions(&found), [("a", "10"), ("b", "1"), ("d", "7")]);
    let empty = root.path().join("nowhere");
    assert!(matches!(
        find(&empty, None),
        Err(RepositoryError::Missing { .. })
    ));
}

#[test]
fn whatever_is_not_served_is_named_with_a_reason() {
    let root = repository(&[
        "good/1/model.onnx",
        "good/1/weights.bin",
        "good/1/other.onnx",
        "README.md",
        "good/LICENSE",
        "good/config.pbtxt",
        "lost+found/",
        "..data/1/model.onnx",
    ]);
    let found = scan(root.path(), None).unwrap();
    assert_eq!(found.skipped, SkippedList::default());

    for (file, named, part) in [
        ("a/v4/model.onnx", "a/v4", "rename it to 4"),
        ("a/1.0/model.onnx", "a/1.0", "rename it to 1"),
        ("a/+1/model.onnx", "a/+1", "rename it to 1"),
        ("a/-1/model.onnx", "a/-1", "whole number"),
        ("a/0x2/model.onnx", "a/0x2", "whole number"),
        ("a/latest/model.onnx", "a/latest", "whole number"),
        (
            "a/18446744073709551616/model.onnx",
            "a/18446744073709551616",
            "the highest is 18446744073709551615",
        ),
        ("a/", "a", "holds no version"),
        ("a/1/", "a/1", "holds no model.onnx"),
        ("a/1/model.ONNX", "a/1", "rename model.ONNX to model.onnx"),
        ("a/1/my model.onnx", "a/1", "rename my model.onnx"),
        ("good/2/best.onnx", "good/2", "rename best.onnx"),
        (
            "good/01/model.onnx",
            "good/1",
            "the same version as good/01",
        ),
        ("good/model.onnx", "good/model.onnx", "good/1/model.onnx"),
        (
            "good/x.toml",
            "good/x.toml",
            "only as <name>/<version>/model.toml",
        ),
        ("x.onnx", "x.onnx", "move it to x/1/model.onnx"),
        ("my model.onnx", "my model.onnx", "move it to <name>/1/"),
        ("X.ONNX", "X.ONNX", "move it to X/1/model.onnx"),
        ("x.toml", "x.toml", "only as <name>/<version>/model.toml"),
        ("model.pt", "model.pt", "not part of a repository"),
        ("my model/1/model.onnx", "my model", "rename the folder"),
    ] {
        let root = repository(&["good/1/model.onnx", file]);
        let found = scan(root.path(), None).unwrap();
        assert_eq!(versions(&found), [("good", "1")], "{file}");
        let [entry] = found.skipped.named() else {
            panic!("{file}: {:?}", found.skipped);
        };
        let text = entry.to_string();
        assert!(text.contains(named), "{file}: {text}");
        assert!(text.contains(part), "{file}: {text}");
    }
}

#[test]
fn a_path_that_cannot_be_read_is_not_said_to_hold_no_model() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("models");
    for (kind, part) in [
        (ErrorKind::PermissionDenied, "chmod -R a+rX"),
        (ErrorKind::StaleNetworkFileHandle, "disk or volume"),
    ] {
        let text = missing(&path, kind.into()).to_string();
        assert!(
            text.starts_with(&format!("cannot read {}: ", path.display())),
            "{text}"
        );
        assert!(text.contains(part) && text.contains("--model"), "{text}");
    }
}

/// What is said of models that cannot be used, and of what is passed over.
fn told(found: &Found) -> (Vec<String>, Vec<String>) {
    let broken = found.broken.iter().map(|broken| {
        let version = broken.version.as_deref().unwrap_or("?");
        let place = broken.place.display().to_string();
        let fault = broken.fault.to_string().replace(&place, "*");
        format!("{}/{version}: {fault}", broken.name)
    });
    let skipped = found.skipped.named().iter().map(ToString::to_string);
    let mut skipped: Vec<String> = skipped.collect();
    skipped.sort();
    (broken.collect(), skipped)
}

#[test]
fn a_model_that_nobody_can_read_is_broken_and_other_links_and_pipes_are_named() {
    use std::os::unix::fs::symlink;
    let root = repository(&[
        "a/1/",
        "a/3/model.onnx",
        "b/1/model.onnx",
        "b/2/",
        "c/1/model.onnx/",
        "d/1/model.onnx",
        "d/model.toml/",
    ]);
    let path = root.path();
    let pipe = |place: &str| {
        nix::unistd::mkfifo(&path.join(place), nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    symlink("nowhere", path.join("gone")).unwrap();
    symlink("round", path.join("round")).unwrap();
    symlink("nowhere", path.join("notes.txt")).unwrap();
    symlink("nowhere", path.join("a/2")).unwrap();
    symlink("../../blob", path.join("a/1/model.onnx")).unwrap();
    pipe("b/pipe");
    pipe("pipe");
    pipe("b/2/model.onnx");
    let found = look(path, None).unwrap();
    // A version that cannot be read keeps the one below it from nothing.
    assert_eq!(versions(&found), [("a", "3"), ("b", "1")]);
    let (broken, skipped) = told(&found);
    let nowhere = "is a link that leads nowhere (to nowhere)";
    let special = "is neither a file nor a folder (a pipe, socket or device)";
    assert_eq!(
        broken[..2],
        [
            format!("b/2: */2/model.onnx {special}"),
            "c/1: */1/model.onnx is a folder, not a file".to_owned()
        ]
    );
    assert!(
        broken[2].starts_with("d/1: */model.toml is a folder"),
        "{}",
        broken[2]
    );
    assert_eq!(
        broken[3..],
        [
            format!("gone/?: * {nowhere}"),
            "round/?: * is a link that leads back to itself".to_owned()
        ]
    );
    assert_eq!(
        skipped,
        [
            "a/1/model.onnx: is a link that leads nowhere (to ../../blob)".to_owned(),
            format!("a/2: {nowhere}"),
            format!("b/pipe: {special}"),
            format!("notes.txt: {nowhere}"),
            format!("pipe: {special}"),
        ]
    );

    // Of two folders of one version, the one that can be used is served.
    fs::create_dir_all(path.join("e/1")).unwrap();
    fs::write(path.join("e/1/model.onnx"), b"x").unwrap();
    symlink("nowhere", path.join("e/01")).unwrap();
    let found = look(path, None).unwrap();
    assert!(versions(&found).contains(&("e", "1")));
    assert!(found.broken.iter().all(|broken| broken.name != "e"));
    fs::remove_dir_all(path.join("e")).unwrap();

    // All versions are wanted, or just the one.
    fs::write(path.join("a/model.toml"), "version_policy = \"all\"").unwrap();
    fs::write(
        path.join("b/model.toml"),
        "version_policy = { specific = [2, 4] }",
    )
    .unwrap();
    let found = look(path, None).unwrap();
    assert_eq!(versions(&found), [("a", "3")]);
    let (broken, skipped) = told(&found);
    let names: Vec<&str> = broken
        .iter()
        .map(|it| it.split(':').next().unwrap())
        .collect();
    assert_eq!(
        names,
        ["a/1", "a/2", "b/2", "c/1", "d/1", "gone/?", "round/?"]
    );
    assert!(
        skipped.iter().any(|it| it.starts_with("b/4: is not there")),
        "{skipped:?}"
    );
}

#[test]
fn an_empty_repository_says_what_it_holds_instead() {
    let root = repository(&["a/v1/model.onnx", "b.onnx"]);
    let error = scan(root.path(), None).unwrap_err().to_string();
    for part in [
        "expected <name>/<version>/model.onnx",
        "a/v1 (is no version",
        "b.onnx (",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let root = repository(&["saved_model.pb", "variables/variables.index"]);
    let error = scan(root.path(), None).unwrap_err().to_string();
    assert!(error.contains("tf2onnx"), "{error}");
    assert!(!error.contains("rename it"), "{error}");
    let root = repository(&["blobs/1", "refs/main", "snapshots/5c/"]);
    let error = scan(root.path(), None).unwrap_err().to_string();
    assert!(error.contains("--local-dir"), "{error}");
}

#[test]
fn every_broken_sidecar_is_named() {
    let root = repository(&["a/1/model.onnx", "b/1/model.onnx", "c/1/model.onnx"]);
    fs::write(root.path().join("a/1/model.toml"), "nmae = 1").unwrap();
    fs::write(root.path().join("c/1/model.toml"), "version = \"2\"").unwrap();
    let error = scan(root.path(), None).unwrap_err().to_string();
    for part in [
        "2 models cannot",
        "a/1/model.toml",
        "c/1/model.onnx",
        "leave the version out",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let found = look(root.path(), None).unwrap();
    assert_eq!(versions(&found), [("b", "1")]);
    let broken: Vec<&str> = found.broken.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(broken, ["a", "c"]);
}

#[test]
fn a_path_that_is_no_model_says_what_to_do() {
    let root = repository(&["my model.onnx"]);
    let model = root.path().join("my model.onnx");
    let error = find(&model, None).unwrap_err().to_string();
    assert!(error.contains("set --model-name (MODEL_NAME)"), "{error}");
    assert!(find(&model, Some("mine")).is_ok());

    for (path, parts) in [
        (
            "https://user:secret@host/m.onnx?key=secret",
            ["https://host/m.onnx", "model-serving fetch"],
        ),
        (
            "s3://bucket/m.onnx",
            ["s3://bucket/m.onnx", "model-serving fetch"],
        ),
        ("hf://org/name", ["hf://org/name", "model-serving fetch"]),
        ("file:///m.onnx", ["file:///m.onnx", "leave out file://"]),
    ] {
        let error = find(Path::new(path), None).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("secret"), "{error}");
    }
    let link = root.path().join("models--org--name");
    fs::create_dir(&link).unwrap();
    let link = link.join("model.onnx");
    std::os::unix::fs::symlink("../../blobs/5c", &link).unwrap();
    let error = find(&link, None).unwrap_err().to_string();
    for part in ["leads nowhere", "../../blobs/5c", "--local-dir"] {
        assert!(error.contains(part), "{error}");
    }
}
