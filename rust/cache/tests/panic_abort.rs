//! A build in which panics cannot become errors is refused.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::path::Path;
use std::process::Command;

/// What the compiler says of the crate. Its dependencies are missing, which it says as well.
fn compiled(flags: &[&str]) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let mut rustc = Command::new(option_env!("RUSTC").unwrap_or("rustc"));
    rustc.args([
        "--crate-type",
        "lib",
        "--edition",
        "2024",
        "--emit",
        "metadata",
        "-o",
        "/dev/null",
    ]);
    let output = rustc.args(flags).arg(source).output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn aborting_panics_are_refused_with_the_way_out_unless_accepted() {
    const REFUSED: &str = "hint: remove it from the profile, or enable the feature";
    assert!(compiled(&["-C", "panic=abort"]).contains(REFUSED));
    assert!(!compiled(&["-C", "panic=unwind"]).contains(REFUSED));
    let accepted = ["-C", "panic=abort", "--cfg", "feature=\"panic-abort\""];
    assert!(!compiled(&accepted).contains(REFUSED));
}
