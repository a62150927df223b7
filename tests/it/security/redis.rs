//! Redis.

use redis::Msg;

use super::pki::{Flaw, Pki};
use super::{MENDED, explained, said};
use crate::harness::agent::{Agent, Config};
use crate::harness::flow::line_of;
use crate::harness::sentinel::Sentinel;
use crate::harness::services::{Private, Service};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually, scaled};
use crate::tail::Tail;

/// TLS beside the plain port, on which tests listen.
const TLS: &str = "
tls-port @SPARE_PORT@
tls-ca-cert-file @PKI@/ca.pem
tls-cert-file @PKI@/server.pem
tls-key-file @PKI@/server.key
user agent on >right +ping +publish &events:probe:*
user watcher on >right +@all ~* &*
# @SPARE_PORT_2@ is a Sentinel's.
";

struct Secured {
    pki: Pki,
    redis: Private,
}

impl Secured {
    fn start(flaw: Flaw, clients: &str) -> Self {
        let pki = Pki::new();
        pki.issue("server", flaw);
        pki.issue("agent", Flaw::None);
        pki.write("password", b"right");
        let settings = pki.settings(TLS);
        let redis =
            Private::with_settings(Service::Redis, &format!("{settings}tls-auth-clients {clients}\n"));
        Self { pki, redis }
    }

    fn agent(&self, configure: impl FnOnce(&mut Config)) -> Agent {
        Agent::start(|config| {
            config.kafka("127.0.0.1:9", "nowhere");
            config.redis(&format!("rediss://localhost:{}", self.redis.spare_port()));
            config.set("redis.ca_file", self.pki.text("ca.pem"));
            config.set("redis.username", "agent").set("redis.password_file", self.pki.text("password"));
            configure(config);
        })
    }

    /// The link is up and the ping of an event comes.
    #[track_caller]
    fn works(&self, agent: &Agent) {
        agent.wait_log("Redis link up", MENDED);
        let source = unique("s");
        let mut listener = redis::Client::open(self.redis.address()).unwrap().get_connection().unwrap();
        let subscribe = redis::cmd("SUBSCRIBE").arg(format!("events:probe:{source}")).get_packed_command();
        listener.set_read_timeout(Some(scaled(USUAL))).unwrap();
        listener.send_packed_command(&subscribe).unwrap();
        listener.recv_response().expect("the subscription is confirmed");
        let mut client = agent.unix();
        client.send_line(&line_of(&source, 0, 10));
        client.wait_ack(1, USUAL);
        let ping = Msg::from_owned_value(listener.recv_response().expect("a ping comes"));
        assert!(ping.is_some_and(|ping| ping.get_payload::<String>().unwrap().contains(&source)));
    }
}

#[test]
fn what_is_wrong_is_said_and_mended_without_a_restart() {
    let secured = Secured::start(Flaw::None, "yes");
    let pki = &secured.pki;
    let own = |name: &'static str| {
        move |config: &mut Config| {
            config.set("redis.cert_file", pki.text(&format!("{name}.pem")));
            config.set("redis.key_file", pki.text(&format!("{name}.key")));
        }
    };
    secured.works(&secured.agent(own("agent")));
    pki.copy("other-ca.pem", "own-ca.pem");
    pki.write("own-password", b"wrong-secret");
    pki.issue("old", Flaw::Expired);
    pki.issue("foreign", Flaw::OtherAuthority);
    const DOWN: &str = "Redis link down";
    let unknown = secured.agent(|config| {
        own("agent")(config);
        config.set("redis.ca_file", pki.text("own-ca.pem"));
    });
    let wrong = secured.agent(|config| {
        own("agent")(config);
        config.set("redis.password_file", pki.text("own-password"));
    });
    let old = secured.agent(own("old"));
    let foreign = secured.agent(own("foreign"));
    let bare = secured.agent(|_| {});
    explained(&unknown, DOWN, &["set redis.ca_file"]);
    explained(&wrong, DOWN, &["redis.username and redis.password_file"]);
    // The client library may swallow what OpenSSL says of the server's alert.
    said(&old, DOWN, &["redis.cert_file"]);
    said(&foreign, DOWN, &["redis.cert_file"]);
    said(&bare, DOWN, &["redis.cert_file"]);
    assert!(!wrong.log().join("\n").contains("wrong-secret"));
    pki.copy("ca.pem", "own-ca.pem");
    pki.write("own-password", b"right");
    for name in ["old", "foreign"] {
        for kind in ["key", "pem"] {
            pki.copy(&format!("agent.{kind}"), &format!("{name}.{kind}"));
        }
    }
    for agent in [&unknown, &wrong, &old, &foreign] {
        secured.works(agent);
    }
}

