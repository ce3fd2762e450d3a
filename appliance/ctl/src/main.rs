//! `aditctl`: the command line of Adit over gRPC.
//!
//! What it is: a grammar of nouns and verbs ([`grammar`]), one gRPC call or a few behind each, tables
//! for people and `-o json` for programs. What it is not: it knows nothing that the API does not
//! offer, keeps no state and checks no rule that is the server's. One noun looks at the machine that it
//! runs on: `firmware`, as what firmware has set up is there for anybody to read.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage; 3 and 4 of `firmware`: not as wanted, not all known.

mod commands;
mod connection;
mod contexts;
mod document;
mod failure;
mod grammar;
mod output;
mod pinned;
mod table;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = grammar::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe went away, as `head` does: nothing is wrong.
        Err(failure::Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprint!("{}", failure.report());
            failure.exit_code()
        }
    }
}
