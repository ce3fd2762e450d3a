//! The driver on a controller that lies: registers, Identify, log pages, completions. What must hold
//! stands in `tests/driver/liar.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "the tests' helpers, of which this needs some")]
#[path = "../../tests/driver/input.rs"]
mod input;
#[path = "../../tests/driver/liar.rs"]
mod liar;
#[expect(dead_code, reason = "the tests' helpers, of which this needs some")]
#[path = "../../tests/driver/rig.rs"]
mod rig;

fuzz_target!(|bytes: &[u8]| liar::run(bytes));
