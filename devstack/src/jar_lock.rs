//! The lock of Maven's downloads: the SHA-256 of every file, so that an artifact replaced on a repository is found.
//!
//! Maven pins versions, not contents, and a repository that replaces an artifact also replaces its checksum. The lock
//! is a text in the format of `sha256sum`; `make jar-locks` writes it anew after a version was changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::DevstackError;
use crate::error::Context;

/// The suffix of jars that Maven packs on this machine; their bytes depend on the version of Java.
const BUILT_HERE: &str = "-services.jar";

/// Compares all files below `dir` with the `lock`.
///
/// # Errors
///
/// [`DevstackError::JarLock`] names each file that differs, is missing, or is not in the lock.
pub(crate) fn check(lock: &str, dir: &Path) -> Result<(), DevstackError> {
    let mut found = BTreeMap::new();
    add_digests(dir, "", &mut found)?;
    let mut differences = Vec::new();
    for (expected, name) in lock.lines().filter_map(|line| line.split_once("  ")) {
        match found.remove(name) {
            Some(digest) if digest == expected => {}
            Some(digest) => differences.push(format!("{name} is {digest}, expected {expected}")),
            None => differences.push(format!("{name} is missing")),
        }
    }
    differences.extend(found.into_keys().map(|name| format!("{name} is not in the lock")));
    if differences.is_empty() { Ok(()) } else { Err(DevstackError::JarLock { differences: differences.join("; ") }) }
}

/// Adds the digest of each file below `dir`, by its path from where the search began.
fn add_digests(dir: &Path, prefix: &str, digests: &mut BTreeMap<String, String>) -> Result<(), DevstackError> {
    for entry in fs::read_dir(dir).context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.context(|| format!("cannot read {}", dir.display()))?.path();
        let name = format!("{prefix}{}", path.file_name().expect("an entry has a name").to_string_lossy());
        if path.is_dir() {
            add_digests(&path, &format!("{name}/"), digests)?;
        } else if !name.ends_with(BUILT_HERE) {
            let mut hasher = Sha256::new();
            File::open(&path)
                .and_then(|mut file| io::copy(&mut file, &mut hasher))
                .context(|| format!("cannot read {}", path.display()))?;
            digests.insert(name, format!("{:x}", hasher.finalize()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn each_file_that_differs_from_the_lock_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("plugin")).expect("the directory is created");
        for name in ["whole.jar", "plugin/whole.jar", "plugin/plugin-1-services.jar"] {
            fs::write(dir.path().join(name), "").expect("the file is written");
        }
        let lock = format!("{EMPTY}  plugin/whole.jar\n{EMPTY}  whole.jar\n");
        check(&lock, dir.path()).expect("all files are those of the lock");

        fs::write(dir.path().join("plugin/whole.jar"), "replaced").expect("the file is written");
        fs::rename(dir.path().join("whole.jar"), dir.path().join("new.jar")).expect("the file is renamed");
        let error = check(&lock, dir.path()).expect_err("three differences").to_string();
        assert!(error.contains("plugin/whole.jar is ") && error.contains(&format!("expected {EMPTY}")), "{error}");
        assert!(error.contains("; whole.jar is missing; new.jar is not in the lock"), "{error}");
    }
}
