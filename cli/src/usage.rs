//! What is said about a command line that makes no sense, in QEMU's words.

use crate::program;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The message for people, without the name of the program.
pub(crate) fn message(error: &clap::Error, command: Option<&str>) -> String {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        Some(ContextValue::Strings(texts)) => texts.first().map_or("", String::as_str),
        _ => "",
    };
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let name = program::name();
    let program = command.map_or_else(|| name.to_string(), |command| format!("{name} {command}"));
    let text = match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with("--") => {
            format!("{program}: unrecognized option '{argument}'")
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            format!("{program}: invalid option -- '{}'", argument.trim_start_matches('-'))
        }
        ErrorKind::UnknownArgument if command == Some("create") => {
            format!("{name}: Unexpected argument: {argument}")
        }
        ErrorKind::UnknownArgument | ErrorKind::MissingRequiredArgument if command.is_some() => {
            let wanted = if command == Some("compare") { "two image file names" } else { "one image file name" };
            format!("{name}: Expecting {wanted}")
        }
        ErrorKind::InvalidValue if value.is_empty() && command.is_some() => {
            // What lacks its value was the last word.
            let last = std::env::args().next_back().unwrap_or_default();
            let long = argument.split(' ').next().unwrap_or_default();
            match last.strip_prefix('-').filter(|rest| !rest.starts_with('-')).and_then(|rest| rest.chars().last()) {
                Some(letter) => format!("{program}: option requires an argument -- '{letter}'"),
                None => format!("{program}: option '{long}' requires an argument"),
            }
        }
        ErrorKind::InvalidValue if argument.starts_with("--output") && !value.is_empty() => {
            format!("{name}: --output expects 'human' or 'json' not '{value}'")
        }
        ErrorKind::InvalidSubcommand => {
            return format!("{name}: Command not found: {}\nTry '{name} --help' for more info", subcommand(error));
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            return format!("{name}: Not enough arguments\nTry '{name} --help' for more info");
        }
        _ => {
            let rendered = error.to_string();
            let first = rendered.lines().next().unwrap_or_default();
            format!("{name}: {}", first.trim_start_matches("error: "))
        }
    };
    format!("{text}\nTry '{program} --help' for more info")
}

fn subcommand(error: &clap::Error) -> &str {
    match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(text)) => text,
        _ => "",
    }
}
