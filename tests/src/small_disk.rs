//! A file system of a few MiB, which a test can fill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backbeat_devstack::Supervised;

use crate::wait_until;

const LIMIT: Duration = Duration::from_secs(10);

/// A tmpfs in a mount namespace of its own, so that neither root's rights nor any cleaning up are needed. It ends with this
/// value.
pub struct SmallDisk {
    dir: PathBuf,
    /// The process that the namespace belongs to.
    holder: Supervised,
}

impl SmallDisk {
    /// Mounts a file system of `mib` MiB on `dir`, an existing directory, for the programs that [`Self::command`] starts.
    pub fn mount(dir: &Path, mib: usize) -> Self {
        let mut holder = Command::new("unshare");
        holder.args(["--map-root-user", "--mount", "sh", "-c"]);
        holder.arg("mount -t tmpfs -o size=$1m tmpfs \"$0\" && echo mounted && exec sleep infinity");
        holder.arg(dir).arg(mib.to_string());
        let log = dir.with_extension("mount.log");
        let holder = Supervised::spawn(&holder, &log, LIMIT).expect("unshare starts");
        wait_until("the file system", LIMIT, || fs::read_to_string(&log).is_ok_and(|text| text.contains("mounted")));
        Self { dir: dir.to_owned(), holder }
    }

    /// Returns `command` with the file system in place of its directory.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        let target = self.holder.pid().to_string();
        inside.args(["--preserve-credentials", "--user", "--mount", "--target", &target, "--"]);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            inside.env(name, value.expect("no variable is removed"));
        }
        inside
    }

    /// The file that [`Self::fill`] writes.
    fn filler(&self) -> PathBuf {
        let dir = self.dir.strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(self.holder.pid().to_string()).join("root").join(dir).join("filler")
    }

    /// Takes all space that is left.
    pub fn fill(&self) {
        let written = fs::write(self.filler(), vec![0; 1 << 30]);
        let error = written.expect_err("the file system is smaller");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }

    /// Gives back the space that [`Self::fill`] took.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("the file system was filled");
    }
}
