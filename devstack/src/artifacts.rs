//! Downloads: Kafka's jars and the registry, by Maven, once for all runs of this user.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::DevstackError;
use crate::error::Context;

/// Names Kafka's version and all that goes with it.
const POM: &str = include_str!("../pom.xml");
/// Names the Avro deserializer of the console consumer.
const CONSOLE_POM: &str = include_str!("../../compose/console/pom.xml");
/// Names Connect's plugins: each file, and where it lies.
const PLUGIN_FILES: [(&str, &str); 5] = [
    ("pom.xml", include_str!("../../connect/plugins/pom.xml")),
    ("apicurio-converter/pom.xml", include_str!("../../connect/plugins/apicurio-converter/pom.xml")),
    (
        "apicurio-converter/services/META-INF/services/org.apache.kafka.connect.storage.Converter",
        include_str!(
            "../../connect/plugins/apicurio-converter/services/META-INF/services/org.apache.kafka.connect.storage.Converter"
        ),
    ),
    ("debezium-jdbc/pom.xml", include_str!("../../connect/plugins/debezium-jdbc/pom.xml")),
    ("iceberg/pom.xml", include_str!("../../connect/plugins/iceberg/pom.xml")),
];
/// The newest registry that runs on Java 17.
const REGISTRY_VERSION: &str = "3.0.9";
const MIN_JAVA: u32 = 17;

/// What was downloaded, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    /// Kafka's jars.
    pub(crate) kafka_libs: PathBuf,
    /// The registry's runnable jar.
    pub(crate) registry_jar: PathBuf,
    cache: PathBuf,
}

impl Artifacts {
    /// Finds or downloads everything, and installs Java and Maven where that is ours to do.
    pub(crate) fn fetch() -> Result<Self, DevstackError> {
        let cache = cache_dir()?;
        let _lock = lock(&cache)?;
        require(
            "java",
            || says_version("java", java_is_new_enough),
            "openjdk-17-jre-headless",
            "install Java 17 or newer",
        )?;
        let kafka_libs = cached(&cache, &format!("kafka-{}", digest(POM)), |dir| {
            fs::write(dir.join("pom.xml"), POM).context(|| "writing pom.xml".to_owned())?;
            maven(dir, &["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=libs"])
        })?;
        let registry = cached(&cache, &format!("registry-{REGISTRY_VERSION}"), |dir| {
            // Plugin 2.10: later ones want the artifact's parent pom, which is not published.
            let artifact = format!("-Dartifact=io.apicurio:apicurio-registry-app:{REGISTRY_VERSION}:tar.gz:all");
            maven(
                dir,
                &["org.apache.maven.plugins:maven-dependency-plugin:2.10:copy", &artifact, "-DoutputDirectory=."],
            )?;
            let archive = format!("apicurio-registry-app-{REGISTRY_VERSION}-all.tar.gz");
            run(Command::new("tar").args(["xzf", &archive]).current_dir(dir))?;
            fs::remove_file(dir.join(&archive)).context(|| format!("removing {archive}"))
        })?;
        Ok(Self {
            kafka_libs: kafka_libs.join("libs"),
            registry_jar: registry.join(format!("apicurio-registry-app-{REGISTRY_VERSION}-runner.jar")),
            cache,
        })
    }

    /// A directory with one of Connect's plugins in each directory, found or downloaded.
    pub(crate) fn connect_plugins(&self) -> Result<PathBuf, DevstackError> {
        let _lock = lock(&self.cache)?;
        let all = PLUGIN_FILES.map(|(_, text)| text).concat();
        let filled = cached(&self.cache, &format!("connect-{}", digest(&all)), |dir| {
            for (name, text) in PLUGIN_FILES {
                let path = dir.join(name);
                let parent = path.parent().expect("it lies in the directory");
                fs::create_dir_all(parent).context(|| format!("creating {}", parent.display()))?;
                fs::write(&path, text).context(|| format!("writing {}", path.display()))?;
            }
            maven(dir, &["package", &format!("-Dplugins.dir={}", dir.join("plugins").display())])
        })?;
        Ok(filled.join("plugins"))
    }

    /// The jars of the console consumer's Avro deserializer, found or downloaded.
    pub(crate) fn console_libs(&self) -> Result<PathBuf, DevstackError> {
        let _lock = lock(&self.cache)?;
        let filled = cached(&self.cache, &format!("console-{}", digest(CONSOLE_POM)), |dir| {
            fs::write(dir.join("pom.xml"), CONSOLE_POM).context(|| "writing pom.xml".to_owned())?;
            maven(dir, &["dependency:copy-dependencies", "-DoutputDirectory=libs"])
        })?;
        Ok(filled.join("libs"))
    }
}

/// Others may be setting up at this moment: they do it once, and for us too.
fn lock(cache: &Path) -> Result<File, DevstackError> {
    let path = cache.join("setup.lock");
    let file = File::create(&path).context(|| format!("creating {}", path.display()))?;
    file.lock().context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// PostgreSQL's programs, installed where that is ours to do.
pub(crate) fn require_postgres() -> Result<PathBuf, DevstackError> {
    let _lock = lock(&cache_dir()?)?;
    let hint = "install PostgreSQL 13 or newer";
    require("initdb", || postgres_bin().is_some(), "postgresql", hint)?;
    postgres_bin().ok_or_else(|| DevstackError::Missing { program: "initdb", hint: hint.to_owned() })
}

/// The newest `bin` directory of Debian's packages, or that of `initdb` in the path.
fn postgres_bin() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    let version = |bin: &PathBuf| bin.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian.max_by_key(version).or_else(|| std::env::split_paths(&path).find(|dir| dir.join("initdb").exists()))
}

