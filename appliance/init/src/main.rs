//! `adit-init`: process 1 of the appliance. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    init::program::run(&words)
}
