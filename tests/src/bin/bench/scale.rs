//! How the costs of reverb, of Kafka and of starting grow with the fleet, the partitions, the bars, the load, the group and the
//! history: one of them changes at a time.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use backbeat_devstack::Stack;
use backbeat_tests::{Cluster, Program, cpu_seconds, peak_mib, stack, wait_until};

use crate::chart::{Chart, draw};
use crate::claim_source::{ClaimSource, Load};
use crate::reports::watch;
use crate::startup::{PULSE_FLAGS, cluster_with_history, startup};
use crate::table::{Row, Table, median};
use crate::takeover::takeovers;

const LIMIT: Duration = Duration::from_mins(1);
const WARM_UP: usize = 2;
const WINDOWS: usize = 4;
/// The length of a window in seconds, whatever the number of its beats.
const WINDOW_S: u64 = 8;
const KILLS: usize = 9;

/// A fleet and the group that reads its claims.
#[derive(Debug, Clone, Copy)]
struct Deployment {
    load: Load,
    partitions: u64,
    bar_length: u64,
    members: u64,
}

/// Where all lines meet. In a window, every agent of a million has a claim.
const BASE: Deployment =
    Deployment { load: Load { agents: 20_000, claims_per_second: 150_000 }, partitions: 12, bar_length: 4, members: 1 };

/// The property that changes.
struct Dimension {
    /// Its part in the names of the figures.
    name: &'static str,
    label: &'static str,
    sizes: &'static [u64],
    /// Measures the deployment of a size.
    measure: fn(u64) -> Vec<Figure>,
}

const DIMENSIONS: [Dimension; 6] = [
    Dimension {
        name: "agents",
        label: "agents",
        sizes: &[1_000, 10_000, 100_000, 1_000_000],
        measure: |agents| measure(Deployment { load: Load { agents, ..BASE.load }, ..BASE }),
    },
    Dimension {
        name: "partitions",
        label: "partitions",
        sizes: &[1, 4, 16, 64, 256],
        measure: |partitions| measure(Deployment { partitions, ..BASE }),
    },
    Dimension {
        name: "beats_per_bar",
        label: "beats of a bar",
        sizes: &[4, 12, 40, 120],
        measure: |bar_length| measure(Deployment { bar_length, ..BASE }),
    },
    Dimension {
        name: "claims_per_second",
        label: "claims per second",
        sizes: &[1_500, 15_000, 150_000],
        measure: |claims_per_second| measure(Deployment { load: Load { claims_per_second, ..BASE.load }, ..BASE }),
    },
    Dimension {
        name: "members",
        label: "members",
        sizes: &[1, 2, 4],
        measure: |members| measure(Deployment { members, ..BASE }),
    },
    Dimension { name: "frames", label: "beat frames", sizes: &[10_000, 200_000, 2_000_000], measure: history },
];

/// A measured value of a deployment.
struct Figure {
    /// Its part in the names of the figures.
    name: &'static str,
    label: &'static str,
    unit: &'static str,
    value: f64,
}

pub(crate) fn run(table: &mut Table) {
    let mut charts = Vec::new();
    for dimension in &DIMENSIONS {
        let measured: Vec<Vec<Figure>> = dimension.sizes.iter().map(|size| (dimension.measure)(*size)).collect();
        let smallest = &measured[0];
        for (size, figures) in dimension.sizes.iter().zip(&measured) {
            for (figure, smallest) in figures.iter().zip(smallest) {
                table.add(Row {
                    name: format!("scale_{}_{size}_{}", dimension.name, figure.name),
                    value: figure.value,
                    unit: figure.unit,
                    baseline: "the smallest of these",
                    baseline_value: smallest.value,
                });
            }
        }
        for (position, figure) in smallest.iter().enumerate() {
            let values = measured.iter().map(|figures| figures[position].value);
            charts.push(Chart {
                title: figure.label,
                x_label: dimension.label,
                points: dimension.sizes.iter().map(|size| *size as f64).zip(values).collect(),
            });
        }
    }
    draw(&charts, "scale.svg");
}

