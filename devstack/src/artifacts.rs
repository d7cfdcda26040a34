//! Downloads Kafka's jars, the registry and Connect's plugins with Maven, once per user.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::error::Context;
use crate::{DevstackError, jar_lock};

/// The Maven project with Kafka and its dependencies.
const POM: &str = include_str!("../pom.xml");
const KAFKA_LOCK: &str = include_str!("../kafka.sha256");
/// The Maven project with the Avro deserializer of the console consumer.
const CONSOLE_POM: &str = include_str!("../../compose/console/pom.xml");
const CONSOLE_LOCK: &str = include_str!("../../compose/console/libs.sha256");
/// The Maven project with Connect's plugins: the path and the text of each file.
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
const PLUGIN_LOCK: &str = include_str!("../../connect/plugins/plugins.sha256");
/// The newest version of the registry that runs on Java 17.
const REGISTRY_VERSION: &str = "3.0.9";
const REGISTRY_LOCK: &str = include_str!("../registry.sha256");
const MIN_JAVA: u32 = 17;

/// The paths of the downloaded artifacts.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    /// The directory of Kafka's jars.
    pub(crate) kafka_libs: PathBuf,
    /// The executable jar of the registry.
    pub(crate) registry_jar: PathBuf,
    cache: PathBuf,
}

impl Artifacts {
    /// Finds or downloads Kafka and the registry; installs Java and Maven if they are missing and this is root on
    /// Debian.
    pub(crate) fn fetch() -> Result<Self, DevstackError> {
        let cache = cache_dir()?;
        let _lock = lock(&cache)?;
        require(
            "java",
            || has_version("java", java_is_new_enough),
            "openjdk-17-jre-headless",
            "install Java 17 or newer",
        )?;
        let kafka_libs = cached(&cache, &format!("kafka-{}", digest(&[POM, KAFKA_LOCK])), |dir| {
            fs::write(dir.join("pom.xml"), POM).context(|| "cannot write pom.xml".to_owned())?;
            maven(dir, &["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=libs"])?;
            jar_lock::check(KAFKA_LOCK, &dir.join("libs"))
        })?;
        let registry = cached(&cache, &format!("registry-{}", digest(&[REGISTRY_VERSION, REGISTRY_LOCK])), |dir| {
            // Plugin 2.10, because later versions need the artifact's parent POM, which is not published.
            let artifact = format!("-Dartifact=io.apicurio:apicurio-registry-app:{REGISTRY_VERSION}:tar.gz:all");
            maven(
                dir,
                &["org.apache.maven.plugins:maven-dependency-plugin:2.10:copy", &artifact, "-DoutputDirectory=."],
            )?;
            jar_lock::check(REGISTRY_LOCK, dir)?;
            let archive = format!("apicurio-registry-app-{REGISTRY_VERSION}-all.tar.gz");
            run(Command::new("tar").args(["xzf", &archive]).current_dir(dir))?;
            fs::remove_file(dir.join(&archive)).context(|| format!("cannot remove {archive}"))
        })?;
        Ok(Self {
            kafka_libs: kafka_libs.join("libs"),
            registry_jar: registry.join(format!("apicurio-registry-app-{REGISTRY_VERSION}-runner.jar")),
            cache,
        })
    }

    /// Finds or downloads Connect's plugins; returns a directory with a subdirectory for each.
    pub(crate) fn connect_plugins(&self) -> Result<PathBuf, DevstackError> {
        let _lock = lock(&self.cache)?;
        let all_texts = [PLUGIN_FILES.map(|(_, text)| text).as_slice(), &[PLUGIN_LOCK]].concat();
        let cached_dir = cached(&self.cache, &format!("connect-{}", digest(&all_texts)), |dir| {
            for (name, text) in PLUGIN_FILES {
                let path = dir.join(name);
                let parent = path.parent().expect("the path is inside the directory");
                fs::create_dir_all(parent).context(|| format!("cannot create {}", parent.display()))?;
                fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
            }
            let plugins = dir.join("plugins");
            maven(dir, &["package", &format!("-Dplugins.dir={}", plugins.display())])?;
            jar_lock::check(PLUGIN_LOCK, &plugins)
        })?;
        Ok(cached_dir.join("plugins"))
    }

