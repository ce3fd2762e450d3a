//! `qemu-machine PROFILE`: the arguments of QEMU for a machine, one a line, for scripts.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use qemu_machines::Machine;

/// Prints the arguments of QEMU for a machine, one a line.
#[derive(Debug, Parser)]
struct Flags {
    /// The machine's TOML file; those that it is like are looked for beside it.
    profile: PathBuf,
}

fn main() -> ExitCode {
    let machine = match Machine::load(&Flags::parse().profile) {
        Ok(machine) => machine,
        Err(error) => {
            let mut source = std::error::Error::source(&error);
            eprint!("qemu-machine: {error}");
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            return ExitCode::FAILURE;
        }
    };
    let mut arguments = machine.arguments();
    if let Some(card) = machine.network() {
        arguments.extend(["-device".to_owned(), card.to_owned()]);
    }
    arguments.extend(["-append".to_owned(), machine.kernel()]);
    for argument in arguments {
        println!("{argument}");
    }
    ExitCode::SUCCESS
}
