//! `pombo-agent`: hosts one transport.

use std::process::ExitCode;

use pombo_agent::host::{self, registry::KINDS};

fn main() -> ExitCode {
    host::main(KINDS)
}
