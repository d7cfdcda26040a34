//! The page of `backbeat ui`, in a real browser.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backbeat_tests::{Browser, Cluster, Program, PulseNodes, own_devstack, wait_for, wait_until};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use reqwest::Method;
use reqwest::blocking::{Client, Response};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::reports::{reverb, wait_for_reports};

const LIMIT: Duration = Duration::from_mins(2);
const TROUBLE: [&str; 10] = [
    "--late-rate",
    "0.05",
    "--malformed-rate",
    "0.05",
    "--silent-task-rate",
    "0.2",
    "--stalled-task-rate",
    "0.2",
    "--overdrawn-task-rate",
    "0.2",
];
/// Counts the beats that the page shows, in `window.beats`.
const RECORD_BEATS: &str = "window.beats = []; window.sameDocument = true; \
    const record = () => { const beat = Number(document.getElementById('beat').dataset.beat); \
        if (window.beats.at(-1) !== beat) window.beats.push(beat); }; \
    record(); new MutationObserver(record).observe(document.getElementById('beat'), { attributes: true });";

/// Starts the page of `cluster` with these pulse nodes and reverb members.
fn serve_ui(cluster: &Cluster, pulse: &[&Program], reverb: &[&Program], args: &[&str]) -> Program {
    let urls = |programs: &[&Program]| {
        let url = |program: &&Program| wait_for("a program to listen", LIMIT, || program.url());
        programs.iter().map(url).collect::<Vec<_>>().join(",")
    };
    let (pulse_urls, reverb_urls) = (urls(pulse), urls(reverb));
    let mut flags = vec!["ui", "--pulse", &pulse_urls];
    if !reverb.is_empty() {
        flags.extend(["--reverb", &reverb_urls]);
    }
    let ui = cluster.serve("backbeat", &[&flags[..], args].concat());
    ui.wait_ready();
    ui
}

fn url(program: &Program) -> String {
    program.url().expect("it listens")
}

/// Returns true if the page was not loaded again since [`RECORD_BEATS`] ran.
fn is_same_document(browser: &Browser) -> bool {
    browser.eval("return window.sameDocument === true") == json!(true)
}

#[test]
fn page_follows_the_log_without_going_back() {
    let cluster = Cluster::new(3);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "120", "--max-bpm", "120", "--bar", "4"]);
    let members = [reverb(&cluster, &[]), reverb(&cluster, &[])];
    let _agents = cluster.start("agent-sim", &[&["--agents", "20"][..], &TROUBLE].concat());
    let ui = serve_ui(&cluster, &[&pulse], &[&members[0], &members[1]], &[]);
    let browser = Browser::start();
    browser.open(&url(&ui));
    browser.eval(RECORD_BEATS);
    let beats = || serde_json::from_value::<Vec<i64>>(browser.eval("return window.beats")).expect("a list of beats");
    wait_until("twelve beats on the page", LIMIT, || beats().len() >= 12);
    let beats = beats();
    assert!(beats.windows(2).all(|pair| pair[0] < pair[1]), "{beats:?}");
    let newest = cluster.frames().pop().expect("there are frames").beat_index.get();
    let first = *beats.first().expect("beats");
    assert!(*beats.last().expect("beats") <= newest, "{beats:?} {newest}");
    // It shows every beat: a beat every 500 ms is slow for a page.
    assert_eq!(beats, (first..first + beats.len() as i64).collect::<Vec<_>>());

    // Every report of the log is a row of the page.
    wait_for_reports(&cluster, 4);
    for report in cluster.reports().iter().map(|entry| &entry.record) {
        let row = format!("#w{}", report.from_beat);
        wait_until("a report on the page", LIMIT, || browser.text(&row).contains("● reported"));
        let text = browser.text(&row);
        let cells = [report.agents_reporting, report.claims, report.late_claims, report.invalid_claims];
        let shown: Vec<&str> = text.split_whitespace().collect();
        let expected = cells.map(|count| count.to_string());
        assert!(shown.windows(4).any(|cells| cells == expected), "{expected:?} in {text}");
    }
    // The same by the server alone, without JavaScript.
    let html = ui.get("/").expect("it answers").1;
    assert!(html.contains("● reported") && html.contains("id=\"w0\""), "{html}");
    assert!(html.contains("Not live: the state of"), "{html}");
    assert!(browser.text("#pulse").contains("★ leader"), "{}", browser.text("#pulse"));
    assert!(browser.text("#reverb").contains("★ merge"), "{}", browser.text("#reverb"));
    browser.wait_for_text("#slos", "● met");
    browser.wait_for_text("#dead-letters", "allowed");

    // What has the focus keeps it while the page changes around it.
    browser.eval("document.querySelector('#w0 a').focus()");
    let reports = cluster.reports().len();
    wait_for_reports(&cluster, reports + 2);
    let last = cluster.reports().pop().expect("reports").record.from_beat;
    browser.wait_for_text(&format!("#w{last}"), "● reported");
    assert_eq!(browser.eval("return document.activeElement.closest('tr')?.id"), json!("w0"));
    assert!(browser.text("#announcement").starts_with("Report of beats"), "{}", browser.text("#announcement"));
    assert!(is_same_document(&browser));

    open_details(&cluster, &browser);
    let elsewhere = "return performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith(location.origin))";
    assert_eq!(browser.eval(elsewhere), json!([]));
    assert_eq!(browser.console_errors(), [""; 0]);
}