/// `$BACKBEAT_CACHE`, or `backbeat` in the user's cache directory.
fn cache_dir() -> Result<PathBuf, DevstackError> {
    let under = |variable: &str, rest: &str| {
        env::var_os(variable).filter(|v| !v.is_empty()).map(|v| PathBuf::from(v).join(rest))
    };
    let dir = under("BACKBEAT_CACHE", "")
        .or_else(|| under("XDG_CACHE_HOME", "backbeat"))
        .or_else(|| under("HOME", ".cache/backbeat"))
        .unwrap_or_else(|| env::temp_dir().join("backbeat-cache"));
    fs::create_dir_all(&dir).context(|| format!("creating the cache directory {}", dir.display()))?;
    Ok(dir)
}

/// The directory `name` of the cache, filled by `fill` if it is not there.
///
/// It is filled under another name and renamed when whole, so a download that was cut off is never
/// taken for one that was not.
fn cached(
    cache: &Path,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<(), DevstackError>,
) -> Result<PathBuf, DevstackError> {
    let whole = cache.join(name);
    if !whole.is_dir() {
        tracing::info!(artifact = name, into = %cache.display(), "downloading, once");
        require(
            "mvn",
            || says_version("mvn", |output| output.contains("Apache Maven")),
            "maven",
            "install Maven 3.6 or newer",
        )?;
        let partial = tempfile::Builder::new()
            .prefix(&format!("{name}.partial-"))
            .tempdir_in(cache)
            .context(|| "creating a directory".to_owned())?;
        fill(partial.path())?;
        fs::rename(partial.path(), &whole).context(|| format!("renaming into {}", whole.display()))?;
    }
    Ok(whole)
}

/// Eight hex digits that change with `text`.
fn digest(text: &str) -> String {
    let digest = Sha256::digest(text);
    format!("{:08x}", u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

fn maven(dir: &Path, goal: &[&str]) -> Result<(), DevstackError> {
    // -C: a download with a wrong checksum is an error, not a warning.
    run(Command::new("mvn").args(["-q", "-B", "-C"]).args(goal).current_dir(dir)).map(drop)
}

/// Runs `command` to its end, and returns what it printed; an error has the end of its output.
pub(crate) fn run(command: &mut Command) -> Result<String, DevstackError> {
    let line = format!("{command:?}");
    let output = command.output().context(|| line.clone())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(2_000)..]).into_owned();
    Err(DevstackError::Command { command: line, output: tail })
}

/// Whether `program` is there and `accepts` what it says of its version.
fn says_version(program: &str, accepts: impl Fn(&str) -> bool) -> bool {
    let said = Command::new(program).arg("-version").output();
    said.is_ok_and(|output| accepts(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat())))
}

/// Makes sure that `program` is `present`: installs the Debian `package` where we are root on Debian, and says what to
/// install elsewhere.
fn require(program: &'static str, present: impl Fn() -> bool, package: &str, hint: &str) -> Result<(), DevstackError> {
    if present() {
        return Ok(());
    }
    let missing = |hint: String| DevstackError::Missing { program, hint };
    let ours_to_install = Path::new("/etc/debian_version").exists() && rustix::process::geteuid().is_root();
    if !ours_to_install {
        return Err(missing(format!("{hint} (on Debian: apt-get install {package})")));
    }
    tracing::info!(package, "installing");
    // Debian would start a server that it installs.
    let environment = [("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")];
    let apt = |args: &[&str]| run(Command::new("apt-get").args(args).envs(environment));
    apt(&["update", "-q"]).and_then(|_| apt(&["install", "-q", "-y", "--no-install-recommends", package]))?;
    if present() { Ok(()) } else { Err(missing(format!("{hint}: {package} was installed and is too old"))) }
}

/// Reads `openjdk version "17.0.15" ...`.
fn java_is_new_enough(output: &str) -> bool {
    let version = output.split('"').nth(1).unwrap_or_default();
    version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= MIN_JAVA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions() {
        assert!(java_is_new_enough("openjdk version \"17.0.15\" 2025-04-15"));
        assert!(java_is_new_enough("openjdk version \"21\" 2023-09-19"));
        assert!(!java_is_new_enough("java version \"1.8.0_402\""));
        assert!(!java_is_new_enough("command not found"));
    }

    #[test]
    fn a_download_that_was_cut_off_is_done_again() {
        let cache = tempfile::tempdir().expect("a directory");
        let cut_off = cached(cache.path(), "thing", |dir| {
            fs::write(dir.join("half"), "half").expect("writes");
            Err(DevstackError::Missing { program: "network", hint: "gone".into() })
        });
        assert!(cut_off.is_err());
        let whole =
            cached(cache.path(), "thing", |dir| fs::write(dir.join("whole"), "").context(String::new)).expect("filled");
        assert!(whole.join("whole").exists() && !whole.join("half").exists());
        cached(cache.path(), "thing", |_| panic!("it is there")).expect("cached");
    }
}
