//! A picture of small line charts.

use std::path::Path;

use plotters::chart::ChartBuilder;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::element::Circle;
use plotters::prelude::{DrawingAreaErrorKind, IntoDrawingArea, SVGBackend};
use plotters::series::LineSeries;
use plotters::style::{BLUE, Color, WHITE};

/// The size of a chart in pixels.
const WIDTH: u32 = 250;
const HEIGHT: u32 = 190;
/// The part of the vertical axis above the largest value.
const HEADROOM: f64 = 1.2;

/// A line over a logarithmic axis.
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) x_label: &'static str,
    /// In the order of their positions on the horizontal axis.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws rows of charts to a file in `target`; a row ends where the label of the horizontal axis changes.
pub(crate) fn draw(charts: &[Chart], file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(file);
    try_draw(charts, &path).unwrap_or_else(|error| panic!("cannot draw {}: {error}", path.display()));
}

fn try_draw(charts: &[Chart], path: &Path) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let rows_of_charts: Vec<&[Chart]> = charts.chunk_by(|a, b| a.x_label == b.x_label).collect();
    let rows = rows_of_charts.len();
    let columns = rows_of_charts.iter().map(|row| row.len()).max().unwrap_or(0);
    let root = SVGBackend::new(path, (WIDTH * columns as u32, HEIGHT * rows as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (row, charts) in root.split_evenly((rows, 1)).iter().zip(rows_of_charts) {
        for (area, chart) in row.split_evenly((1, columns)).iter().zip(charts) {
            let sizes: Vec<f64> = chart.points.iter().map(|(x, _)| *x).collect();
            let axis = sizes[0]..sizes[sizes.len() - 1];
            let top = chart.points.iter().map(|(_, y)| *y).fold(0.0, f64::max) * HEADROOM;
            let mut context = ChartBuilder::on(area)
                .caption(chart.title, ("sans-serif", 13))
                .margin(8)
                .margin_right(18)
                .x_label_area_size(32)
                .y_label_area_size(38)
                .build_cartesian_2d(axis.log_scale().with_key_points(sizes), 0.0..top)?;
            context
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(WHITE)
                .y_labels(5)
                .x_desc(chart.x_label)
                .x_label_formatter(&|x| short(*x))
                .y_label_formatter(&|y| short(*y))
                .draw()?;
            let points = || chart.points.iter().copied();
            context.draw_series(LineSeries::new(points(), &BLUE))?;
            context.draw_series(points().map(|point| Circle::new(point, 3, BLUE.filled())))?;
        }
    }
    root.present()
}

/// A number in a few characters: 1.5k, 2M.
fn short(number: f64) -> String {
    match number {
        1e6.. => format!("{}M", number / 1e6),
        1e3.. => format!("{}k", number / 1e3),
        // The labels of an axis are sums of its step.
        _ => format!("{}", (number * 1e3).round() / 1e3),
    }
}
