//! The doors for fuzzers, and for the tests that replay their corpora: every decoder of a transport that strangers reach, each
//! with what must hold whatever they say. A panic is a finding. Not for anybody else; `tests/fuzz` has the targets.

pub use crate::transports::{
    maildir::fuzzing::file as drop_folder,
    smtp::fuzzing::{content as smtp_content, replies as smtp_reply},
    smtp_listener::fuzzing::{
        command as smtp_command, content as smtp_data, session as smtp_session,
    },
};
