//! A short run of `make chaos`.

use backbeat_tests::Chaos;

#[test]
fn reports_under_chaos_equal_the_oracles() {
    let result = Chaos { faults: 30, seed: 1, load: 0, agents: 50 }.run();
    assert!(result.faults.len() >= 5, "{:?}", result.faults);
    assert!(result.rescued > 0, "{result:?}");
}
