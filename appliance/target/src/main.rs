//! `aditd`: the target.

fn main() {}
