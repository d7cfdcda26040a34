//! The page of `backbeat ui`: what 200 open ones cost, how late a report is on one, its first paint, its size, and the memory
//! of a tab after a day's worth of events.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_schemas::{BarReport, BeatFrame, testing};
use backbeat_tests::{Browser, Cluster, Program, cpu_seconds, now_ms, peak_mib, percentile, wait_until};
use serde_json::json;

use crate::claim_source::RecordSource;
use crate::table::{Row, Table};

const LIMIT: Duration = Duration::from_mins(5);
const PAGES: usize = 200;
const MEASURED: Duration = Duration::from_mins(1);
const CORES_GOAL: f64 = 0.2;
const MEMORY_GOAL_MIB: f64 = 64.0;
const REPORT_GOAL_MS: f64 = 500.0;
const PAINT_GOAL_MS: f64 = 200.0;
const SIZE_GOAL_KIB: f64 = 60.0;
const LOADS: usize = 20;
const BAR: u32 = 4;
/// The beats of a day at 24 BPM.
const DAY_BEATS: u32 = 24 * 60 * 24;
/// Beats of that day in a second: few enough for the page to show most of them.
const BEATS_PER_SECOND: u32 = 400;

pub(crate) fn run(table: &mut Table) {
    open_pages(table);
    report_delay(table);
    day(table);
}

fn serve(cluster: &Cluster, pulse: &Program, reverb: &Program) -> Program {
    wait_until("the programs to listen", LIMIT, || pulse.url().is_some() && reverb.url().is_some());
    let (pulse, reverb) = (pulse.url().expect("a URL"), reverb.url().expect("a URL"));
    let ui = cluster.serve("backbeat", &["ui", "--pulse", &pulse, "--reverb", &reverb]);
    ui.wait_ready();
    ui
}

fn url(program: &Program) -> String {
    program.url().expect("it listens")
}

fn open_pages(table: &mut Table) {
    let cluster = Cluster::new(12);
    let pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "24", "--bar", "4"]);
    let reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    let rates = ["--late-rate", "0.02", "--malformed-rate", "0.01", "--stalled-task-rate", "0.15"];
    let _agents = cluster.start("agent-sim", &[&["--agents", "100"][..], &rates].concat());
    let ui = serve(&cluster, &pulse, &reverb);
    // The page has all its windows.
    wait_until("a report", LIMIT, || !cluster.reports().is_empty());
    let streams = format!("{}/events", url(&ui));
    let done = AtomicBool::new(false);
    let mut cores = 0.0;
    let mut idle_cores = 0.0;
    thread::scope(|scope| {
        let measure = || {
            let (began, used) = (Instant::now(), cpu_seconds(ui.pid()));
            thread::sleep(MEASURED);
            (cpu_seconds(ui.pid()) - used) / began.elapsed().as_secs_f64()
        };
        idle_cores = measure();
        for _ in 0..PAGES {
            let (streams, done) = (&streams, &done);
            scope.spawn(move || {
                let client = reqwest::blocking::Client::builder().timeout(None).build().expect("a client");
                let mut stream = BufReader::new(client.get(streams).send().expect("it answers"));
                let mut line = String::new();
                while !done.load(Ordering::Relaxed) && stream.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                    line.clear();
                }
            });
        }
        wait_until("open streams", LIMIT, || ui.metric("backbeat_ui_streams") == Some(PAGES as f64));
        cores = measure();
        assert_eq!(ui.metric("backbeat_ui_streams"), Some(PAGES as f64), "a stream has ended");
        done.store(true, Ordering::Relaxed);
    });
    let rows = [
        ("page_200_streams_cores", cores, "cores", CORES_GOAL),
        ("page_no_stream_cores", idle_cores, "cores", CORES_GOAL),
        ("page_200_streams_peak_mib", peak_mib(ui.pid()), "MiB", MEMORY_GOAL_MIB),
    ];
    for (name, value, unit, goal) in rows {
        table.add(Row { name: name.into(), value, unit, baseline: "goal", baseline_value: goal });
    }
}

