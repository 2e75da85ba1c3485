//! `ebm-prover`: what a prover does with ebm-encode, from the command line.

mod backend;
mod compare;
mod doctor;
mod encode;
mod end;
mod formats;
mod given;
mod inspect;
mod interrupt;
mod model;
mod node_lines;
mod outcome;
mod replay;
mod score;
mod search;
mod states;
mod text;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use ebm_embed::{EmbedError, Interpreter};
use tracing_subscriber::EnvFilter;

use crate::given::Given;
use crate::interrupt::Saved;
use crate::outcome::{CLOSED_PIPE, Outcome, exit_code, is_closed_pipe};

/// Work with embeddings of proof states: read caches, encode in this process, replay requests, score states
/// with an energy head, search for proofs.
#[derive(Debug, Parser)]
#[command(
    name = "ebm-prover",
    version,
    after_help = "Exit codes: 0 good, 1 a check failed, 2 bad usage or input, 130 interrupted \
                  (143 by SIGTERM), 141 when whoever read the output went away."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Encode(encode::Encode),
    Doctor(doctor::Doctor),
    Replay(replay::Replay),
    Score(score::Score),
    Search(Box<search::Search>),
    Compare(compare::Compare),
}

impl Arguments {
    /// As `parse`, and a search knows which of its options were given.
    fn of_command_line() -> Self {
        let matches = Self::command().get_matches();
        let mut arguments = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        if let (Command::Search(search), Some((_, matches))) =
            (&mut arguments.command, matches.subcommand())
        {
            search.given = Given::of(matches);
        }
        arguments
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::of_command_line();
    log_to_stderr();
    let code = match run(arguments.command) {
        Ok(outcome) => outcome.code(),
        Err(error) if is_closed_pipe(&error) => CLOSED_PIPE,
        Err(error) => {
            report(&error);
            exit_code(&error)
        }
    };
    if let Some(python) = Interpreter::running() {
        // Python does not end as it would by itself; a reader that has gone is no concern here.
        let _ = python.flush();
        end::at_once(code);
    }
    ExitCode::from(code)
}

/// Runs a command, and writes out all that it prints.
fn run(command: Command) -> anyhow::Result<Outcome> {
    let outcome = carry_out(command)?;
    io::stdout().flush()?;
    Ok(outcome)
}

fn carry_out(command: Command) -> anyhow::Result<Outcome> {
    let out = &mut io::stdout();
    if let Command::Inspect(inspect) = command {
        return inspect.run(&mut out.lock());
    }
    let saved = Saved::default();
    interrupt::handle(saved.clone())?;
    match command {
        Command::Inspect(inspect) => inspect.run(out),
        Command::Encode(encode) => encode.run(out),
        Command::Doctor(doctor) => doctor.run(out),
        Command::Replay(replay) => replay.run(out, &saved),
        Command::Score(score) => score.run(out),
        Command::Search(search) => search.run(out, &saved),
        Command::Compare(compare) => compare.run(out),
    }
}

/// Warnings and worse, unless `RUST_LOG` asks for more.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .init();
}

#[expect(clippy::print_stderr, reason = "the one place that reports errors")]
fn report(error: &anyhow::Error) {
    eprintln!("ebm-prover: {error:#}");
    if let Some(EmbedError::Python(exception)) = error.downcast_ref()
        && let Some(traceback) = &exception.traceback
        && std::env::var_os("RUST_BACKTRACE").is_some()
    {
        eprintln!("{traceback}");
    }
}
