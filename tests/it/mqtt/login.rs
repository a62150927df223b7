//! Brokers that do not let the agent in, or not everywhere.

use std::process::Command;

use super::Bed;
use crate::harness::kafka::consume_count;
use crate::harness::mqtt::{Publisher, kind};
use crate::harness::services::{Private, Service, Shared};
use crate::harness::tap::Way;
use crate::harness::wait::USUAL;

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
