//! The plot for the docs: throughput by case, each case on a scale of its own.

use std::fmt::Write as _;

use crate::{output::number, samples::Row};

const WIDTH: u32 = 900;
const LEFT: u32 = 240;
/// What the longest bar leaves for its label.
const RIGHT: u32 = 250;
const BAR: u32 = 18;
const GAP: u32 = 4;
const HEADING: u32 = 30;

/// As SVG.
pub fn svg(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows
        .iter()
        .filter(|row| row.unit.ends_with("/s") && !row.contender.contains('/'))
        .collect();
    let mut bars = String::new();
    let mut y = 10;
    let mut case = "";
    for row in &rows {
        if row.case != case {
            case = &row.case;
            y += HEADING;
            let _ = writeln!(
                bars,
                r#"<text x="10" y="{}" class="case">{case}</text>"#,
                y - 8
            );
        }
        let longest = rows
            .iter()
            .filter(|it| it.case == row.case && it.unit == row.unit)
            .map(|it| it.median)
            .fold(f64::MIN_POSITIVE, f64::max);
        let length = (row.median / longest * f64::from(WIDTH - LEFT - RIGHT)).max(1.0);
        let ratio = match (row.ratio, &row.ratio_to) {
            (Some(ratio), Some(to)) => format!(" ({ratio:.2} x {to})"),
            _ => String::new(),
        };
        let base = y + BAR - 5;
        let _ = writeln!(
            bars,
            r#"<text x="{}" y="{base}" class="who">{}</text>
<rect x="{LEFT}" y="{y}" width="{length:.1}" height="{BAR}" fill="{}"/>
<text x="{:.1}" y="{base}">{} {}{ratio}</text>"#,
            LEFT - 8,
            row.contender,
            colour(&row.contender),
            f64::from(LEFT) + length + 6.0,
            number(row.median),
            row.unit,
        );
        y += BAR + GAP;
    }
    let height = y + 10;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">
<style>text {{ font: 12px sans-serif; fill: black }} .case {{ font-weight: bold; font-size: 13px }} .who {{ text-anchor: end }}</style>
<rect width="100%" height="100%" fill="white"/>
{bars}</svg>
"#
    )
}

fn colour(contender: &str) -> &'static str {
    match contender {
        "postfix" => "#c9a227",
        "exim" => "#a65e2e",
        pombo if pombo.starts_with("pombo") => "#2a6f97",
        _ => "#9aa5ad",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contender_has_a_bar_and_parts_of_them_none() {
        let row = |contender: &str, unit: &str, ratio: Option<f64>| Row {
            case: "smtp-10k".to_owned(),
            contender: contender.to_owned(),
            unit: unit.to_owned(),
            runs: 1,
            min: 1000.0,
            median: 1000.0,
            max: 1000.0,
            ratio_to: ratio.map(|_| "postfix".to_owned()),
            ratio,
        };
        let rows = [
            row("pombo", "msg/s", Some(3.0)),
            row("pombo", "us CPU/message", None),
            row("pombo/out", "us CPU/message", None),
            row("postfix", "msg/s", None),
        ];
        let svg = svg(&rows);
        assert_eq!(svg.matches("<rect x=").count(), 2);
        assert!(svg.contains("1,000 msg/s (3.00 x postfix)"), "{svg}");
    }
}
