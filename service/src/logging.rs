//! Logging to standard error: text in development, JSON in production.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Flags of logging and of the environment.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Operation")]
pub struct LogArgs {
    /// Log level (error, warn, info, debug, trace or off), or a filter such as `info,backbeat_reverb=debug`.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_parser = parse_filter)]
    pub log_level: String,

    /// Environment that the program runs in: development logs text, production logs JSON.
    #[arg(long = "env", env = "BACKBEAT_ENV", default_value = "development", value_enum)]
    pub environment: Environment,
}

/// The environment that the program runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Environment {
    /// A developer's machine.
    Development,
    /// A production cluster.
    Production,
}

/// Validates a log filter. A bare word must be a level: `EnvFilter` would parse any other as the name of a module, and
/// so disable all other logging.
fn parse_filter(text: &str) -> Result<String, String> {
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_directive = |part: &str| part.contains(['=', '[']) || is_level(part.trim());
    match text.split(',').find(|part| !is_directive(part)) {
        Some(word) => Err(format!("{word:?} is not a log level; must be error, warn, info, debug, trace or off")),
        None => EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string()),
    }
}

/// Disables openraft's logging unless `filter` names openraft or has the global level debug or trace. Openraft logs each
/// Raft message at level info and each lost one at level error; pulse logs the changes that result from them itself.
fn silence_openraft(filter: &str) -> String {
    let is_default_level = |part: &str| matches!(part.trim().to_ascii_lowercase().as_str(), "error" | "warn" | "info");
    let silence = filter.split(',').any(is_default_level) && !filter.contains("openraft");
    if silence { format!("openraft=off,{filter}") } else { filter.to_owned() }
}

impl LogArgs {
    /// Installs the global logger. Call once, before anything logs.
    pub fn init(&self) {
        let filter = EnvFilter::new(silence_openraft(&self.log_level));
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
    fn silence_openraft_keeps_filters_that_name_openraft_or_start_at_debug() {
        assert_eq!(silence_openraft("INFO"), "openraft=off,INFO");
        assert_eq!(silence_openraft("info,openraft=info"), "info,openraft=info");
        assert_eq!(silence_openraft("debug"), "debug");
    }

    #[test]
    fn parse_filter_with_a_mistyped_level_fails() {
        assert!(parse_filter("info").is_ok());
        assert!(parse_filter("info,backbeat_reverb=debug").is_ok());
        let error = parse_filter("warning").expect_err("not a log level");
        assert_eq!(error, "\"warning\" is not a log level; must be error, warn, info, debug, trace or off");
    }
}
