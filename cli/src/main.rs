//! The `oxblock` command.
fn main() {}
