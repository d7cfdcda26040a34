//! The prototype's spelling of flags.

use std::ffi::OsString;

/// This process's arguments, with the prototype's single-dash flags (`-bpm 1`, `-cluster=x`) spelled
/// with two dashes, as clap wants them.
pub fn command_line() -> impl Iterator<Item = OsString> {
    two_dashes(std::env::args_os())
}

fn two_dashes(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut flags_ended = false;
    args.map(move |arg| {
        flags_ended |= arg == "--";
        match arg.to_str() {
            Some(text) if !flags_ended && is_long_with_one_dash(text) => format!("-{text}").into(),
            _ => arg,
        }
    })
}

/// `-bpm` and `-bpm=1`, but not `-h`, `--bpm`, `-5` or `-`.
fn is_long_with_one_dash(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next() == Some('-') && characters.by_ref().take(2).filter(char::is_ascii_lowercase).count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prototypes_flags_get_their_second_dash() {
        let given = ["pulse", "-cluster=x", "-bpm", "1", "--bar", "4", "-h", "-5", "-", "--", "-log-level"];
        let read: Vec<OsString> = two_dashes(given.iter().map(OsString::from)).collect();
        assert_eq!(read, ["pulse", "--cluster=x", "--bpm", "1", "--bar", "4", "-h", "-5", "-", "--", "-log-level"]);
    }
}
