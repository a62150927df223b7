//! Authorities and certificates of a test's own.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::symm::Cipher;
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};
use tempfile::TempDir;

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    None,
    /// Its time was over yesterday.
    Expired,
    /// For `elsewhere.example` instead of `localhost`, `127.0.0.1` and `::1`.
    OtherName,
    /// Signed by an authority that nobody trusts.
    OtherAuthority,
}

/// Two authorities, one of them trusted, and a folder for files.
pub(super) struct Pki {
    folder: TempDir,
    trusted: (X509, PKey<Private>),
    other: (X509, PKey<Private>),
}

impl Pki {
    /// With `ca.pem`, the trusted authority, and `other-ca.pem`.
    pub(super) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("fieldpost-pki-").tempdir().unwrap();
        let pki = Self { folder, trusted: authority("trusted"), other: authority("other") };
        pki.write("ca.pem", &pki.trusted.0.to_pem().unwrap());
        pki.write("other-ca.pem", &pki.other.0.to_pem().unwrap());
        pki
    }

    /// With the certificates of a service that serves well, with an expired one and under another name, and of the agent:
    /// `broker`, `expired`, `other-name`, `agent`.
    pub(super) fn of_a_broker() -> Self {
        let pki = Self::new();
        for (name, flaw) in [
            ("broker", Flaw::None),
            ("expired", Flaw::Expired),
            ("other-name", Flaw::OtherName),
            ("agent", Flaw::None),
        ] {
            pki.issue(name, flaw);
        }
        pki
    }

    /// Settings of a service, with the folder of the files for `@PKI@`.
    pub(super) fn settings(&self, template: &str) -> String {
        template.replace("@PKI@", self.folder.path().to_str().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Replaced at once, as certificate tools do, so that nobody reads half a file.
    pub(super) fn write(&self, name: &str, content: &[u8]) {
        write(&self.path(name), content);
    }

    pub(super) fn copy(&self, from: &str, to: &str) {
        self.write(to, &std::fs::read(self.path(from)).unwrap());
    }

    /// Makes a certificate: `NAME.pem`, `NAME.key`, and both in `NAME.both`.
    pub(super) fn issue(&self, name: &str, flaw: Flaw) {
        let key = self.issue_without_key_file(name, flaw);
        let key = key.private_key_to_pem_pkcs8().unwrap();
        self.write(&format!("{name}.key"), &key);
        let both = [key, std::fs::read(self.path(&format!("{name}.pem"))).unwrap()].concat();
        self.write(&format!("{name}.both"), &both);
    }

    /// As [`Pki::issue`], with a key that is encrypted.
    pub(super) fn issue_encrypted(&self, name: &str, password: &str) {
        let key = self.issue_without_key_file(name, Flaw::None);
        let pem = key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), password.as_bytes());
        self.write(&format!("{name}.key"), &pem.unwrap());
    }

    fn issue_without_key_file(&self, name: &str, flaw: Flaw) -> PKey<Private> {
        let key = key();
        let (issuer, signer) = if flaw == Flaw::OtherAuthority { &self.other } else { &self.trusted };
        let days = if flaw == Flaw::Expired { (-10, -1) } else { (-1, 10) };
        let mut builder = begin(&key, name, issuer.subject_name(), days);
        let mut names = SubjectAlternativeName::new();
        if flaw == Flaw::OtherName {
            names.dns("elsewhere.example");
        } else {
            names.dns("localhost").ip("127.0.0.1").ip("::1");
        }
        let names = names.build(&builder.x509v3_context(Some(issuer), None)).unwrap();
        builder.append_extension(names).unwrap();
        builder.sign(signer, MessageDigest::sha256()).unwrap();
        self.write(&format!("{name}.pem"), &builder.build().to_pem().unwrap());
        key
    }
}

pub(super) fn write(path: &Path, content: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn authority(name: &str) -> (X509, PKey<Private>) {
    let key = key();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let subject = subject.build();
    let mut builder = begin(&key, name, &subject, (-20, 20));
    builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    builder.append_extension(KeyUsage::new().key_cert_sign().build().unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (builder.build(), key)
}

/// A certificate without extensions and signature, valid from one day to another, counted from now.
fn begin(
    key: &PKey<Private>,
    name: &str,
    issuer: &openssl::x509::X509NameRef,
    (from, until): (i64, i64),
) -> X509Builder {
    let now =
        i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs())
            .unwrap();
    let at = |days: i64| Asn1Time::from_unix(now + days * 86_400).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(120, MsbOption::MAYBE_ZERO, false).unwrap();
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&subject.build()).unwrap();
    builder.set_issuer_name(issuer).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&at(from)).unwrap();
    builder.set_not_after(&at(until)).unwrap();
    builder
}
