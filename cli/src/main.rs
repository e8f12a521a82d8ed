//! The `diskette` program: disk images from the command line, with the flags, output and exit codes of `qemu-img`, and
//! `inspect` for images that nobody trusts.

mod args;
mod commands;
mod human;
mod image_opts;
mod io;
mod number;
mod open;
mod output;
mod program;
mod progress;
mod secrets;
mod usage;

use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser};

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

    /// The same failure, saying first what it was about.
    fn within(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<diskette::Error> for Failure {
    fn from(error: diskette::Error) -> Self {
        Failure::new(open::explain(&error, ""))
    }
}

fn main() -> ExitCode {
    let code = run();
    output::flush();
    code
}

fn run() -> ExitCode {
    if program::name() == "qemu-io" {
        return exerciser();
    }
    let cli = match Cli::try_parse_from(words()) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let command = std::env::args().skip(1).find(|word| !word.starts_with('-'));
            let command = command.filter(|name| Cli::command().find_subcommand(name).is_some());
            eprintln!("{}", usage::message(&error, command.as_deref()));
            return ExitCode::FAILURE;
        }
        Err(help) => {
            output::print(&help.to_string());
            return ExitCode::SUCCESS;
        }
    };
    if cli.untrusted {
        open::trust_nobody();
    }
    if let Err(failure) = secrets::load(&cli.objects) {
        return end(Err(failure));
    }
    let outcome = match cli.command {
        Command::Info(args) => commands::info::run(&args),
        Command::Amend(args) => commands::amend::run(&args),
        Command::Bitmap(args) => commands::bitmap::run(&args),
        Command::Map(args) => commands::map::run(&args),
        Command::Check(args) => commands::check::run(&args),
        Command::Create(args) => commands::create::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Commit(args) => commands::commit::run(&args),
        Command::Rebase(args) => commands::rebase::run(&args),
        Command::Snapshot(args) => commands::snapshot::run(&args),
        Command::Resize(args) => commands::resize::run(&args),
        Command::Measure(args) => commands::measure::run(&args),
        Command::Dd(args) => commands::dd::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Io(args) => io::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => commands::serve::run(&args),
        Command::Completions { shell } => completions(shell),
        Command::Man { command } => man(command.as_deref()),
    };
    end(outcome)
}

/// The words of the command line. The last one of `resize` is a size, even if it begins like an option.
fn words() -> Vec<std::ffi::OsString> {
    let mut words: Vec<_> = std::env::args_os().collect();
    let is_resize = words.get(1).is_some_and(|command| command == "resize");
    let mut last = words.last().and_then(|word| word.to_str()).unwrap_or_default().chars();
    let takes_away = last.next() == Some('-') && last.next().is_some_and(|digit| digit.is_ascii_digit());
    if is_resize && takes_away && !words.iter().any(|word| word == "--") {
        words.insert(words.len() - 1, "--".into());
    }
    words
}

fn end(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{}: {}", program::name(), failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// The program as `qemu-io`, which is nothing but the command `io`.
fn exerciser() -> ExitCode {
    let objects = clap::Arg::new("objects").long("object").action(clap::ArgAction::Append).value_name("OBJDEF");
    let command =
        args::IoArgs::augment_args(clap::Command::new("qemu-io").about("QEMU Disk exerciser").args_override_self(true));
    let parsed = command.arg(objects).try_get_matches().and_then(|matches| {
        let objects = matches.get_many::<String>("objects").unwrap_or_default().cloned().collect::<Vec<_>>();
        Ok((args::IoArgs::from_arg_matches(&matches)?, objects))
    });
    match parsed {
        Ok((args, objects)) => end(secrets::load(&objects).and_then(|()| io::run(&args))),
        Err(error) if error.use_stderr() => {
            eprintln!("{}", error.render());
            ExitCode::FAILURE
        }
        Err(help) => {
            output::print(&help.to_string());
            ExitCode::SUCCESS
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "diskette", &mut script);
    output::print(&String::from_utf8_lossy(&script));
    Ok(0)
}

fn man(command: Option<&str>) -> Outcome {
    let mut program = Cli::command();
    program.build();
    let (page, title) = match command {
        None => (program, "diskette".to_string()),
        Some(name) => match program.find_subcommand(name) {
            Some(found) => (found.clone(), format!("diskette-{name}")),
            None => return Err(Failure::new(format!("Command not found: {name}"))),
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).title(title).render(&mut text).map_err(|error| Failure::new(error.to_string()))?;
    output::print(&String::from_utf8_lossy(&text));
    Ok(0)
}
