//! What `backbeat dev` leaves in its directory for `backbeat status`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Where everything runs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DevState {
    pub(crate) services: Vec<Service>,
}

/// A program with an HTTP server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) log: PathBuf,
}

const FILE: &str = "dev.json";

impl DevState {
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(FILE);
        fs::write(&path, serde_json::to_vec_pretty(self)?).with_context(|| format!("writing {}", path.display()))
    }

    /// `None` where nothing runs.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(serde_json::from_slice(&text).with_context(|| path.display().to_string())?))
    }

    /// The addresses of the programs whose name begins with `program`.
    pub(crate) fn urls(&self, program: &str) -> Vec<String> {
        let named = self.services.iter().filter(|service| service.name.starts_with(program));
        named.map(|service| service.url.clone()).collect()
    }

    pub(crate) fn remove(dir: &Path) {
        // A file that is left over says that nothing answers, which is true.
        let _ = fs::remove_file(dir.join(FILE));
    }
}
