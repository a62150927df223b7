//! Brokers that do not let the agent in, or not everywhere.

use std::path::PathBuf;
use std::process::Command;

use super::Bed;
use crate::harness::kafka::{consume_count, read_all};
use crate::harness::mqtt::{Publisher, kind};
use crate::harness::services::{Private, Service, Shared};
use crate::harness::tap::Way;
use crate::harness::wait::{USUAL, eventually};

/// Lines of the log at ERROR.
fn errors(bed: &Bed) -> Vec<String> {
    bed.agent.log().into_iter().filter(|line| line.contains("ERROR")).collect()
}

#[test]
fn a_wrong_password_is_explained_and_a_right_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let (users, password) = (folder.path().join("users"), folder.path().join("password"));
    let made =
        Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&users).args(["agent", "right"]).output();
    assert!(
        made.is_ok_and(|made| made.status.success()),
        "mosquitto_passwd, of Debian's mosquitto, makes the file"
    );
    let broker = Private::with_settings(Service::Mosquitto, &format!("password_file {}", users.display()));
    for protocol in [5, 4] {
        std::fs::write(&password, "wrong-secret\n").unwrap();
        let mut bed = Bed::prepare(broker.address(), |config| {
            config.set("mqtt.protocol", protocol).set("mqtt.username", "agent");
            config.set("mqtt.password_file", password.to_str().unwrap());
        });
        let line = bed.agent.wait_log("MQTT broker refuses the connection", USUAL);
        assert!(line.contains("mqtt.username and mqtt.password_file"), "{line}");
        // The second attempt says nothing new.
        bed.tap.wait_count(Way::ToBroker, kind::CONNECT, 2, USUAL);
        bed.tap.wait_count(Way::ToAgent, kind::CONNACK, 2, USUAL);
        assert_eq!(errors(&bed).len(), 1, "{:#?}", errors(&bed));
        assert!(!bed.agent.log().join("\n").contains("wrong-secret"));

        std::fs::write(&password, "right\n").unwrap();
        bed.restart();
        bed.tap.wait_subscribed();
        Publisher::connect(broker.address()).publish(1, &bed.topic_of("probe/s/reading"), "1");
        consume_count(&Shared::get().kafka, &bed.topic, 1, USUAL);
        assert!(errors(&bed).is_empty());
    }
}

/// Lets everybody in and denies one filter.
const DENIED: &str = r#"{
    "defaultACLAccess": {"publishClientSend": true, "publishClientReceive": true, "subscribe": true, "unsubscribe": true},
    "anonymousGroup": "all",
    "groups": [{"groupname": "all", "roles": [{"rolename": "some"}]}],
    "roles": [{"rolename": "some", "acls": [
        {"acltype": "subscribePattern", "topic": "denied/#", "priority": 1, "allow": false}
    ]}]
}"#;

/// The plugin with the only access list of Mosquitto's own that refuses subscriptions; it is in its package.
fn access_list_plugin() -> PathBuf {
    let mut folders = vec![PathBuf::from("/usr/lib")];
    folders.extend(std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path()));
    let mut files = folders.into_iter().map(|folder| folder.join("mosquitto_dynamic_security.so"));
    files.find(|file| file.exists()).expect("mosquitto_dynamic_security.so of Debian's mosquitto")
}

#[test]
fn a_denied_subscription_is_explained_and_the_others_work() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules.json");
    std::fs::write(&rules, DENIED).unwrap();
    let settings =
        format!("plugin {}\nplugin_opt_config_file {}", access_list_plugin().display(), rules.display());
    let broker = Private::with_settings(Service::Mosquitto, &settings);
    for protocol in [5, 4] {
        std::fs::write(&rules, DENIED).unwrap();
        broker.end();
        broker.begin_again();
        let mut bed = Bed::prepare(broker.address(), |config| {
            config.set("mqtt.protocol", protocol);
        });
        let usual = bed.topic_of("{source_type}/{source_id}/{type}");
        let denied = format!("denied/{usual}");
        bed.agent.reconfigure(|config| {
            config.set("mqtt.topics", vec![denied.clone(), usual]);
        });
        bed.restart();
        let line = bed.agent.wait_log("MQTT subscription refused", USUAL);
        assert!(line.contains("mqtt.topics") && line.contains("denied/"), "{line}");
        let mut sensor = Publisher::connect(broker.address());
        sensor.publish(1, &bed.topic_of("probe/s/reading"), "1");
        consume_count(&Shared::get().kafka, &bed.topic, 1, USUAL);
        // The next attempt says nothing new.
        let answers = bed.tap.count(Way::ToAgent, kind::SUBACK);
        bed.tap.wait_count(Way::ToAgent, kind::SUBACK, answers + 1, USUAL);
        assert_eq!(errors(&bed).len(), 1, "{:#?}", errors(&bed));

        // Once the rule is gone it works, without a hand on the agent.
        std::fs::write(&rules, DENIED.replace("false", "true")).unwrap();
        broker.end();
        broker.begin_again();
        let mut sensor = Publisher::connect(broker.address());
        let topic = format!("denied/{}", bed.topic_of("probe/s/reading"));
        eventually("the filter is granted", USUAL, || {
            sensor.publish(1, &topic, "2");
            (read_all(&Shared::get().kafka, &bed.topic).len() > 1).then_some(())
        });
    }
}