fn report_delay(table: &mut Table) {
    let cluster = Cluster::new(12);
    let pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "120", "--max-bpm", "120", "--bar", "2"]);
    let reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    let _agents = cluster.start("agent-sim", &["--agents", "100"]);
    let ui = serve(&cluster, &pulse, &reverb);
    wait_until("a report", LIMIT, || !cluster.reports().is_empty());
    let browser = Browser::start();
    browser.open(&url(&ui));
    browser.eval(
        "window.shown = {}; new MutationObserver(() => { \
            for (const row of document.querySelectorAll('tr.reported')) window.shown[row.id] ??= Date.now(); \
        }).observe(document.getElementById('windows'), { subtree: true, childList: true, attributes: true, characterData: true })",
    );
    let mut reports = cluster.reader::<BarReport>(TopicName::BarReports);
    let end = reports.end_offset().expect("Kafka answers");
    reports.seek(end).expect("Kafka answers");
    let mut received = HashMap::new();
    let began = Instant::now();
    while began.elapsed() < MEASURED {
        if let Some(entry) = reports.poll(Duration::from_millis(5)).expect("Kafka answers") {
            received.insert(format!("w{}", entry.record.from_beat), now_ms());
        }
    }
    let shown = browser.eval("return window.shown");
    let delay = |(row, at): (&String, &f64)| Some(shown[row].as_f64()? - at);
    let delays: Vec<f64> = received.iter().filter_map(delay).collect();
    assert!(delays.len() > 30, "{} of {} reports were shown", delays.len(), received.len());
    for (name, percent) in [("page_report_delay_p50_ms", 50), ("page_report_delay_p99_ms", 99)] {
        let value = percentile(&delays, percent);
        table.add(Row { name: name.into(), value, unit: "ms", baseline: "goal", baseline_value: REPORT_GOAL_MS });
    }
    let paints: Vec<f64> = (0..LOADS)
        .map(|_| {
            browser.open(&url(&ui));
            let mut paint = None;
            wait_until("a paint", LIMIT, || {
                paint = browser
                    .eval("return performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
                    .as_f64();
                paint.is_some()
            });
            paint.expect("a paint")
        })
        .collect();
    for (name, percent) in [("page_first_paint_p50_ms", 50), ("page_first_paint_p95_ms", 95)] {
        let value = percentile(&paints, percent);
        table.add(Row { name: name.into(), value, unit: "ms", baseline: "goal", baseline_value: PAINT_GOAL_MS });
    }
    let files = browser.eval("return [location.href, ...performance.getEntriesByType('resource').map(e => e.name)]");
    let files: Vec<String> = serde_json::from_value(files).expect("a list of URLs");
    let bytes: usize = files.iter().filter(|file| !file.contains("/events")).map(|file| gzipped(file)).sum();
    let value = bytes as f64 / 1_024.0;
    let name = "page_gzipped_kib".into();
    table.add(Row { name, value, unit: "KiB", baseline: "goal", baseline_value: SIZE_GOAL_KIB });
}

/// Returns the size of what is at `url`, compressed.
fn gzipped(url: &str) -> usize {
    let body = reqwest::blocking::get(url).and_then(reqwest::blocking::Response::bytes).expect("it answers");
    let mut gzip = Command::new("gzip")
        .args(["-9", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip runs");
    let mut input = gzip.stdin.take().expect("it is piped");
    let writer = thread::spawn(move || input.write_all(&body));
    let compressed = gzip.wait_with_output().expect("gzip ends").stdout;
    writer.join().expect("it does not panic").expect("gzip reads");
    compressed.len()
}

/// Shows a day's frames and reports, which are written as fast as a page can show them, and compares the tab's memory with that
/// after the first hour.
fn day(table: &mut Table) {
    let cluster = Cluster::new(1);
    let frames = RecordSource::<BeatFrame>::new(&cluster, TopicName::BeatFrames);
    let reports = RecordSource::<BarReport>::new(&cluster, TopicName::BarReports);
    let ui = cluster.serve("backbeat", &["ui", "--pulse", "http://127.0.0.1:1", "--reverb", "http://127.0.0.1:1"]);
    ui.wait_ready();
    let browser = Browser::start();
    browser.open(&url(&ui));
    let used = |at: u32| {
        wait_until("the page to show it", LIMIT, || browser.text("#beat-index") == at.to_string());
        browser.devtools("HeapProfiler.collectGarbage", json!({}));
        let sizes =
            browser.eval("return [performance.memory.usedJSHeapSize, document.getElementsByTagName('*').length]");
        let size = |index: usize| sizes[index].as_f64().unwrap_or_else(|| panic!("{sizes:?}"));
        (size(0) / 1_048_576.0, size(1))
    };
    let began = Instant::now();
    let mut after_an_hour = None;
    for beat in 0..DAY_BEATS {
        frames.send("bench", &testing::frame(beat, BAR as u16));
        if beat % BAR == BAR - 1 {
            let report = BarReport {
                claims: i64::from(beat % 97),
                late_claims: i64::from(beat % 5),
                ..testing::report(beat + 1 - BAR, BAR as u16)
            };
            reports.send(&report.window_id.to_string(), &report);
        }
        thread::sleep((Duration::from_secs(1) / BEATS_PER_SECOND * beat).saturating_sub(began.elapsed()));
        if beat == DAY_BEATS / 24 {
            after_an_hour = Some(used(beat));
        }
    }
    let (hour, (mib, elements)) = (after_an_hour.expect("a day has hours"), used(DAY_BEATS - 1));
    let changes = ui.metric("backbeat_ui_changes_total").unwrap_or_default();
    let first_hour = "after the first hour";
    table.add(Row {
        name: "page_day_heap_mib".into(),
        value: mib,
        unit: "MiB",
        baseline: first_hour,
        baseline_value: hour.0,
    });
    table.add(Row {
        name: "page_day_elements".into(),
        value: elements,
        unit: "elements",
        baseline: first_hour,
        baseline_value: hour.1,
    });
    table.add(Row {
        name: "page_day_changes".into(),
        value: changes,
        unit: "changes",
        baseline: "beats of the day",
        baseline_value: f64::from(DAY_BEATS),
    });
}
