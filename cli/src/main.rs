//! The `diskette` program: disk images from the command line, with the flags, output and exit codes of `qemu-img`, and
//! `inspect` for images that nobody trusts.

mod args;
mod commands;
mod human;
mod open;
mod progress;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};

/// What a command ends with: an exit code, or a message.
type Outcome = Result<u8, Failure>;

/// A message for the person who called, and the exit code.
#[derive(Debug)]
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: 1 }
    }

    fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

impl From<diskette::Error> for Failure {
    fn from(error: diskette::Error) -> Self {
        Failure::new(error.to_string())
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match cli.command {
        Command::Info(args) => commands::info::run(&args),
        Command::Map(args) => commands::map::run(&args),
        Command::Check(args) => commands::check::run(&args),
        Command::Create(args) => commands::create::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "diskette", &mut std::io::stdout());
            Ok(0)
        }
        Command::Man => clap_mangen::Man::new(Cli::command())
            .render(&mut std::io::stdout())
            .map(|()| 0)
            .map_err(|error| Failure::new(error.to_string())),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("diskette: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
