//! The table of benchmark figures.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Figures in the order in which they were measured.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// A figure and its baseline.
pub(crate) struct Row {
    /// The figure's name in `target/bench.json`.
    pub(crate) name: String,
    /// The measured value.
    pub(crate) value: f64,
    /// The unit of both values.
    pub(crate) unit: &'static str,
    /// The name of the baseline: another measurement of the same run, a goal or a requirement.
    pub(crate) baseline: &'static str,
    /// The baseline's value.
    pub(crate) baseline_value: f64,
}

impl Row {
    /// The value divided by the baseline's; `None` for a baseline of 0.
    fn ratio(&self) -> Option<f64> {
        (self.baseline_value != 0.0).then(|| self.value / self.baseline_value)
    }
}

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn print(&self) {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!("\n{cores} cores, shared by Kafka, the registry and the measured programs\n");
        println!("{:<36} {:>12} {:<14} {:>12}  {:<34} {:>6}", "figure", "value", "unit", "baseline", "", "ratio");
        for row in &self.rows {
            println!(
                "{:<36} {:>12.2} {:<14} {:>12.2}  {:<34} {:>6}",
                row.name,
                row.value,
                row.unit,
                row.baseline_value,
                row.baseline,
                row.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
            );
        }
    }

    /// Writes the figures to `target/bench.json`, which keeps the figures of benchmarks that did not run this time.
    pub(crate) fn write(&self) {
        let figure = |row: &Row| {
            let baseline = json!({ "name": row.baseline, "value": row.baseline_value });
            (
                row.name.clone(),
                json!({ "value": row.value, "unit": row.unit, "beside": baseline, "ratio": row.ratio() }),
            )
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench.json");
        let previous = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
        let mut figures: Map<String, Value> = previous.unwrap_or_default();
        figures.extend(self.rows.iter().map(figure));
        let text = serde_json::to_string_pretty(&figures).expect("figures are JSON");
        std::fs::write(&path, text + "\n").unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}

/// The median of `values`; the upper one of the two middle values if their number is even.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
