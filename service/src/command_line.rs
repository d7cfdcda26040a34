//! Support for the prototype's single-dash flags.

use std::ffi::OsString;

/// Returns this process's arguments, with the prototype's single-dash flags (`-bpm 1`, `-cluster=x`) rewritten to two
/// dashes, as clap requires.
pub fn command_line() -> impl Iterator<Item = OsString> {
    with_two_dashes(std::env::args_os())
}

fn with_two_dashes(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut flags_ended = false;
    args.map(move |arg| {
        flags_ended |= arg == "--";
        match arg.to_str() {
            Some(text) if !flags_ended && is_single_dash_flag(text) => format!("-{text}").into(),
            _ => arg,
        }
    })
}

/// Returns true for `-bpm` and `-bpm=1`, but not for `-h`, `--bpm`, `-5` or `-`.
fn is_single_dash_flag(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next() == Some('-') && characters.by_ref().take(2).filter(char::is_ascii_lowercase).count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_two_dashes_rewrites_only_single_dash_flags() {
        let args = ["pulse", "-cluster=x", "-bpm", "1", "--bar", "4", "-h", "-5", "-", "--", "-log-level"];
        let rewritten: Vec<OsString> = with_two_dashes(args.iter().map(OsString::from)).collect();
        assert_eq!(
            rewritten,
            ["pulse", "--cluster=x", "--bpm", "1", "--bar", "4", "-h", "-5", "-", "--", "-log-level"]
        );
    }
}
