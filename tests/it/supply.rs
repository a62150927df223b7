//! What comes from others is what docs/supply-chain.md and deny.toml say. The rest is `deploy/supply/check`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
const PAGE: &str = "docs/supply-chain.md";

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn parsed(path: &str) -> toml::Table {
    read(path).parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The crates of a lock file.
fn locked(path: &str) -> Vec<toml::Table> {
    let packages = parsed(path)["package"].as_array().unwrap().clone();
    packages.into_iter().map(|package| package.as_table().unwrap().clone()).collect()
}

/// Each crate's versions in Cargo.lock.
fn versions() -> BTreeMap<String, Vec<String>> {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in locked("Cargo.lock") {
        let text = |key: &str| package[key].as_str().unwrap().to_owned();
        versions.entry(text("name")).or_default().push(text("version"));
    }
    versions
}

/// The rows of the page's tables below `heading`, cell by cell, up to the next heading.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let page = read(PAGE);
    let below =
        page.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.starts_with('#'));
    let rows = below.filter(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The numbers of a version; what comes after a `+` is of no weight.
fn numbers(version: &str) -> Vec<u64> {
    let plain = version.split('+').next().unwrap();
    plain.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("no version: {version}"))).collect()
}

#[test]
fn every_crate_comes_from_crates_io_by_its_checksum() {
    for (lock, own) in
        [("Cargo.lock", &["fieldpost"][..]), ("fuzz/Cargo.lock", &["fieldpost", "fieldpost-fuzz"])]
    {
        let packages = locked(lock);
        assert!(packages.len() > 100, "{lock}: {} crates", packages.len());
        let mut without: BTreeSet<&str> = BTreeSet::new();
        for package in &packages {
            let name = package["name"].as_str().unwrap();
            match package.get("source").map(|source| source.as_str().unwrap()) {
                Some(CRATES_IO) => {
                    assert!(package.contains_key("checksum"), "{lock}: {name} has no checksum")
                }
                Some(other) => panic!("{lock}: {name} comes from {other}"),
                None => assert!(without.insert(name), "{lock}: two crates named {name} without a source"),
            }
        }
        assert_eq!(without, own.iter().copied().collect(), "{lock}: crates that come from a folder");
    }
}

/// The fuzz targets have a lock file of their own, which nothing else reads: it would stay behind unnoticed.
#[test]
fn the_fuzz_targets_lock_what_the_agent_does() {
    let (agent, packages) = (versions(), locked("fuzz/Cargo.lock"));
    let mut depends_on: BTreeSet<String> = BTreeSet::new();
    for package in &packages {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        if name == "fieldpost" {
            let names = package["dependencies"].as_array().unwrap().iter();
            // A crate of which there are several has its version behind the name.
            depends_on =
                names.map(|name| name.as_str().unwrap().split(' ').next().unwrap().to_owned()).collect();
        }
        let locked = agent.get(name).map_or(&[][..], Vec::as_slice);
        assert!(
            locked.is_empty() || locked.iter().any(|known| known == version),
            "fuzz/Cargo.lock: {name} {version}, in Cargo.lock {locked:?}: cargo update --manifest-path fuzz/Cargo.toml -p {name} --precise"
        );
    }
    let manifest = parsed("Cargo.toml");
    let wanted = manifest["dependencies"].as_table().unwrap().keys();
    let missing: Vec<_> = wanted.filter(|name| !depends_on.contains(*name)).collect();
    assert!(missing.is_empty(), "fuzz/Cargo.lock lags behind Cargo.toml: {missing:?}");
}