#[test]
fn a_servers_wrong_certificate_is_said_and_mended_without_a_restart() {
    for (flaw, wanted) in [
        (Flaw::Expired, "the server's certificate has expired: renew it there"),
        (Flaw::OtherName, "certificate is not for localhost"),
    ] {
        let secured = Secured::start(flaw, "no");
        let agent = secured.agent(|_| {});
        explained(&agent, "Redis link down", &[wanted]);
        secured.redis.end();
        secured.pki.issue("server", Flaw::None);
        secured.redis.begin_again();
        secured.works(&agent);
    }
}

#[test]
fn rotation_drops_no_ping_and_what_does_not_work_does_not_take_over() {
    const EVENTS: u64 = 2000;
    let secured = Secured::start(Flaw::None, "yes");
    let pki = &secured.pki;
    let copy = |name: &str| {
        for kind in ["key", "pem"] {
            pki.copy(&format!("{name}.{kind}"), &format!("rotated.{kind}"));
        }
    };
    copy("agent");
    let mut agent = secured.agent(|config| {
        config.set("redis.cert_file", pki.text("rotated.pem")).set("redis.key_file", pki.text("rotated.key"));
    });
    agent.wait_log("Redis link up", USUAL);
    let source = unique("s");
    let mut client = agent.unix();
    let mut sent = 0;
    let mut flow_until = |what: &str, part: &str| {
        eventually(what, MENDED, || {
            client.send_line(&line_of(&source, sent, 10));
            sent += 1;
            client.wait_ack(sent, USUAL);
            agent.log_contains(part).then_some(())
        });
        sent
    };
    pki.issue("agent", Flaw::None);
    copy("agent");
    flow_until("the link is made anew", "Redis link made anew from changed files");
    pki.issue("stranger", Flaw::OtherAuthority);
    copy("stranger");
    let sent = flow_until("the files are refused", "changed files do not open a link to Redis");
    assert!(sent < EVENTS * 100);
    assert_eq!(agent.stop().code(), Some(0));
    let status = agent.log().into_iter().rfind(|line| line.contains("pings ")).expect("a status line");
    assert!(status.contains(&format!("pings {sent} (dropped 0)")), "{sent}: {status}");
}

/// A Sentinel that speaks TLS alone and wants a password that Redis does not know.
fn sentinel_of(secured: &Secured) -> Sentinel {
    const SETTINGS: &str = "
port 0
tls-port @SENTINEL@
tls-ca-cert-file @PKI@/ca.pem
tls-cert-file @PKI@/server.pem
tls-key-file @PKI@/server.key
tls-auth-clients no
tls-replication yes
requirepass guard-secret
sentinel monitor main 127.0.0.1 @REDIS@ 1
";
    let settings = SETTINGS.replace("@SENTINEL@", &secured.redis.spare_port_of(2).to_string());
    let settings = settings.replace("@REDIS@", &secured.redis.spare_port().to_string());
    Sentinel::start(&secured.pki.settings(&settings))
}

