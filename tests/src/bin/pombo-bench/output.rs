//! The table, for people and for programs.

use std::fmt::Write as _;

use crate::samples::Row;

/// A table in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut out = String::from(
        "| case | contender | unit | runs | min | median | max | ratio | to |\n|---|---|---|---:|---:|---:|---:|---:|---|\n",
    );
    for row in rows {
        let ratio = row.ratio.map(|ratio| format!("**{ratio:.2}**"));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.case,
            row.contender,
            row.unit,
            row.runs,
            number(row.min),
            number(row.median),
            number(row.max),
            ratio.unwrap_or_default(),
            row.ratio_to.as_deref().unwrap_or_default()
        );
    }
    out
}

/// With its thousands set apart.
pub fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.4}")
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned();
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && digit.is_ascii_digit() {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(1_234_567.0), "1,234,567");
        assert_eq!(number(999.6), "1,000");
        assert_eq!(number(2.5), "2.5");
        assert_eq!(number(100.0), "100");
    }
}