    /// Finds or downloads the console consumer's Avro deserializer; returns the directory of its jars.
    pub(crate) fn console_libs(&self) -> Result<PathBuf, DevstackError> {
        let _lock = lock(&self.cache)?;
        let cached_dir = cached(&self.cache, &format!("console-{}", digest(&[CONSOLE_POM, CONSOLE_LOCK])), |dir| {
            fs::write(dir.join("pom.xml"), CONSOLE_POM).context(|| "cannot write pom.xml".to_owned())?;
            maven(dir, &["dependency:copy-dependencies", "-DoutputDirectory=libs"])?;
            jar_lock::check(CONSOLE_LOCK, &dir.join("libs"))
        })?;
        Ok(cached_dir.join("libs"))
    }
}

/// Locks the cache, so that processes that start at the same time download and install everything only once.
fn lock(cache: &Path) -> Result<File, DevstackError> {
    let path = cache.join("setup.lock");
    let file = File::create(&path).context(|| format!("cannot create {}", path.display()))?;
    file.lock().context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Returns the directory of PostgreSQL's programs; installs them if they are missing and this is root on Debian.
pub(crate) fn require_postgres() -> Result<PathBuf, DevstackError> {
    let _lock = lock(&cache_dir()?)?;
    let hint = "install PostgreSQL 13 or newer";
    require("initdb", || postgres_bin().is_some(), "postgresql", hint)?;
    postgres_bin().ok_or_else(|| DevstackError::Missing { program: "initdb", hint: hint.to_owned() })
}

/// Returns the newest `bin` directory of Debian's packages, or the directory in `PATH` that has `initdb`.
fn postgres_bin() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    let version = |bin: &PathBuf| bin.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian.max_by_key(version).or_else(|| std::env::split_paths(&path).find(|dir| dir.join("initdb").exists()))
}

/// Creates and returns the cache directory: `$BACKBEAT_CACHE`, or `backbeat` in the user's cache directory.
fn cache_dir() -> Result<PathBuf, DevstackError> {
    let under = |variable: &str, rest: &str| {
        env::var_os(variable).filter(|v| !v.is_empty()).map(|v| PathBuf::from(v).join(rest))
    };
    let dir = under("BACKBEAT_CACHE", "")
        .or_else(|| under("XDG_CACHE_HOME", "backbeat"))
        .or_else(|| under("HOME", ".cache/backbeat"))
        .unwrap_or_else(|| env::temp_dir().join("backbeat-cache"));
    fs::create_dir_all(&dir).context(|| format!("cannot create the cache directory {}", dir.display()))?;
    Ok(dir)
}

/// Returns the directory `name` of the cache; `fill` fills it if it does not exist.
///
/// It is filled under a temporary name and renamed when complete, so that an interrupted download is never used.
fn cached(
    cache: &Path,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<(), DevstackError>,
) -> Result<PathBuf, DevstackError> {
    let complete = cache.join(name);
    if !complete.is_dir() {
        tracing::info!(artifact = name, into = %cache.display(), "downloading an artifact into the cache");
        require(
            "mvn",
            || has_version("mvn", |output| output.contains("Apache Maven")),
            "maven",
            "install Maven 3.6 or newer",
        )?;
        let incomplete = tempfile::Builder::new()
            .prefix(&format!("{name}.partial-"))
            .tempdir_in(cache)
            .context(|| format!("cannot create a directory in {}", cache.display()))?;
        fill(incomplete.path())?;
        fs::rename(incomplete.path(), &complete)
            .context(|| format!("cannot rename the download to {}", complete.display()))?;
    }
    Ok(complete)
}

