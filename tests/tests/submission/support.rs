//! A transport of the tests' own, short pauses, and what a story and a journal tell.

use std::time::Duration;

use pombo_tests::{
    Installation,
    installation::{Agent, Builder},
    scripted::journal::{Entry, Journal},
};
use serde_json::Value;

pub const SOON: Duration = Duration::from_secs(30);

/// Short pauses, so that what is tried again comes back within a test.
pub const QUICK: &str = "[schedule]\nfirst = \"1s\"\nmax = \"2s\"\njitter = 0.0\nbusy = \"300ms\"\n\
    [destinations]\nrest = \"1s\"\n";

pub fn quick() -> Builder {
    Installation::builder().spooler_lines(QUICK)
}

/// One transport of one's own, for all Internet mail.
pub fn own() -> Agent {
    Agent::scripted("own").line("addresses = [\"SMTP\"]")
}

pub async fn pombo() -> anyhow::Result<Installation> {
    quick().agent(own()).start().await
}

/// The state of each recipient by its address.
pub fn state_of<'a>(trace: &'a Value, address: &str) -> &'a Value {
    let all = trace["recipients"].as_array().expect("recipients");
    all.iter()
        .find(|it| it["address"] == format!("SMTP:{address}"))
        .unwrap_or_else(|| panic!("{address} is not in {trace}"))
}

pub fn count(story: &[String], what: &str) -> usize {
    story.iter().filter(|it| *it == what).count()
}

/// The report of this class about `subject`, as the sender's transport got it.
pub async fn report(journal: &Journal, class: &str) -> Entry {
    let matches = |entry: &Entry| entry.text("class") == class;
    journal.wait_for(SOON, "submit", 1, matches).await
}

pub fn reports(journal: &Journal) -> Vec<String> {
    let all = journal.all("submit");
    let classes = all.iter().map(|entry| entry.text("class").to_owned());
    classes.filter(|class| class != "IPM.Note").collect()
}