/// Measures reverb and Kafka under a constant load, over some windows.
fn measure(Deployment { load, partitions, bar_length, members }: Deployment) -> Vec<Figure> {
    let cluster = Cluster::new(partitions as i32);
    let (bpm, bar) = ((60 * bar_length / WINDOW_S).to_string(), bar_length.to_string());
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", &bpm, "--max-bpm", &bpm, "--bar", &bar]);
    let members: Vec<Program> = (0..members).map(|_| cluster.serve("reverb", &["--cluster", "bench"])).collect();
    members.iter().for_each(Program::wait_ready);
    wait_until("a report", LIMIT, || !cluster.reports().is_empty());
    let (newest, done) = (AtomicI64::new(0), AtomicBool::new(false));
    let usage = || Usage::of(&members);
    let mut at_start = None;
    let received = thread::scope(|scope| {
        scope.spawn(|| ClaimSource::new(&cluster).send_at_constant_rate(load, &newest, &done));
        let received = watch(&cluster, &newest, |received| {
            if received >= WARM_UP {
                at_start.get_or_insert_with(usage);
            }
            received >= WARM_UP + WINDOWS
        });
        done.store(true, Ordering::Relaxed);
        received
    });
    let (before, after) = (at_start.expect("there was a warm-up"), usage());
    let measured = &received[WARM_UP..];
    let expected = load.agents.min(load.claims_per_second * WINDOW_S / 2) as i64;
    for (report, _) in measured {
        assert!(report.agents_reporting >= expected, "{load:?}: {report:?}");
    }
    let per_million = |seconds: f64| seconds * 1e6 / (after.claims - before.claims);
    let peak = members.iter().map(|member| peak_mib(member.pid())).fold(0.0, f64::max);
    vec![
        Figure {
            name: "cpu_s_per_million",
            label: "reverb: CPU s / 1M claims",
            unit: "CPU s / 1M",
            value: per_million(after.reverb - before.reverb),
        },
        Figure {
            name: "kafka_cpu_s_per_million",
            label: "Kafka: CPU s / 1M claims",
            unit: "CPU s / 1M",
            value: per_million(after.kafka - before.kafka),
        },
        Figure { name: "peak_mib", label: "peak memory of a member, MiB", unit: "MiB", value: peak },
        Figure {
            name: "report_delay_ms",
            label: "report delay, ms",
            unit: "ms",
            value: median(measured.iter().map(|(_, delay)| *delay).collect()),
        },
    ]
}

/// The CPU time used, and the claims processed, so far.
struct Usage {
    /// The CPU seconds of all members.
    reverb: f64,
    /// The CPU seconds of Kafka.
    kafka: f64,
    /// The claims that the members have processed.
    claims: f64,
}

impl Usage {
    fn of(members: &[Program]) -> Self {
        let kafka = match stack() {
            Stack::Local(devstack) => cpu_seconds(devstack.broker_pid(0)),
            // On another machine.
            Stack::External { .. } => 0.0,
        };
        let processed = |member: &Program| member.metric("backbeat_reverb_claims_processed_total").unwrap_or(0.0);
        Self {
            reverb: members.iter().map(|member| cpu_seconds(member.pid())).sum(),
            kafka,
            claims: members.iter().map(processed).sum(),
        }
    }
}

/// Measures start-up and takeover after a history of `frames` frames.
fn history(frames: u64) -> Vec<Figure> {
    let cluster = cluster_with_history(frames as u32);
    let (pulse, reverb) = startup(&cluster);
    let takeover = median(takeovers(&cluster, &PULSE_FLAGS, KILLS));
    let ms = |name, label, value| Figure { name, label, unit: "ms", value };
    vec![
        ms("pulse_startup_ms", "pulse: start-up, ms", pulse),
        ms("reverb_startup_ms", "reverb: start-up, ms", reverb),
        ms("pulse_takeover_ms", "pulse: takeover, ms", takeover),
    ]
}
