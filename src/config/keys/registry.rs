//! The keys of `[schema_registry]`.

use super::super::parse;
use super::super::reader::{Key, Reader};
use super::{mins, ms, secs, security, username};
use crate::config::Agent;
use crate::sink::record::Format;
use crate::sink::registry::Options;

/// The schema registry, if `format` needs one.
pub(super) fn registry(r: &mut Reader, agent: &Agent, format: Format) -> Option<Options> {
    r.section("schema_registry", "The schema registry of kafka.format = \"avro\".");
    let url = r.optional_text(
        Key {
            name: "schema_registry.url",
            meaning: "Where the Schema Registry's HTTP interface is: Confluent's, Karapace, or the compatible one of another.",
            delivery: "Until it has told the id of a topic's schema once, events of that topic and those behind them wait in the \
                       buffer. Known ids are kept in the file SCHEMAS of the data directory: its outage stops nothing then.",
        },
        "http://host:port/path or https://",
        ("required with kafka.format = \"avro\"", "http://127.0.0.1:8081"),
        parse::registry_url,
    );
    security::built_in(r, url.as_ref().is_some_and(|url| url.tls), "schema_registry.url");
    let username = username(r, "schema_registry.username", "User of HTTP's basic authentication.");
    let password = r.secret(
        "schema_registry.password",
        Key {
            name: "schema_registry.password_file",
            meaning: "File that holds the password and nothing else; or the variable FIELDPOST_SCHEMA_REGISTRY__PASSWORD.",
            delivery: "",
        },
        "registry-password",
    );
    let ca_file = r.optional_text(
        Key {
            name: "schema_registry.ca_file",
            meaning: "Certificates (PEM) to trust besides the system's.",
            delivery: "",
        },
        "a path",
        ("the system's alone", "/etc/fieldpost/registry-ca.pem"),
        |text| parse::length(text, 4096).map(Into::into),
    );
    let timeout = r.duration(
        Key {
            name: "schema_registry.timeout",
            meaning: "Longest wait for an answer, connecting included.",
            delivery: "It is asked again, without end.",
        },
        secs(5),
        ms(10)..=mins(1),
    );
    r.relation(
        format != Format::Avro || url.is_some(),
        "kafka.format",
        &["schema_registry.url"],
        "schema_registry.url is not set: the format needs the id of its schema".to_owned(),
    );
    let parse::RegistryUrl { address, tls, path } = url?;
    let file = agent.data_dir.join("SCHEMAS");
    let (host, port) = (address.host, address.port);
    let options = Options { tls, host, port, path, username, password, ca_file, timeout, file };
    (format == Format::Avro).then_some(options)
}