#[test]
fn a_sentinel_with_tls_and_a_password_of_its_own_and_which_of_two_is_wrong_is_said() {
    let secured = Secured::start(Flaw::None, "no");
    let _sentinel = sentinel_of(&secured);
    let pki = &secured.pki;
    pki.write("guard", b"guard-secret");
    pki.write("own-guard", b"wrong-secret");
    pki.write("own-password", b"wrong-secret");
    let port = secured.redis.spare_port_of(2);
    let with = |guard: Option<&str>, password: &str| {
        let (guard, password) = (guard.map(|name| pki.text(name)), pki.text(password));
        move |config: &mut Config| {
            config.redis(&format!("rediss+sentinel://localhost:{port}/main"));
            config.set("redis.password_file", password);
            if let Some(guard) = guard {
                config.set("redis.sentinel_password_file", guard);
            }
        }
    };
    const DOWN: &str = "Redis link down: pings are dropped until somebody";
    let good = secured.agent(with(Some("guard"), "password"));
    secured.works(&good);
    let wrong_guard = secured.agent(with(Some("own-guard"), "password"));
    let wrong_password = secured.agent(with(Some("guard"), "own-password"));
    let without = secured.agent(with(None, "password"));
    let stranger = secured.agent(|config| {
        with(Some("guard"), "password")(config);
        config.set("redis.ca_file", pki.text("other-ca.pem"));
    });
    let place = format!("the Sentinel localhost:{port} refuses AUTH");
    explained(&wrong_guard, DOWN, &[&place, "redis.sentinel_password_file"]);
    explained(&without, DOWN, &[&place, "redis.sentinel_password_file"]);
    explained(&wrong_password, DOWN, &["Redis refuses AUTH", "redis.username and redis.password_file"]);
    explained(&stranger, DOWN, &["set redis.ca_file"]);
    for (agent, part) in [(&wrong_guard, "sentinel_password_file"), (&wrong_password, "see redis.username")] {
        let output = agent.command(&["tail", "--from", "redis"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(75) && said.contains(part), "{output:?}");
        assert!(!format!("{said}{}", agent.log().join("\n")).contains("wrong-secret"));
    }
    pki.write("own-guard", b"guard-secret");
    pki.write("own-password", b"right");
    secured.works(&wrong_guard);
    secured.works(&wrong_password);
}

#[test]
fn tail_listens_and_reads_streams_over_tls() {
    let secured = Secured::start(Flaw::None, "no");
    let pki = &secured.pki;
    let watcher = |config: &mut Config| {
        config.set("redis.username", "watcher").set("redis.mode", "both");
    };
    let agent = secured.agent(watcher);
    agent.wait_log("Redis link up", USUAL);
    let source = unique("s");
    let mut tail = Tail::start(&agent, &["--from", "redis", "--json", "--count", "1"]);
    let mut client = agent.unix();
    let mut sent = 0;
    // Sent again: what comes before the subscription is heard by nobody.
    eventually("a ping is heard", USUAL, || {
        client.send_line(&line_of(&source, sent, 10));
        sent += 1;
        client.wait_ack(sent, USUAL);
        (!tail.shown().is_empty()).then_some(())
    });
    assert_eq!(tail.wait_exit().code(), Some(0));
    assert_eq!(tail.events(1)[0]["source_id"], source.as_str());
    let count = sent.to_string();
    let words = ["--from", "streams", "--json", "--after", "0", "--count", &count];
    let mut tail = Tail::start(&agent, &words);
    assert_eq!(tail.wait_exit().code(), Some(0));
    assert_eq!(tail.events(1)[0]["id"], format!("{source}-0"));
    pki.write("own-password", b"wrong-secret");
    for (key, file, part) in [
        (
            "redis.ca_file",
            "other-ca.pem",
            "no authority that the agent trusts has signed the server's certificate: set redis.ca_file",
        ),
        ("redis.password_file", "own-password", "see redis.username and redis.password_file"),
    ] {
        let stranger = Agent::prepare(|config| {
            config.kafka("127.0.0.1:9", "nowhere");
            config.redis(&format!("rediss://localhost:{}", secured.redis.spare_port()));
            config.set("redis.ca_file", pki.text("ca.pem")).set("redis.password_file", pki.text("password"));
            watcher(config);
            config.set(key, pki.text(file));
        });
        for from in ["redis", "streams"] {
            let output = stranger.command(&["tail", "--from", from]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(75) && said.contains(part), "{from}: {output:?}");
            assert!(!said.contains("wrong-secret"), "{said}");
        }
    }
}
