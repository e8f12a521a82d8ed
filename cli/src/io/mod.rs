//! `io`, also called `qemu-io`: reads, writes and more on an open image, one command at a time, to exercise it.

mod commands;
mod getopt;
mod shell;
mod text;

use std::io::{BufRead, IsTerminal};

use diskette::options::Options;

use crate::args::IoArgs;
use crate::open::cache_mode;
use crate::{Failure, Outcome, output};
use shell::{Defaults, Shell};
pub(crate) use text::reason;

/// What is shown when a command is awaited.
const PROMPT: &str = "qemu-io> ";

pub(crate) fn run(args: &IoArgs) -> Outcome {
    let mut defaults = Defaults {
        image_opts: args.image_opts,
        read_only: args.read_only,
        force_share: args.force_share,
        snapshot: args.snapshot,
        copy_on_read: args.copy_on_read,
        ..Defaults::default()
    };
    if args.nocache {
        defaults.cache = Some(cache_mode("none", "")?);
    }
    if let Some(cache) = &args.cache {
        defaults.cache = Some(cache_mode(cache, "")?);
    }
    if let Some(discard) = &args.discard {
        defaults.discard = discard_mode(discard)?;
    }
    if let Some(mode) = args.aio.as_deref().filter(|mode| !["threads", "native", "io_uring"].contains(mode)) {
        return Err(Failure::new(format!("Invalid aio option: {mode}")));
    }
    if args.image_opts && args.format.is_some() {
        return Err(Failure::new("--image-opts and -f are mutually exclusive"));
    }
    let mut shell = Shell::new(defaults.clone());
    if let Some(name) = &args.file {
        shell.open(name, args.format.as_deref(), args.image_opts, Options::new(), defaults)?;
    }
    let succeeded =
        if args.commands.is_empty() { read_commands(&mut shell)? } else { run_all(&mut shell, &args.commands) };
    shell.close();
    Ok(u8::from(!succeeded))
}

/// The discard mode of that name.
pub(crate) fn discard_mode(name: &str) -> Result<bool, Failure> {
    match name {
        "off" | "ignore" => Ok(false),
        "on" | "unmap" => Ok(true),
        _ => Err(Failure::new(format!("Invalid discard option: {name}"))),
    }
}

fn run_all(shell: &mut Shell, commands: &[String]) -> bool {
    let mut succeeded = true;
    for command in commands {
        succeeded &= shell.execute(command);
        if shell.has_quit() {
            break;
        }
    }
    succeeded
}

/// Commands from standard input. What fails there does not make the program fail, as with QEMU.
fn read_commands(shell: &mut Shell) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("could not read commands: {error}"));
    let mut lines = std::io::stdin().lock();
    while !shell.has_quit() {
        output::print(PROMPT);
        output::flush();
        let mut line = String::new();
        if lines.read_line(&mut line).map_err(failed)? == 0 {
            if std::io::stdin().is_terminal() {
                output::print("\n");
            }
            break;
        }
        shell.execute(line.trim_end_matches('\n'));
    }
    Ok(true)
}