/// Returns a digest of `texts` in eight hex digits.
fn digest(texts: &[&str]) -> String {
    let digest = Sha256::digest(texts.concat());
    format!("{:08x}", u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

fn maven(dir: &Path, goal: &[&str]) -> Result<(), DevstackError> {
    // -C: a wrong checksum is an error, not a warning.
    run(Command::new("mvn").args(["-q", "-B", "-C"]).args(goal).current_dir(dir)).map(drop)
}

/// Runs `command` to its end and returns its standard output; an error contains the end of its output.
pub(crate) fn run(command: &mut Command) -> Result<String, DevstackError> {
    let command_line = format!("{command:?}");
    let output = command.output().context(|| format!("cannot run {command_line}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(2_000)..]).into_owned();
    Err(DevstackError::Command { command: command_line, output: tail })
}

/// Returns true if `program` can be run and `accepts` returns true for the output of `-version`.
fn has_version(program: &str, accepts: impl Fn(&str) -> bool) -> bool {
    let output = Command::new(program).arg("-version").output();
    output.is_ok_and(|output| accepts(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat())))
}

/// Ensures that `program` can be run: installs the Debian `package` if this is root on Debian, and otherwise returns an error
/// that names it.
pub fn require_program(program: &'static str, package: &str) -> Result<(), DevstackError> {
    // Debian's package manager runs once at a time.
    let _lock = lock(&cache_dir()?)?;
    let present = || Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    require(program, present, package, &format!("install {package}"))
}

/// Ensures that `program` is `present`: installs the Debian `package` if this is root on Debian, and otherwise returns
/// an error with the `hint`.
fn require(program: &'static str, present: impl Fn() -> bool, package: &str, hint: &str) -> Result<(), DevstackError> {
    if present() {
        return Ok(());
    }
    let missing = |hint: String| DevstackError::Missing { program, hint };
    let can_install = Path::new("/etc/debian_version").exists() && rustix::process::geteuid().is_root();
    if !can_install {
        return Err(missing(format!("{hint} (on Debian: apt-get install {package})")));
    }
    tracing::info!(package, "installing a package");
    // RUNLEVEL=1 keeps Debian from starting the server that it installs.
    let environment = [("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")];
    let apt = |args: &[&str]| run(Command::new("apt-get").args(args).envs(environment));
    apt(&["update", "-q"]).and_then(|_| apt(&["install", "-q", "-y", "--no-install-recommends", package]))?;
    if present() { Ok(()) } else { Err(missing(format!("{hint}: {package} is installed but too old"))) }
}

/// Returns true if the major version in `openjdk version "17.0.15" ...` is high enough.
fn java_is_new_enough(output: &str) -> bool {
    let version = output.split('"').nth(1).unwrap_or_default();
    version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= MIN_JAVA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_version_below_17_is_too_old() {
        assert!(java_is_new_enough("openjdk version \"17.0.15\" 2025-04-15"));
        assert!(java_is_new_enough("openjdk version \"21\" 2023-09-19"));
        assert!(!java_is_new_enough("java version \"1.8.0_402\""));
        assert!(!java_is_new_enough("command not found"));
    }

    #[test]
    fn cached_artifact_after_an_interrupted_download_is_downloaded_again() {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let interrupted = cached(cache.path(), "artifact", |dir| {
            fs::write(dir.join("half"), "half").expect("the file is written");
            Err(DevstackError::Missing { program: "network", hint: "unreachable".into() })
        });
        assert!(interrupted.is_err());
        let complete = cached(cache.path(), "artifact", |dir| fs::write(dir.join("whole"), "").context(String::new));
        let complete = complete.expect("the second download succeeds");
        assert!(complete.join("whole").exists() && !complete.join("half").exists());
        cached(cache.path(), "artifact", |_| panic!("it is cached already")).expect("the artifact is cached");
    }
}
