//! The GPU gauges, read through the real loading path from a fake of the driver's library: this machine has no GPU.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::float_cmp,
    clippy::print_stderr,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first thing that is wrong"
)]

use std::collections::BTreeMap;

use testing::Server;
use testing::nvml::FakeNvml;

const GAUGES: [&str; 5] = [
    "ml_gpu_utilization_percent",
    "ml_gpu_memory_used_bytes",
    "ml_gpu_memory_total_bytes",
    "ml_gpu_temperature_celsius",
    "ml_gpu_power_watts",
];

fn start(fake: &FakeNvml) -> Server {
    fake.serve(&["--device", "cpu"])
}

/// The values of the GPU gauges by name and `gpu_id`, which must be their only label.
fn gauges(server: &Server) -> BTreeMap<(String, String), f64> {
    let text = String::from_utf8(server.get("/metrics").body).unwrap();
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    let scrape = prometheus_parse::Scrape::parse(lines).unwrap();
    let samples = scrape
        .samples
        .into_iter()
        .filter(|sample| sample.metric.starts_with("ml_gpu_"));
    samples
        .map(|sample| {
            let labels: Vec<(&String, &String)> = sample.labels.iter().collect();
            let [(name, gpu)] = labels[..] else {
                panic!("{labels:?}")
            };
            assert_eq!(name, "gpu_id");
            let prometheus_parse::Value::Gauge(value) = sample.value else {
                panic!("{:?}", sample.value)
            };
            ((sample.metric.clone(), gpu.clone()), value)
        })
        .collect()
}

/// Scrapes until `wanted` holds, and gives what was scraped then.
fn scrape_until(
    server: &Server,
    wanted: impl Fn(&BTreeMap<(String, String), f64>) -> bool,
) -> BTreeMap<(String, String), f64> {
    testing::eventually_is("the gauges are as wanted", || {
        let found = gauges(server);
        wanted(&found).then_some(found)
    })
}

fn of(gpu: &str, values: [f64; 5]) -> Vec<((String, String), f64)> {
    GAUGES
        .iter()
        .zip(values)
        .map(|(name, value)| (((*name).to_owned(), gpu.to_owned()), value))
        .collect()
}

#[test]
fn each_gpu_has_its_gauges_in_the_units_of_their_names_and_they_follow_the_gpu() {
    let fake = FakeNvml::new(&FakeNvml::two_gpus());
    let server = start(&fake);
    let found = scrape_until(&server, |found| found.len() == 10);
    let first = of("0", [37.0, 1_073_741_824.0, 24_152_899_584.0, 61.0, 68.5]);
    let second = of("1", [100.0, 24_000_000_000.0, 24_152_899_584.0, 88.0, 72.0]);
    assert_eq!(found, first.into_iter().chain(second).collect());

    fake.set(&FakeNvml::two_gpus().replace("0.utilization 37", "0.utilization 4"));
    let key = ("ml_gpu_utilization_percent".to_owned(), "0".to_owned());
    scrape_until(&server, |found| found[&key] == 4.0);
}

#[test]
fn a_reading_that_a_gpu_does_not_support_is_a_gauge_that_is_not_there() {
    // A slice of a GPU (MIG) has neither utilisation nor power; an old driver lacks the newer call for memory.
    let state = FakeNvml::two_gpus()
        .replace("0.utilization 37\n", "")
        .replace("0.power 68500\n", "")
        .replace("1.memory_total 24152899584", "1.memory_total error 13");
    let fake = FakeNvml::new(&state);
    let server = start(&fake);
    let found = scrape_until(&server, |found| found.len() >= 6);
    let names: Vec<(&str, &str)> = found
        .keys()
        .map(|(name, gpu)| (name.as_str(), gpu.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            ("ml_gpu_memory_total_bytes", "0"),
            ("ml_gpu_memory_used_bytes", "0"),
            ("ml_gpu_power_watts", "1"),
            ("ml_gpu_temperature_celsius", "0"),
            ("ml_gpu_temperature_celsius", "1"),
            ("ml_gpu_utilization_percent", "1"),
        ]
    );
    let complaints = |line: &serde_json::Value| line["level"] == "WARN";
    assert!(!server.log.lines().iter().any(complaints));
}

#[test]
fn the_gauges_of_a_lost_gpu_end_with_one_line_in_the_log_and_the_others_go_on() {
    let fake = FakeNvml::new(&FakeNvml::two_gpus());
    let server = start(&fake);
    scrape_until(&server, |found| found.len() == 10);

    // Code 15 is "GPU is lost": it fell off the bus.
    fake.set(&FakeNvml::two_gpus().replace("1.handle 1", "1.handle error 15"));
    let left = scrape_until(&server, |found| found.len() == 5);
    assert!(left.keys().all(|(_, gpu)| gpu == "0"));
    let told = |line: &serde_json::Value| line["gpu_id"] == 1 && line["level"] == "WARN";
    let line = server.log.wait_for(told).unwrap();
    assert!(
        line["reason"]
            .as_str()
            .unwrap()
            .contains("fell off the bus"),
        "{line}"
    );

    fake.set(&FakeNvml::two_gpus());
    scrape_until(&server, |found| found.len() == 10);
    assert_eq!(
        server.log.lines().iter().filter(|line| told(line)).count(),
        1
    );
    assert_eq!(server.get("/ready").status, 200);
}

#[test]
fn a_machine_without_nvml_serves_and_says_so_in_one_line() {
    let server = Server::start(&["--device", "cpu"]);
    let told = |line: &serde_json::Value| line["message"] == "no NVML, so there are no GPU metrics";
    let line = server.log.wait_for(told).unwrap();
    assert_eq!(
        (&line["level"], &line["reason"]),
        (
            &"INFO".into(),
            &"libnvidia-ml.so.1 is not on this machine".into()
        )
    );
    assert_eq!(gauges(&server).len(), 0);
    assert_eq!(server.get("/ready").status, 200);
}

#[test]
fn a_driver_that_refuses_is_one_line_in_the_log_and_no_gauges() {
    for (code, reason) in [(4, "permission"), (9, "driver is not loaded")] {
        let fake = FakeNvml::new(&format!("init error {code}"));
        let server = start(&fake);
        let told =
            |line: &serde_json::Value| line["message"] == "no NVML, so there are no GPU metrics";
        let line = server.log.wait_for(told).unwrap();
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(gauges(&server).len(), 0);
        assert_eq!(server.get("/ready").status, 200);
    }
}
