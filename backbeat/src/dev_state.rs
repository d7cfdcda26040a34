//! `dev.json`: the addresses of a running `backbeat dev`, for `backbeat status`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The services of a running `backbeat dev`.
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
        fs::write(&path, serde_json::to_vec_pretty(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the state in `dir`; `None` if no `backbeat dev` runs there.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", path.display()))?))
    }

    /// Returns the addresses of the services whose name starts with `program`.
    pub(crate) fn urls(&self, program: &str) -> Vec<String> {
        let matching = self.services.iter().filter(|service| service.name.starts_with(program));
        matching.map(|service| service.url.clone()).collect()
    }

    pub(crate) fn remove(dir: &Path) {
        // Errors are ignored: with a stale file `backbeat status` reports that nothing answers, which is true.
        let _ = fs::remove_file(dir.join(FILE));
    }
}
