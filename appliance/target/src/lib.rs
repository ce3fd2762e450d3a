//! The target program, `aditd`: what it is made of.

pub mod data_plane;
