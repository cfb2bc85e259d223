//! What a test may make the transport say by itself: a file `do.COMMAND` in the folder of gates, removed once it is done.
//!
//! `ready` (READYTOSEND), `critsec`, `noncrit`, `notify-N` (NEWMAIL, N times), `addresses-TYPE` (CONFIG_CHANGE: other address types),
//! `failing-TEXT` and `healthy` (what ValidateState returns from now on).

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use serde_json::json;

use super::Shared;

/// Often enough not to be felt.
const EVERY: Duration = Duration::from_millis(10);

/// Watches for commands, and announces mail if it is not polled.
pub(super) async fn watch(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let entries = std::fs::read_dir(&shared.config.gates);
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let Some(command) = name.to_str().and_then(|name| name.strip_prefix("do."))
                && std::fs::remove_file(entry.path()).is_ok()
            {
                carry_out(&shared, command);
            }
        }
        if !shared.config.poll {
            announce(&shared);
        }
    }
}

fn announce(shared: &Shared) {
    let Some(support) = shared.support.get() else {
        return;
    };
    for name in shared.folder.news() {
        shared.journal.write("new_mail", json!({ "file": name }));
        for _ in 0..shared.config.notify_times {
            support.new_mail();
        }
    }
}

fn carry_out(shared: &Shared, command: &str) {
    let Some(support) = shared.support.get() else {
        return;
    };
    shared
        .journal
        .write("command", json!({ "command": command }));
    let (word, rest) = command.split_once('-').unwrap_or((command, ""));
    match word {
        "ready" => support.ready_to_send(),
        "critsec" => support.critical_section(true),
        "noncrit" => support.critical_section(false),
        "notify" => (0..rest.parse().unwrap_or(1)).for_each(|_| support.new_mail()),
        "addresses" => {
            let mut addresses = shared
                .addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *addresses = Some(vec![rest.to_owned()]);
            drop(addresses);
            support.config_change();
        }
        "failing" => shared.set_failing(Some(rest.to_owned())),
        "healthy" => shared.set_failing(None),
        _ => eprintln!("unknown command {command}"),
    }
}
