//! The CPU: the embedded default, and the oracle that other devices are checked against.