/// Two lists of the same would part: what a tool passes over, and what a reader is told of it.
#[test]
fn what_the_check_passes_over_is_on_the_page_with_its_reason() {
    let deny = parsed("deny.toml");
    let ignored = deny["advisories"]["ignore"].as_array().unwrap();
    let mut passed_over = BTreeSet::new();
    for entry in ignored {
        let (id, reason) = (entry["id"].as_str().unwrap(), entry["reason"].as_str().unwrap());
        assert!(reason.len() > 20, "{id}: {reason}");
        assert!(passed_over.insert(id.to_owned()), "{id} stands twice in deny.toml");
    }
    let versions = versions();
    let mut told = BTreeSet::new();
    for row in
        rows("## Advisories of crates").iter().filter(|row| row.len() == 4 && row[0].starts_with("RUSTSEC"))
    {
        let (name, version) = row[1].split_once(' ').unwrap();
        assert!(
            versions.get(name).is_some_and(|all| all.iter().any(|one| one == version)),
            "{}: no {}",
            row[0],
            row[1]
        );
        assert!(told.insert(row[0].clone()), "{} stands twice on the page", row[0]);
    }
    assert_eq!(told, passed_over);
}

#[test]
fn what_the_page_calls_mended_is_mended_in_each_version_that_is_used() {
    let versions = versions();
    let mut seen = 0;
    for row in
        rows("## Advisories of crates").iter().filter(|row| row.len() == 3 && row[0].starts_with("RUSTSEC"))
    {
        let [id, name, mended] = &row[..] else { unreachable!("three cells") };
        let used = versions.get(name).unwrap_or_else(|| panic!("{id}: {name} is not in Cargo.lock any more"));
        for version in used {
            assert!(numbers(version) >= numbers(mended), "{id}: {name} {version} is before {mended}");
        }
        seen += 1;
    }
    assert!(seen > 5, "{seen} rows");
}

#[test]
fn the_c_code_is_of_the_releases_that_the_page_looks_at() {
    let versions = versions();
    let table = rows("## C code");
    let libraries: Vec<_> = table
        .iter()
        .filter(|row| row.len() == 5 && row[0] != "library" && !row[0].starts_with('-'))
        .collect();
    assert_eq!(libraries.len(), 4, "{libraries:?}");
    for row in &libraries {
        let (name, version) = row[2].split_once(' ').unwrap();
        assert_eq!(versions.get(name).map(Vec::as_slice), Some(&[version.to_owned()][..]), "{name}");
        if let Some((_, bundled)) = version.split_once('+') {
            assert_eq!(bundled.trim_start_matches("zstd."), row[1], "{name}");
        }
    }
    let in_c: BTreeSet<&str> = libraries.iter().map(|row| row[2].split(' ').next().unwrap()).collect();
    // Crates that compile or link something for themselves: a new one belongs on the page.
    let links: BTreeSet<&str> = versions
        .keys()
        .map(String::as_str)
        .filter(|name| name.ends_with("-sys") || name.ends_with("-src"))
        .collect();
    let elsewhere = [
        "core-foundation-sys",
        "js-sys",
        "linux-raw-sys",
        "openssl-sys",
        "security-framework-sys",
        "web-sys",
        "windows-sys",
    ];
    let known: BTreeSet<&str> = in_c.into_iter().chain(elsewhere).collect();
    assert_eq!(links, known, "crates with C code, or bindings");
}

/// A tag of somebody else's repository can be moved; a commit cannot.
#[test]
fn workflows_run_others_code_by_commit_and_images_by_digest() {
    let mut used = 0;
    for name in ["ci.yml", "release.yml"] {
        let text = read(&format!(".github/workflows/{name}"));
        for line in text.lines().map(|line| line.trim().trim_start_matches("- ")) {
            let is_hex = |digest: &str, length| {
                digest.len() == length && digest.bytes().all(|b| b.is_ascii_hexdigit())
            };
            if let Some(action) = line.strip_prefix("uses: ") {
                let (_, pinned) = action.split_once('@').unwrap();
                let (commit, version) = pinned.split_once(" # v").unwrap_or_else(|| panic!("{name}: {line}"));
                assert!(is_hex(commit, 40) && version.contains('.'), "{name}: {line}");
                used += 1;
            } else if let Some(image) = line.strip_prefix("container: ").or(line.strip_prefix("image: ")) {
                let (_, digest) = image.split_once("@sha256:").unwrap_or_else(|| panic!("{name}: {line}"));
                assert!(is_hex(digest, 64), "{name}: {line}");
                used += 1;
            }
        }
    }
    assert!(used > 5, "{used}");
}
