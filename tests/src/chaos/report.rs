//! The verdicts for people and for programs.

use std::{fmt::Write as _, path::Path};

use anyhow::Context as _;

use super::verdict::{Row, Verdict};

/// A table in Markdown, with what broke a promise below it.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut out = String::from(
        "| fault | times | accepted | delivered | failed | lost | duplicated | in doubt | seconds | |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for verdict in verdicts {
        let row = &verdict.row;
        let end = match (&verdict.skipped, verdict.breaches.is_empty()) {
            (Some(_), _) => "not tried",
            (None, true) => "ok",
            (None, false) => "BROKEN",
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.0} | {end} |",
            row.fault,
            row.times,
            row.accepted,
            row.delivered,
            row.failed,
            row.lost,
            row.duplicated,
            row.in_doubt,
            row.seconds
        );
    }
    for verdict in verdicts {
        if let Some(why) = &verdict.skipped {
            let _ = writeln!(out, "\n{}: not tried: {why}", verdict.row.fault);
        }
        for breach in &verdict.breaches {
            let _ = writeln!(out, "\n{}: {breach}", verdict.row.fault);
        }
    }
    out
}

/// Writes the rows as a JSON array.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &Path, verdicts: &[Verdict]) -> anyhow::Result<()> {
    let rows: Vec<&Row> = verdicts
        .iter()
        .filter(|verdict| verdict.skipped.is_none())
        .map(|verdict| &verdict.row)
        .collect();
    let text = serde_json::to_string_pretty(&rows)?;
    std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// Whether every promise held, and something was tried.
pub fn all_is_well(verdicts: &[Verdict]) -> bool {
    verdicts.iter().any(|verdict| verdict.skipped.is_none())
        && verdicts.iter().all(|verdict| verdict.breaches.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_exactly_the_fields_that_others_read() {
        let value = serde_json::to_value(Row::default()).unwrap();
        let mut fields: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        fields.sort();
        let mut wanted = [
            "fault",
            "times",
            "accepted",
            "delivered",
            "failed",
            "lost",
            "duplicated",
            "in_doubt",
            "seconds",
        ];
        wanted.sort_unstable();
        assert_eq!(fields, wanted);
    }

    #[test]
    fn what_was_not_tried_is_no_success() {
        let skipped = Verdict {
            skipped: Some("not root".to_owned()),
            ..Verdict::default()
        };
        assert!(!all_is_well(&[]));
        assert!(!all_is_well(std::slice::from_ref(&skipped)));
        assert!(all_is_well(&[skipped.clone(), Verdict::default()]));
        assert!(table(&[skipped]).contains("not root"));
        let broken = Verdict {
            breaches: vec!["1 lost: x".to_owned()],
            ..Verdict::default()
        };
        assert!(!all_is_well(&[Verdict::default(), broken]));
    }
}
