//! Boots a guest, runs the shell script on standard input in it, prints what it printed, powers
//! off.
//!
//! `echo 'nvme discover -t tcp -a 10.0.2.2 -s 4420' | cargo run -p qemu_tests --example guest`

use std::io::Read;
use std::process::ExitCode;

use qemu_tests::{Guest, HarnessError};

fn main() -> ExitCode {
    let mut script = String::new();
    if let Err(error) = std::io::stdin().read_to_string(&mut script) {
        eprintln!("guest: read the script from standard input: {error}");
        return ExitCode::FAILURE;
    }
    match run(&script) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guest: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(script: &str) -> Result<i32, HarnessError> {
    let mut guest = Guest::builder("example").boot()?;
    let output = guest.attempt(script)?;
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    if output.status != 0 {
        eprintln!(
            "guest: exit status {}; its console:\n{}",
            output.status,
            guest.serial()
        );
    }
    guest.power_off()?;
    Ok(output.status)
}