/// Follows the links from the page to a window's page and to that of an agent in it.
fn open_details(cluster: &Cluster, browser: &Browser) {
    let troubled = |report: &backbeat_schemas::BarReport| report.tasks_stalled > 0;
    let report =
        wait_for("a stalled task", LIMIT, || cluster.reports().into_iter().map(|entry| entry.record).find(troubled));
    let row = format!("#w{}", report.from_beat);
    browser.wait_for_text(&row, "stalled");
    browser.eval(&format!("document.querySelector('{row} a').click()"));
    browser.wait_for_text("h1", &format!("Beats {} to {}", report.from_beat, report.to_beat));
    let page = browser.text("main");
    for expected in [
        report.window_id.to_string(),
        format!("Tasks that stalled: {}", report.tasks_stalled),
        format!("claims counted\n{}", report.claims),
    ] {
        assert!(page.contains(&expected), "{expected} in {page}");
    }
    for (partition, (from, to)) in report.from_offsets.iter().zip(&report.to_offsets).enumerate() {
        let row = browser.text(&format!("main section:last-of-type tbody tr:nth-child({})", partition + 1));
        assert!(row.starts_with(&format!("{partition}\t{from}\t{to}\t{}", to - from)), "{row}");
    }
    let agent = browser.text("section a[href^='/agents']");
    browser.eval("document.querySelector(\"section a[href^='/agents']\").click()");
    browser.wait_for_text("h1", &format!("Agent {agent}"));
    assert!(browser.text("main").contains("counted"), "{}", browser.text("main"));
}

