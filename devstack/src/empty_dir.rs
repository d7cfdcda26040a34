//! Directories for the data of a run.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::error::{Context, DevstackError};

/// How often removing is tried: a service of the run before has 10 s to stop.
const ATTEMPTS: u32 = 120;
const PAUSE: Duration = Duration::from_millis(100);

/// Creates `dir`, and removes what a run before has left there. A service of that run may still be stopping, and add files while
/// others are removed.
pub(crate) fn create_empty_dir(dir: &Path) -> Result<(), DevstackError> {
    let mut removed = Ok(());
    for _ in 0..ATTEMPTS {
        removed = match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        if !matches!(&removed, Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty) {
            break;
        }
        thread::sleep(PAUSE);
    }
    removed.context(|| format!("cannot remove {}", dir.display()))?;
    fs::create_dir_all(dir).context(|| format!("cannot create {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn directory_to_which_files_are_still_added_is_removed_in_the_end() {
        let parent = tempfile::TempDir::new().expect("a temporary directory");
        let dir = parent.path().join("data");
        fs::create_dir(&dir).expect("the directory is created");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..2_000 {
                    // Fails while the directory is removed.
                    let _ = fs::write(dir.join(number.to_string()), "");
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                create_empty_dir(&dir).expect("the directory is emptied");
            }
        });
        create_empty_dir(&dir).expect("the directory is emptied");
        assert_eq!(fs::read_dir(&dir).expect("it exists").count(), 0);
    }
}
