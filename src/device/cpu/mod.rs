//! The CPU: the embedded default, and the oracle that other devices are checked against.

pub mod mapped_file;
