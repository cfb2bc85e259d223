//! `pombo-scripted-agent`: a company's own transport in its own process, as far as Pombo can tell. What it does is written
//! into the recipients' local parts, the names of the files that it delivers, and commands in a folder; what is asked
//! of it is written into a journal.

use std::process::ExitCode;

use pombo_agent::host::{
    self,
    registry::{self, Kind},
};
use pombo_tests::scripted::Scripted;

const KINDS: &[Kind] = &[Kind {
    name: "scripted",
    make: |source| registry::make(source, "scripted", Scripted::new),
}];

fn main() -> ExitCode {
    host::main(KINDS)
}
