//! `pombo-neighbour-spooler`: the spooler as the next release might be, in the middle of a rolling upgrade. As
//! `pombo-neighbour-agent`, it speaks today's version of the protocol and one more.

use std::process::ExitCode;

use pombo_proto::verbs::{VERSIONS, VersionRange};

fn main() -> ExitCode {
    pombo_spooler::process::main_speaking(VersionRange {
        max: VERSIONS.max + 1,
        ..VERSIONS
    })
}