#[test]
fn faults_and_recoveries_show_without_a_reload() {
    let dir = TempDir::new().expect("a directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 2);
    let mut nodes =
        PulseNodes::start(&cluster, 3, &["--cluster", "it", "--bpm", "120", "--max-bpm", "120", "--bar", "4"]);
    let mut members = vec![reverb(&cluster, &[]), reverb(&cluster, &[])];
    let _agents = cluster.start("agent-sim", &["--agents", "5"]);
    let ui = serve_ui(&cluster, &[nodes.node(0), nodes.node(1), nodes.node(2)], &[&members[0], &members[1]], &[]);
    let browser = Browser::start();
    browser.open(&url(&ui));
    browser.eval(RECORD_BEATS);
    browser.wait_for_text("#pulse", "★ leader");

    let leader = nodes.wait_for_leader();
    let killed = Instant::now();
    nodes.kill(leader);
    browser.wait_for_text("#pulse", "✕ does not answer; since");
    eprintln!("a killed leader showed after {:?}", killed.elapsed());
    let row = format!("#pulse-{leader}");
    assert!(browser.text(&row).contains("was leader") || browser.text(&row).contains("does not answer"));
    let others = |browser: &Browser| {
        (0..3).filter(|node| *node != leader).any(|node| browser.text(&format!("#pulse-{node}")).contains("★ leader"))
    };
    wait_until("another leader on the page", LIMIT, || others(&browser));

    browser.wait_for_text("#reverb", "★ merge");
    let killed = Instant::now();
    members[1].signal(Signal::KILL);
    browser.wait_for_text("#reverb-1", "✕ does not answer; since");
    eprintln!("a killed member showed after {:?}", killed.elapsed());
    members.truncate(1);
    browser.wait_for_text("#reverb-0", "0-1");

    let stopped = Instant::now();
    devstack.kill_broker(0).expect("kafka is killed");
    browser.wait_for_text("#banner", "Kafka has not answered since");
    eprintln!("a stopped kafka showed after {:?}", stopped.elapsed());
    browser.wait_for_text("#beat-state", "is late by");
    browser.wait_for_text("#late", "has been due since");
    assert_eq!(browser.accessibility_violations(), [""; 0], "the page says what is wrong");
    assert_eq!(ui.get("/ready").expect("it answers").0, 503);
    let last = browser.text("#beat-index");
    devstack.restart_broker(0).expect("kafka starts");
    let restarted = Instant::now();
    wait_until("no banner", LIMIT, || browser.text("#banner").is_empty());
    eprintln!("its return showed {:?} after it answered", restarted.elapsed());
    let beat = |text: &str| text.parse::<i64>().expect("a beat");
    wait_until("a new beat", LIMIT, || beat(&browser.text("#beat-index")) > beat(&last));
    wait_until("no late beat", LIMIT, || !browser.text("#beat-state").contains("is late by"));

    // The page itself comes back to a server that was started again.
    let ui_url = url(&ui);
    assert!(is_same_document(&browser));
    drop(ui);
    browser.wait_for_text("#connection", "No connection to backbeat ui since");
    browser.wait_for_text("#beat-state", "unknown since");
    assert_eq!(browser.accessibility_violations(), [""; 0], "the page says that it is old");
    let port = ui_url.rsplit_once(':').expect("a port").1.to_owned();
    let urls = |range: std::ops::Range<usize>| {
        range.filter(|node| *node != leader).map(|node| url(nodes.node(node))).collect::<Vec<_>>().join(",")
    };
    let again =
        cluster.start("backbeat", &["ui", "--port", &port, "--pulse", &urls(0..3), "--reverb", &url(&members[0])]);
    browser.wait_for_text("#connection", "● live");
    assert!(is_same_document(&browser), "{}", again.log());
}

#[test]
fn tempo_is_changed_by_the_page_with_the_token_only() {
    let cluster = Cluster::new(1);
    let token_file = cluster.dir().join("token");
    std::fs::write(&token_file, "sesame\n").expect("the token is written");
    let token_flag = ["--admin-token-file", token_file.to_str().expect("a path in UTF-8")];
    let pulse = cluster.serve(
        "pulse",
        &[&["--cluster", "it", "--bpm", "200", "--max-bpm", "400", "--bar", "4"][..], &token_flag].concat(),
    );
    let ui = serve_ui(&cluster, &[&pulse], &[], &token_flag);
    let browser = Browser::start();
    browser.open(&format!("{}#token=wrong", url(&ui)));
    browser.wait_for_text("#tempo", "200 BPM");
    assert_eq!(browser.eval("return location.hash"), json!(""), "the token stays in the address");
    let submit = |bpm: &str| {
        browser.eval(&format!(
            "const form = document.getElementById('tempo-form'); form.closest('details').open = true; \
             form.elements.tempo_bpm.value = '{bpm}'; form.requestSubmit()"
        ));
    };
    submit("210");
    assert_eq!(browser.accessibility_violations(), [""; 0], "the form is open");
    browser.wait_for_text("#tempo-result", "✕ the token is missing or wrong");
    browser.eval("document.getElementById('tempo-form').elements.token.value = 'sesame'");
    submit("300");
    browser.wait_for_text("#tempo-result", "10 %");
    submit("210");
    browser.wait_for_text("#tempo-result", "● 210 BPM in bars of 4, from beat");
    browser.wait_for_text("#tempo .big", "210 BPM");
    // While a change is under way, another one is refused.
    wait_until("no change under way", LIMIT, || !browser.text("#tempo").contains("Changing"));
    browser.eval("document.getElementById('tempo-form').elements.ramp.checked = true");
    submit("390");
    browser.wait_for_text("#tempo", "▲ Changing to 390");
    browser.eval("document.getElementById('tempo-cancel').click()");
    wait_until("no change under way", LIMIT, || !browser.text("#tempo").contains("Changing"));

    // Without a token the page is read-only, whoever asks.
    let read_only = serve_ui(&cluster, &[&pulse], &[], &[]);
    browser.open(&url(&read_only));
    assert!(browser.text("main").contains("This page is read-only"));
    assert_eq!(browser.eval("return document.getElementById('tempo-form')"), Value::Null);
    let http = Client::new();
    let origin = url(&read_only);
    let request = http.post(format!("{origin}/api/v1/tempo")).header("Origin", &origin).bearer_auth("sesame");
    assert_eq!(request.body(r#"{"tempo_bpm": 220}"#).send().expect("it answers").status(), 403);
}

#[test]
fn names_that_agents_choose_are_inert() {
    let cluster = Cluster::new(2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", "4"]);
    let member = reverb(&cluster, &[]);
    // The numbers at their ends have five digits.
    let emoji = "🥁".repeat(62);
    let prefixes = ["<img src=x onerror=window.hacked=1>", "\u{202e}evil\u{2066}", &emoji];
    let rates = ["--malformed-rate", "0.3", "--stalled-task-rate", "1", "--agents", "4"];
    let fleets: Vec<Program> = prefixes
        .iter()
        .map(|prefix| cluster.start("agent-sim", &[&["--agent-prefix", prefix][..], &rates].concat()))
        .collect();
    let ui = serve_ui(&cluster, &[&pulse], &[&member], &[]);
    let browser = Browser::start();
    browser.resize(360, 800);
    browser.open(&url(&ui));
    browser.wait_for_text("#dead-letters", prefixes[0]);
    browser.wait_for_text("#dead-letters", "\\u202eevil\\u2066");
    browser.wait_for_text("#dead-letters", &emoji);
    let troubled = |report: &backbeat_schemas::BarReport| report.tasks_stalled >= 3;
    let report =
        wait_for("stalled tasks", LIMIT, || cluster.reports().into_iter().map(|entry| entry.record).find(troubled));
    let check = |browser: &Browser| {
        let width = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        assert_eq!(browser.eval("return window.hacked"), Value::Null);
        assert_eq!(browser.eval("return document.querySelectorAll('main img').length"), json!(0));
        assert_eq!(browser.eval(width), json!(true), "something is wider than the page");
        assert_eq!(browser.console_errors(), [""; 0]);
    };
    check(&browser);
    browser.open(&format!("{}/windows/{}", url(&ui), report.window_id));
    browser.wait_for_text("main", "Tasks that stalled");
    check(&browser);
    for prefix in prefixes {
        let id = format!("{prefix}00000");
        browser.open(&format!("{}/agents?id={}", url(&ui), percent(&id)));
        browser.wait_for_text("h1", "Agent");
        assert!(browser.text("main").contains("counted"), "{}", browser.text("main"));
        check(&browser);
    }
    drop(fleets);
}

fn percent(text: &str) -> String {
    percent_encode(text.as_bytes(), NON_ALPHANUMERIC).to_string()
}

/// Opens a stream of the page, and reads until its first event has come.
fn open_stream(http: &Client, ui: &Program) -> BufReader<Response> {
    let response = http.get(format!("{}/events", url(ui))).timeout(LIMIT).send().expect("it answers");
    let mut stream = BufReader::new(response);
    let mut line = String::new();
    while !line.starts_with("data:") {
        line.clear();
        assert!(stream.read_line(&mut line).expect("the stream is open") > 0, "it ended");
    }
    stream
}

#[test]
fn open_pages_do_not_hold_up_a_stop() {
    let cluster = Cluster::new(1);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "240", "--max-bpm", "240"]);
    let mut ui = serve_ui(&cluster, &[&pulse], &[], &[]);
    let browser = Browser::start();
    browser.open(&url(&ui));
    browser.wait_for_text("#connection", "● live");
    let http = Client::new();
    let streams: Vec<BufReader<Response>> = (0..10).map(|_| open_stream(&http, &ui)).collect();
    wait_until("eleven streams", LIMIT, || ui.metric("backbeat_ui_streams") == Some(11.0));
    let stopped = Instant::now();
    ui.signal(Signal::TERM);
    assert_eq!(ui.wait(), 0);
    eprintln!("it stopped within {:?}", stopped.elapsed());
    // The server would log that it closes connections itself.
    assert!(!ui.log().contains("closes connections"), "{}", ui.log());
    for mut stream in streams {
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut rest).expect("the stream ends as it should");
    }
    browser.wait_for_text("#connection", "No connection");
}

#[test]
fn streams_have_a_limit_and_pages_elsewhere_have_no_access() {
    let cluster = Cluster::new(1);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    let ui = serve_ui(&cluster, &[&pulse], &[], &["--allowed-host", "beats.example"]);
    let http = Client::new();
    let status = |method: Method, path: &str, host: &str, origin: Option<&str>| {
        let mut request = http.request(method, format!("{}{path}", url(&ui))).header("Host", host);
        if let Some(origin) = origin {
            request = request.header("Origin", origin);
        }
        request.send().expect("it answers").status().as_u16()
    };
    assert_eq!(status(Method::GET, "/", "beats.example", None), 200);
    for path in ["/", "/events", "/agents?id=a", "/windows/0", "/api/v1/tempo"] {
        assert_eq!(status(Method::GET, path, "rebound.example", None), 403, "{path}");
        assert_eq!(status(Method::GET, path, "beats.example", Some("http://other.example")), 403, "{path}");
    }
    // Probes and Prometheus come by names of their own.
    assert_eq!(status(Method::GET, "/metrics", "ui.backbeat.svc", None), 200);
    assert_eq!(status(Method::GET, "/ready", "ui.backbeat.svc", None), 200);
    let page = http.get(url(&ui)).send().expect("it answers");
    let policy = page.headers()["content-security-policy"].to_str().expect("text");
    assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let body = page.text().expect("a body");
    assert!(!body.contains("<style") && !body.contains("style=") && !body.contains("onclick"), "{body}");

    let streams: Vec<_> = (0..256).map(|_| open_stream(&http, &ui)).collect();
    assert_eq!(status(Method::GET, "/events", "localhost", None), 503);
    assert_eq!(ui.metric("backbeat_ui_refused_streams_total"), Some(1.0));
    let browser = Browser::start();
    browser.open(&url(&ui));
    browser.wait_for_text("#connection", "✕ No connection to backbeat ui since");
    // Pages can still be loaded.
    assert_eq!(status(Method::GET, "/", "localhost", None), 200);
    drop(streams);
    browser.wait_for_text("#connection", "● live");
    drop(browser);
    wait_until("room for streams", LIMIT, || status(Method::HEAD, "/events", "localhost", None) == 200);
}

#[test]
fn missing_topics_are_not_taken_for_an_outage_of_kafka() {
    let cluster = Cluster::without_topics();
    let ui = cluster.serve("backbeat", &["ui"]);
    ui.wait_ready();
    let page = || ui.get("/").expect("it answers").1;
    wait_until("the page to say what is missing", LIMIT, || page().contains("Reading beats has failed"));
    assert!(!page().contains("Kafka has not answered"), "{}", page());
}

#[test]
fn programs_without_a_url_are_refused_with_an_example() {
    let cluster = Cluster::without_topics();
    for url in ["pulse-1:8080", "8080", "ftp://pulse-1"] {
        let output = cluster.backbeat(&["ui", "--port", "0", "--pulse", url]);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && log.contains("such as http://pulse-1:8080"), "{log}");
    }
}

