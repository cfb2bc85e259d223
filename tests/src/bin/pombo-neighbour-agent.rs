//! `pombo-neighbour-agent`: the scripted agent as the next release might be, in the middle of a rolling upgrade. It speaks
//! today's version of the protocol and one more. That one differs in its number only, but packets do carry it: whoever does
//! not speak it cannot read them.

use std::process::ExitCode;

use pombo_agent::host::{
    self,
    registry::{self, Kind},
};
use pombo_proto::verbs::{VERSIONS, VersionRange};
use pombo_tests::scripted::Scripted;

const KINDS: &[Kind] = &[Kind {
    name: "scripted",
    make: |source| registry::make(source, "scripted", Scripted::new),
}];

fn main() -> ExitCode {
    let newer = VersionRange {
        max: VERSIONS.max + 1,
        ..VERSIONS
    };
    host::main_speaking(KINDS, newer)
}
