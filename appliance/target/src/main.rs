//! `aditd`: the NVMe-oF target. Everything is in the library.

use std::error::Error as _;
use std::process::ExitCode;

use clap::Parser as _;
use target::config::Flags;

fn main() -> ExitCode {
    let Err(error) = target::program::run(&Flags::parse()) else {
        return ExitCode::SUCCESS;
    };
    let mut text = format!("aditd: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    eprintln!("{text}");
    ExitCode::from(error.exit_code())
}