#[test]
fn page_that_others_can_reach_needs_a_token_file_in_production() {
    let cluster = Cluster::without_topics();
    let refused = cluster.command("backbeat", &["--env", "production", "ui", "--port", "0", "--admin-host", "0.0.0.0"]);
    let output = { refused }.output().expect("it runs");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && log.contains("needs an --admin-token-file"), "{log}");
}

/// The directory of the pictures in the docs, if they are to be made, or one that is thrown away.
fn pictures() -> PathBuf {
    let dir = match std::env::var_os("UPDATE_DOCS") {
        Some(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/images"),
    };
    std::fs::create_dir_all(&dir).expect("a directory");
    dir
}

#[test]
fn pages_are_accessible_at_all_sizes_and_in_both_colour_schemes() {
    for (name, trouble) in [("quiet", &["--failure-rate", "0", "--silence-rate", "0"][..]), ("troubled", &TROUBLE)] {
        let cluster = Cluster::new(4);
        let flags = ["--cluster", "it", "--bpm", "480", "--max-bpm", "480", "--bar", "4"];
        let mut nodes = PulseNodes::start(&cluster, 3, &flags);
        let members = [reverb(&cluster, &[]), reverb(&cluster, &[])];
        let _agents = cluster.start("agent-sim", &[&["--agents", "40"][..], trouble].concat());
        let pulse = [nodes.node(0), nodes.node(1), nodes.node(2)];
        let ui = serve_ui(&cluster, &pulse, &[&members[0], &members[1]], &[]);
        wait_for_reports(&cluster, 24);
        if name == "troubled" {
            let leader = nodes.wait_for_leader();
            nodes.kill((leader + 1) % 3);
        }
        let browser = Browser::start();
        let window = cluster.reports().pop().expect("reports").record.window_id;
        let pages =
            [String::new(), format!("/windows/{window}"), "/agents?id=agent-00001".to_owned(), "/windows/0".to_owned()];
        for (page, path) in pages.iter().enumerate() {
            browser.open(&format!("{}{path}", url(&ui)));
            for dark in [false, true] {
                browser.set_dark(dark);
                for width in [360, 1_280, 2_000] {
                    browser.resize(width, 1_000);
                    let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
                    assert_eq!(browser.eval(overflow), json!(0), "{path} at {width}");
                }
                browser.resize(1_280, 1_000);
                let violations = browser.accessibility_violations();
                assert_eq!(violations, [""; 0], "{path}, dark: {dark}");
                let scheme = if dark { "dark" } else { "light" };
                if page == 0 {
                    browser.screenshot(&pictures().join(format!("{name}-{scheme}.png")));
                } else if page == 1 && name == "troubled" && !dark {
                    browser.screenshot(&pictures().join("window.png"));
                }
            }
        }
    }
}
