//! `deploy/dist/build`: what it refuses to release, and what it says of the parts.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const REPO: &str = env!("CARGO_MANIFEST_DIR");

#[track_caller]
fn git(folder: &Path, words: &[&str]) {
    let status = Command::new("git").current_dir(folder).args(words).output().expect("git is there").status;
    assert!(status.success(), "git {words:?}");
}

/// A repository with nothing but what decides on a release.
fn repository(version: &str, changelog: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    std::fs::create_dir_all(place.join("deploy/dist")).unwrap();
    std::fs::copy(Path::new(REPO).join("deploy/dist/build"), place.join("deploy/dist/build")).unwrap();
    std::fs::write(place.join("Cargo.toml"), format!("[package]\nversion = \"{version}\"\n")).unwrap();
    std::fs::write(place.join("CHANGELOG.md"), changelog).unwrap();
    git(place, &["init", "-q"]);
    git(place, &["add", "-A"]);
    git(place, &["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "x"]);
    folder
}

fn check(folder: &TempDir, words: &[&str]) -> Output {
    Command::new(folder.path().join("deploy/dist/build")).args(words).output().unwrap()
}

fn said(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_release_is_refused_unless_version_tag_and_changelog_agree() {
    const GOOD: &str = "# Changelog\n\n## 1.2.3\n\n- x\n\n## 1.2.2\n\n- y\n";
    let good = repository("1.2.3", GOOD);
    let output = check(&good, &["check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the commit has no tag"), "{}", said(&output));
    git(good.path(), &["tag", "v1.2.2"]);
    assert!(said(&check(&good, &["check"])).contains("the commit has v1.2.2"));
    git(good.path(), &["tag", "v1.2.3"]);
    let output = check(&good, &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    std::fs::write(good.path().join("new"), "").unwrap();
    assert!(said(&check(&good, &["check"])).contains("differs from the commit: ?? new"));
    for (changelog, wrong) in [
        (
            "# Changelog\n\n## Unreleased\n\n- z\n\n## 1.2.3\n\n- x\n",
            "the newest section of CHANGELOG.md is Unreleased",
        ),
        ("# Changelog\n\n## 1.2.3\n\n## 1.2.2\n\n- y\n", "CHANGELOG.md says nothing of 1.2.3"),
    ] {
        let folder = repository("1.2.3", changelog);
        git(folder.path(), &["tag", "v1.2.3"]);
        let output = check(&folder, &["check"]);
        assert_eq!(output.status.code(), Some(1), "{wrong}");
        assert!(said(&output).contains(wrong), "{}", said(&output));
    }
    let untagged = repository("1.2.3", "# Changelog\n\n## Unreleased\n\n- z\n");
    assert_eq!(check(&untagged, &["--rehearse", "check"]).status.code(), Some(0));
    assert_eq!(check(&untagged, &["chekc"]).status.code(), Some(64));
}

/// The list of parts names what is linked, by the checksums of Cargo.lock, and the C code of docs/supply-chain.md.
#[test]
fn the_papers_name_every_part_with_its_checksum_and_licence() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("deploy/dist/papers").current_dir(REPO).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let name = concat!("fieldpost-", env!("CARGO_PKG_VERSION"), ".cdx.json");
    let bill: Value = serde_json::from_slice(&std::fs::read(folder.path().join(name)).unwrap()).unwrap();
    assert_eq!((bill["bomFormat"].as_str(), bill["specVersion"].as_str()), (Some("CycloneDX"), Some("1.6")));
    let lock = std::fs::read_to_string(Path::new(REPO).join("Cargo.lock")).unwrap();
    let page = std::fs::read_to_string(Path::new(REPO).join("docs/supply-chain.md")).unwrap();
    let texts = std::fs::read_to_string(folder.path().join("THIRD-PARTY-LICENSES")).unwrap();
    let mut names = BTreeSet::new();
    let mut in_c = 0;
    for part in bill["components"].as_array().unwrap() {
        let (name, version) = (part["name"].as_str().unwrap(), part["version"].as_str().unwrap());
        assert!(texts.contains(&format!("{name} {version} (")), "no licence text for {name} {version}");
        if part["purl"].as_str().unwrap().starts_with("pkg:cargo/") {
            let sum = part["hashes"][0]["content"].as_str().unwrap();
            assert!(lock.contains(&format!("checksum = \"{sum}\"")), "{name}");
        } else {
            assert!(
                page.contains(&format!("| {name} | {version} |")),
                "{PAGE} has another {name} than {version}"
            );
            in_c += 1;
        }
        names.insert(name);
    }
    assert_eq!(in_c, 4);
    for linked in ["sled", "tokio", "rumqttc", "redis", "rdkafka", "openssl-src"] {
        assert!(names.contains(linked), "{linked} is linked");
    }
    for not in ["proptest", "serde_derive", "cc", "windows-sys", "jsonschema"] {
        assert!(!names.contains(not), "{not} is in no binary");
    }
    assert!(texts.contains("Rich Felker"), "musl");
}

const PAGE: &str = "docs/supply-chain.md";
