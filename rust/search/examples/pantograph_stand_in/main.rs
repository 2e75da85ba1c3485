//! A stand-in for Pantograph's `repl`, for tests of the environment.
//!
//! It was written from a description of Pantograph's protocol, and no real Pantograph has been met. It
//! speaks the protocol over recorded theorems: what Lean would compute is looked up in a JSON file (see
//! `tests/data/pantograph_tree.json`). With switches it fails as Pantograph, Lean and the machine
//! below do.
//!
//! ```sh
//! pantograph_stand_in TREE.json [SWITCH ...]
//! ```
//!
//! Switches are listed in `switches.rs`.

mod file;
mod lean;
mod repl;
mod switches;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use repl::{Reaction, Repl};
use serde_json::{Value, json};
use switches::Switches;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let switches = Switches::parse(std::env::args().skip(1))?;
    let mut repl = Repl::open(&switches)?;
    let mut out = io::stdout();
    switches.flood();
    thread::sleep(switches.ready_after);
    for number in 0..switches.noise_before_ready {
        writeln!(out, "warning: {number} of something that lake had to say")?;
    }
    if switches.import_error {
        say(&mut out, &json!({"error": "io", "desc": "unknown module prefix 'Mathlib'"}))?;
        return Ok(());
    }
    writeln!(out, "ready.")?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            break; // as in the original
        }
        switches.log(&line)?;
        switches.flood();
        match repl.answer(&line) {
            Reaction::Answer(answer) => say(&mut out, &answer)?,
            Reaction::Text(text) => {
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            Reaction::Torn(answer) => {
                let text = answer.to_string();
                out.write_all(&text.as_bytes()[..text.len() / 2])?;
                out.flush()?;
                std::process::exit(7);
            }
            Reaction::Die => std::process::abort(),
            Reaction::Hang => loop {
                thread::sleep(Duration::from_secs(1));
            },
            Reaction::End => return Ok(()),
        }
    }
    Ok(())
}

fn say(out: &mut impl Write, answer: &Value) -> io::Result<()> {
    writeln!(out, "{answer}")?;
    out.flush()
}
