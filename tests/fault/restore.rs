//! Old copies come back: of the buffer's directory, of the whole data folder; or nothing is left of it. Numbering then
//! begins again where it was, and still no position may stand for two events, or consumers would drop new ones.

use std::path::PathBuf;

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer};
use crate::harness::kafka::create_topic;
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::support::round::{random, report, rounds};
use crate::support::tally::{Acked, Tally};
use crate::support::{Nowhere, copy_tree, finish, wait_up};

/// One life of the agent, with Kafka or without: takes events and stops in order.
fn live(agent: &mut Agent, brokers: &str, topic: &str, count: u64) -> Acked {
    agent.reconfigure(|config| {
        config.kafka(brokers, topic).set("agent.stop_grace", "5s");
    });
    agent.begin();
    wait_up(agent);
    let pace = Pace { count, ..Pace::default() };
    let acked = finish(vec![Producer::start(&agent.socket(), &unique("life"), pace)]);
    if brokers == Shared::get().kafka {
        assert_eq!(agent.stop().code(), Some(0));
    } else {
        // An orderly stop would wait for Kafka.
        agent.kill9();
    }
    acked
}

/// `part` of the data folder (`""` for all of it) goes back to a copy, or away.
fn restored(test: &str, part: &str, is_wiped: bool) {
    let (mut random, rounds) = (random(test), rounds(3));
    let kafka = &Shared::get().kafka;
    let nowhere = Nowhere::new();
    let topic = create_topic(kafka, 1);
    let tally = Tally::start(kafka, &topic);
    let mut agent = Agent::prepare(|_| {});
    let place: PathBuf = agent.data_dir().join(part);
    let copy = agent.home().join("copy");
    let mut acked = Acked::new();
    for _ in 0..rounds {
        let mut many = || random.u64(100..600);
        let (delivered, kept, gone, after) = (many(), many(), many(), many());
        acked.append(&mut live(&mut agent, kafka, &topic, delivered));
        acked.append(&mut live(&mut agent, nowhere.address(), &topic, kept));
        copy_tree(&place, &copy);
        // All of it is delivered, so the copy holds nothing that Kafka lacks.
        acked.append(&mut live(&mut agent, kafka, &topic, gone));
        let verdict = tally.verdict(&acked);
        assert!(verdict.lost.is_empty(), "{} events are not delivered", verdict.lost.len());
        std::fs::remove_dir_all(&place).unwrap();
        if !is_wiped {
            copy_tree(&copy, &place);
        }
        std::fs::remove_dir_all(&copy).unwrap();
        // Twice: the first start may find out about it, the second has to know.
        acked.append(&mut live(&mut agent, kafka, &topic, after));
        acked.append(&mut live(&mut agent, kafka, &topic, after));
    }
    let verdict = tally.verdict(&acked);
    report(test, rounds, &verdict, "");
    verdict.assert_sound();
}

#[test]
fn an_old_copy_of_the_buffer_never_uses_a_position_twice() {
    restored("old_buffer", "buffer", false);
}

#[test]
fn an_old_copy_of_the_data_folder_never_uses_a_position_twice() {
    restored("old_data_folder", "", false);
}

#[test]
fn a_wiped_buffer_never_uses_a_position_twice() {
    restored("wiped_buffer", "buffer", true);
}
