//! Logs: readable in development, JSON in production.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The level of a program that is not told another.
pub const DEFAULT_LEVEL: &str = "info";

/// Flags about logs and the environment.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Operation")]
pub struct LogArgs {
    /// error, warn, info, debug or trace, or a filter such as `info,backbeat_reverb=debug`.
    #[arg(long, env = "LOG_LEVEL", default_value = DEFAULT_LEVEL, value_parser = parse_filter)]
    pub log_level: String,

    /// development logs for people, production logs JSON.
    #[arg(long = "env", env = "BACKBEAT_ENV", default_value = "development", value_enum)]
    pub environment: Environment,
}

/// Where the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Environment {
    /// A developer's machine.
    Development,
    /// A cluster that people depend on.
    Production,
}

/// A bare word must be a level: `EnvFilter` would take any other for the name of a module, and silence
/// everything else.
fn parse_filter(text: &str) -> Result<String, String> {
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_directive = |part: &str| part.contains(['=', '[']) || is_level(part.trim());
    match text.split(',').find(|part| !is_directive(part)) {
        Some(word) => Err(format!("{word:?} is no level; allowed are error, warn, info, debug, trace and off")),
        None => EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string()),
    }
}

/// openraft tells of every message at info and of every one that was lost at error; our own words say what
/// comes of it. A filter that names it, or a level for all from debug on, shows them.
fn quiet_libraries(filter: &str) -> String {
    let quiet_level = |part: &str| matches!(part.trim().to_ascii_lowercase().as_str(), "error" | "warn" | "info");
    let is_quiet = filter.split(',').any(quiet_level) && !filter.contains("openraft");
    if is_quiet { format!("openraft=off,{filter}") } else { filter.to_owned() }
}

impl LogArgs {
    /// Starts logging to standard error. Call once, first.
    pub fn init(&self) {
        let filter = EnvFilter::new(quiet_libraries(&self.log_level));
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.environment {
            Environment::Development => builder.with_ansi(std::io::stderr().is_terminal()).init(),
            Environment::Production => builder.json().flatten_event(true).init(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openraft_is_quiet_unless_it_is_asked_for() {
        assert_eq!(quiet_libraries("INFO"), "openraft=off,INFO");
        assert_eq!(quiet_libraries("info,openraft=info"), "info,openraft=info");
        assert_eq!(quiet_libraries("debug"), "debug");
    }

    #[test]
    fn a_mistyped_level_is_refused() {
        assert!(parse_filter("info").is_ok());
        assert!(parse_filter("info,backbeat_reverb=debug").is_ok());
        let error = parse_filter("warning").expect_err("no level");
        assert_eq!(error, "\"warning\" is no level; allowed are error, warn, info, debug, trace and off");
    }
}
