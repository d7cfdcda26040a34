//! The table of figures.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

/// Figures in the order in which they were measured.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// One figure beside another, both of this run.
pub(crate) struct Row {
    /// Its name in `target/bench.json`.
    pub(crate) name: &'static str,
    /// What was measured.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// What it stands beside: what was measured in the same run, or what is wanted.
    pub(crate) beside: &'static str,
    /// Its value, in the same unit.
    pub(crate) beside_value: f64,
}

impl Row {
    /// `None` beside 0.
    fn ratio(&self) -> Option<f64> {
        (self.beside_value != 0.0).then(|| self.value / self.beside_value)
    }
}

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn print(&self) {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!("\n{cores} cores, shared by Kafka, the registry and what is measured\n");
        println!("{:<36} {:>12} {:<14} {:>12}  {:<34} {:>6}", "figure", "value", "unit", "beside", "", "ratio");
        for row in &self.rows {
            println!(
                "{:<36} {:>12.2} {:<14} {:>12.2}  {:<34} {:>6}",
                row.name,
                row.value,
                row.unit,
                row.beside_value,
                row.beside,
                row.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
            );
        }
    }

    /// Into `target/bench.json`, where the figures of parts that did not run now stay as they were.
    pub(crate) fn write(&self) {
        let figure = |row: &Row| {
            let beside = json!({ "name": row.beside, "value": row.beside_value });
            (
                row.name.to_owned(),
                json!({ "value": row.value, "unit": row.unit, "beside": beside, "ratio": row.ratio() }),
            )
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench.json");
        let before = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
        let mut figures: Map<String, Value> = before.unwrap_or_default();
        figures.extend(self.rows.iter().map(figure));
        let text = serde_json::to_string_pretty(&figures).expect("figures are JSON");
        std::fs::write(&path, text + "\n").unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
        println!("\nwritten to target/bench.json");
    }
}

/// The wall clock, in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64() * 1_000.0
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The smallest value that `percent` of them do not exceed.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}
