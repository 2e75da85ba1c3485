//! What people read: states on one line, and notes beside the output.

/// A state on one line, cut to the width of a terminal.
pub(crate) fn one_line(state: &str) -> String {
    const WIDTH: usize = 90;
    let line = state.lines().map(str::trim).collect::<Vec<_>>().join(" ⏎ ");
    if line.chars().count() <= WIDTH {
        return line;
    }
    line.chars().take(WIDTH).chain("…".chars()).collect()
}

/// A note on the error output.
pub(crate) fn warn(line: &str) {
    #[expect(clippy::print_stderr, reason = "beside the output")]
    {
        eprintln!("ebm-prover: {line}");
    }
}
