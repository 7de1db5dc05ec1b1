//! Asking before data is destroyed.

use std::io::{BufRead, IsTerminal, Write};

use oxblock_engine::{Error, ErrorKind};

use super::Failure;

/// Asks on the terminal; what is not answered with `yes` is not done.
///
/// Errors: there is no terminal, or the answer was no.
pub fn confirm(what: &str, device: &str) -> Result<(), Failure> {
    let (input, mut output) = (std::io::stdin(), std::io::stderr());
    if !input.is_terminal() || !output.is_terminal() {
        let text = format!("this destroys {what} on {device}; give --yes to do it unasked");
        return Err(Failure::Usage(text));
    }
    let fail = |error: std::io::Error| {
        Failure::Device(Error::new(ErrorKind::Io, format!("asking on the terminal: {error}")))
    };
    write!(output, "This destroys {what} on {device}. Type yes to go on: ").map_err(fail)?;
    output.flush().map_err(fail)?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer).map_err(fail)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::Usage("nothing was done".into()))
}
