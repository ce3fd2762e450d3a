//! The target program; its first test is not written yet.
