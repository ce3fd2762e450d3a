//! `adit-agent`: the node's one gRPC endpoint. Everything is in the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match agent::program::run(agent::program::Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("adit-agent: {}", agent::error::chain(&error));
            ExitCode::FAILURE
        }
    }
}
