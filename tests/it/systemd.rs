//! The units of `deploy/systemd`, as systemd itself judges them, and the agent inside what they allow.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer};
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::mqtt::Publisher;
use crate::harness::services::Shared;
use crate::harness::tap::Tap;
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// Keys that a systemd of before version 254 names and passes over; the unit says so.
const NEWER_KEYS: [&str; 2] = ["'RestartSteps'", "'RestartMaxDelaySec'"];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// A tool of systemd's.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).env("SYSTEMD_LOG_LEVEL", "warning").output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; on Debian and Ubuntu: apt-get install systemd"))
}

/// The units as they would be installed, with this build's binary; and the agent `north` of the template.
fn units() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, installed) in [
        ("fieldpost.service", "fieldpost.service"),
        ("fieldpost.socket", "fieldpost.socket"),
        ("fieldpost@.service", "fieldpost@north.service"),
        ("fieldpost@.socket", "fieldpost@north.socket"),
    ] {
        let text = read(name);
        let (packaged, built) = ("/usr/bin/fieldpost ", concat!(env!("CARGO_BIN_EXE_fieldpost"), " "));
        assert_eq!(text.matches(packaged).count(), usize::from(name.ends_with("service")), "{name}");
        std::fs::write(folder.path().join(installed), text.replace(packaged, built)).unwrap();
    }
    folder
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let folder = units();
    for unit in ["fieldpost.service", "fieldpost.socket", "fieldpost@north.service", "fieldpost@north.socket"]
    {
        let path = folder.path().join(unit);
        let output = run("systemd-analyze", &["verify", "--man=no", path.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        let wrong: Vec<&str> =
            said.lines().filter(|line| !NEWER_KEYS.iter().any(|key| line.contains(key))).collect();
        assert!(output.status.success() && wrong.is_empty(), "{unit}: {}\n{said}", output.status);
    }
}

#[test]
fn the_sandbox_leaves_an_exposure_of_one_and_a_half_at_most() {
    let folder = units();
    for unit in ["fieldpost.service", "fieldpost@north.service"] {
        let path = folder.path().join(unit);
        // In tenths.
        let arguments =
            ["security", "--offline=true", "--no-pager", "--threshold=15", path.to_str().unwrap()];
        let output = run("systemd-analyze", &arguments);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        eprintln!("{}", said.lines().last().unwrap());
    }
}

/// Settings without comments and blank lines.
fn settings(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect()
}

/// What is changed in one is changed in the other.
#[test]
fn the_templates_are_the_units_with_a_name() {
    for kind in ["service", "socket"] {
        let wanted = read(&format!("fieldpost.{kind}"))
            .replace("Description=fieldpost,", "Description=fieldpost %i,")
            .replace("/etc/fieldpost/fieldpost.toml", "/etc/fieldpost/%i.toml")
            .replace(
                "StateDirectory=fieldpost\n",
                "StateDirectory=fieldpost-%i\nEnvironment=FIELDPOST_AGENT__DATA_DIR=%S/fieldpost-%i\n",
            )
            .replace("RuntimeDirectory=fieldpost\n", "RuntimeDirectory=fieldpost-%i\n")
            .replace("/run/fieldpost/", "/run/fieldpost-%i/")
            .replace("=fieldpost.", "=fieldpost-%i.");
        let template = read(&format!("fieldpost@.{kind}"));
        assert_eq!(settings(&template), settings(&wanted));
    }
}

/// What the unit passes on is what the manual says.
#[test]
fn the_manual_names_each_credential() {
    let manual =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md")).unwrap();
    let unit = read("fieldpost.service");
    let passed: Vec<&str> =
        settings(&unit).into_iter().filter_map(|line| line.strip_prefix("LoadCredential=")).collect();
    assert_eq!(passed.len(), 11, "{passed:?}");
    for name in passed {
        assert!(manual.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn the_user_and_the_folders_are_made_as_the_units_want_them() {
    assert!(
        rustix::process::geteuid().is_root(),
        "folders for another user can only be made by root: run the tests as root, as .ci/run does"
    );
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    let at = format!("--root={}", root.path().display());
    for (program, arguments) in [
        ("systemd-sysusers", vec![file("sysusers.conf")]),
        ("systemd-tmpfiles", vec!["--create".into(), file("tmpfiles.conf")]),
    ] {
        let arguments = arguments.iter().map(|path| path.to_str().unwrap());
        let arguments: Vec<&str> = std::iter::once(at.as_str()).chain(arguments).collect();
        let output = run(program, &arguments);
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let users = std::fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    let user: Vec<&str> =
        users.lines().find(|line| line.starts_with("fieldpost:")).unwrap().split(':').collect();
    assert!(user[6].ends_with("nologin"), "{user:?}");
    for (folder, mode, is_its) in [
        ("etc/fieldpost", 0o755, false),
        ("etc/credstore", 0o700, false),
        ("var/lib/fieldpost", 0o700, true),
        ("run/fieldpost", 0o755, true),
    ] {
        use std::os::unix::fs::MetadataExt as _;
        let found = std::fs::metadata(root.path().join(folder)).unwrap();
        let owner = if is_its { user[2] } else { "0" };
        assert_eq!((found.mode() & 0o7777, found.uid().to_string().as_str()), (mode, owner), "{folder}");
    }
}

/// The system calls that `sets` of the unit's filter stand for.
fn calls_of<'a>(listing: &'a str, set: &str, calls: &mut BTreeSet<&'a str>) {
    let members =
        listing.lines().skip_while(|line| *line != set).skip(1).take_while(|line| !line.starts_with('@'));
    for member in members.map(str::trim).filter(|member| !member.is_empty() && !member.starts_with('#')) {
        if member.starts_with('@') {
            calls_of(listing, member, calls);
        } else {
            calls.insert(member);
        }
    }
}

/// What the unit's `SystemCallFilter=` lines allow.
fn allowed(listing: &str) -> BTreeSet<&str> {
    let unit = read("fieldpost.service");
    // Always allowed: what every program needs to start and to end.
    let mut allowed = BTreeSet::new();
    calls_of(listing, "@default", &mut allowed);
    for words in settings(&unit).iter().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let mut calls = BTreeSet::new();
        for set in words.trim_start_matches('~').split(' ') {
            calls_of(listing, set, &mut calls);
        }
        if words.starts_with('~') {
            allowed.retain(|call| !calls.contains(call));
        } else {
            allowed.append(&mut calls);
        }
    }
    assert!(allowed.len() > 100 && !allowed.contains("mount"), "{allowed:?}");
    allowed
}

/// A call that is refused on the gateway and nowhere else would be a bug that no other test sees.
#[test]
fn the_agent_makes_no_system_call_that_the_unit_forbids() {
    let listing =
        String::from_utf8(run("systemd-analyze", &["syscall-filter", "--no-pager"]).stdout).unwrap();
    let allowed = allowed(&listing);
    let topic = create_topic(&Shared::get().kafka, 1);
    let prefix = unique("calls");
    let tap = Tap::on(&Shared::get().mqtt);
    let mut agent = Agent::prepare(|config| {
        config.shared_kafka(&topic).shared_redis().set("kafka.delivery", "exactly_once");
        config.mqtt(&tap.url(), &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
    });
    let calls = agent.home().join("calls");
    agent.reconfigure(|config| {
        config.wrapper(&["strace", "-D", "-f", "-qq", "-o", calls.to_str().unwrap()]);
    });
    agent.begin();
    agent.wait_ready();
    let producer = Producer::start(
        &agent.socket(),
        &unique("s"),
        Pace { count: 500, padding: 20_000, ..Pace::default() },
    );
    producer.finish(USUAL);
    tap.wait_subscribed();
    Publisher::connect(&Shared::get().mqtt).publish(1, &format!("{prefix}/a/b/c"), "1");
    consume_count(&Shared::get().kafka, &topic, 501, USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    let lines = std::fs::read_to_string(&calls).unwrap();
    // `PID name(arguments`; further lines of an interrupted call begin with `<`, signals with `-`, ends with `+`.
    let made: BTreeSet<&str> = lines
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('))
        .map(|(name, _)| name)
        .filter(|name| {
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        })
        .collect();
    assert!(made.len() > 40 && made.contains("fdatasync"), "{made:?}");
    let forbidden: Vec<_> = made.difference(&allowed).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
}
