//! What was measured, and the rows that are made of it.

use serde::Serialize;

/// All values of all runs, in the order in which they came first.
#[derive(Debug, Default)]
pub struct Samples {
    series: Vec<Series>,
    /// Case, contender, and the contender of the same case that it is compared with.
    yardsticks: Vec<(String, String, String)>,
}

#[derive(Debug)]
struct Series {
    case: String,
    contender: String,
    unit: String,
    values: Vec<f64>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was done.
    pub case: String,
    /// By whom; `pombo/out` is one process of `pombo`.
    pub contender: String,
    /// What was measured.
    pub unit: String,
    /// How often.
    pub runs: usize,
    /// The least.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The most.
    pub max: f64,
    /// The contender whose median is the yardstick.
    pub ratio_to: Option<String>,
    /// The median over that one's.
    pub ratio: Option<f64>,
}

impl Samples {
    /// One more value.
    pub fn add(&mut self, case: &str, contender: &str, unit: &str, value: f64) {
        let known = self
            .series
            .iter_mut()
            .find(|it| it.case == case && it.contender == contender && it.unit == unit);
        match known {
            Some(series) => series.values.push(value),
            None => self.series.push(Series {
                case: case.to_owned(),
                contender: contender.to_owned(),
                unit: unit.to_owned(),
                values: vec![value],
            }),
        }
    }

    /// In this case, `contender` is compared with `yardstick`, in every unit that both have.
    pub fn compare(&mut self, case: &str, contender: &str, yardstick: &str) {
        self.yardsticks
            .push((case.into(), contender.into(), yardstick.into()));
    }

    /// The table.
    pub fn rows(&self) -> Vec<Row> {
        self.series.iter().map(|series| self.row(series)).collect()
    }

    /// The median of what was measured so far.
    pub fn median(&self, case: &str, contender: &str, unit: &str) -> Option<f64> {
        let found = self
            .series
            .iter()
            .find(|it| it.case == case && it.contender == contender && it.unit == unit);
        found.map(|series| median(&series.values))
    }

    fn row(&self, series: &Series) -> Row {
        let Series {
            case,
            contender,
            unit,
            values,
        } = series;
        let yardstick = self
            .yardsticks
            .iter()
            .find(|(of, who, _)| of == case && who == contender)
            .and_then(|(_, _, to)| Some((to.clone(), self.median(case, to, unit)?)));
        let middle = median(values);
        Row {
            case: case.clone(),
            contender: contender.clone(),
            unit: unit.clone(),
            runs: values.len(),
            min: rounded(values.iter().copied().fold(f64::INFINITY, f64::min)),
            median: rounded(middle),
            max: rounded(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            ratio: yardstick
                .as_ref()
                .filter(|(_, of)| *of > 0.0)
                .map(|(_, of)| (middle / of * 1000.0).round() / 1000.0),
            ratio_to: yardstick.map(|(to, _)| to),
        }
    }
}

/// The middle value; of an even number, the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// The value below which this part of all lie.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (part * last as f64).round() as usize;
    sorted.get(at.min(last)).copied().unwrap_or(f64::NAN)
}

/// Four digits are more than a run can tell.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    let factor = 10_f64.powi(digits.clamp(0, 6));
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_in_the_same_unit() {
        let mut samples = Samples::default();
        for (contender, values) in [
            ("pombo", [300.0, 100.0, 200.0]),
            ("postfix", [90.0, 100.0, 110.0]),
        ] {
            for value in values {
                samples.add("smtp", contender, "msg/s", value);
            }
        }
        samples.add("smtp", "pombo", "MiB peak", 7.0);
        samples.compare("smtp", "pombo", "postfix");
        let rows = samples.rows();
        assert_eq!(rows[0].ratio, Some(2.0));
        assert_eq!(rows[0].ratio_to.as_deref(), Some("postfix"));
        assert_eq!((rows[0].min, rows[0].max, rows[0].runs), (100.0, 300.0, 3));
        assert_eq!(rows[1].ratio, None);
        assert_eq!(rows[2].ratio, None);
    }

    #[test]
    fn middles() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 0.5), 2.0);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 0.99), 3.0);
        assert_eq!(rounded(1064.4), 1064.0);
        assert_eq!(rounded(0.123_456), 0.1235);
    }
}
