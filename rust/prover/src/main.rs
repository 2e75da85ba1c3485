//! `ebm-prover`: what a prover does with ebm-encode, from the command line.

mod inspect;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Work with embedding caches of proof states.
#[derive(Debug, Parser)]
#[command(name = "ebm-prover", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open a cache and print its dimension, count, encoder and some nearest neighbours.
    Inspect(inspect::Inspect),
}

fn main() -> ExitCode {
    let Command::Inspect(inspect) = Arguments::parse().command;
    match inspect.run(&mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the one place that reports errors")]
            {
                eprintln!("ebm-prover: {error:#}");
            }
            ExitCode::from(inspect::exit_code(&error))
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
