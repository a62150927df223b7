//! The ids on disk: JSON with the registry, the schema they stand for, and the id of each topic; replaced atomically and
//! synced.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Options;
use crate::sink::record::schema::AVRO;

/// Far above [`super::TOPICS_MAX`] topics of the longest name.
const BYTES_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Ids mean nothing in another registry.
    registry: String,
    /// CRC-32 of the schema's text: another schema has another id.
    schema: u32,
    topics: BTreeMap<String, u32>,
}

/// The ids of this registry and this schema; none when there are none or the file cannot be used.
pub(super) fn load(options: &Options) -> BTreeMap<String, u32> {
    let path = &options.file;
    match read(path) {
        Ok(Some(kept))
            if kept.registry == options.url() && kept.schema == crc32fast::hash(AVRO.as_bytes()) =>
        {
            kept.topics
        }
        Ok(_) => BTreeMap::new(),
        Err(error) => {
            tracing::warn!(%error, file = %path.display(), "the schemas' ids cannot be read and are asked for again");
            BTreeMap::new()
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Kept>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(found) if found.len() > BYTES_MAX => return Err(io::Error::other("it is too large")),
        Ok(_) => {}
    }
    Ok(Some(serde_json::from_slice(&fs::read(path)?)?))
}

/// Replaces the file. Blocks.
pub(super) fn save(options: &Options, topics: &BTreeMap<String, u32>) -> io::Result<()> {
    let path = &options.file;
    let kept =
        Kept { registry: options.url(), schema: crc32fast::hash(AVRO.as_bytes()), topics: topics.clone() };
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(&kept)?)?;
    // Order: content, then name, or a power cut leaves the name with nothing in it.
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
