//! Faults in an order that a seed decides.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Another order of faults, and other victims: `FAULT_SEED=2 cargo test ...`.
const SEED: u64 = 1;

/// As many of each fault as `counts` says, shuffled; the seed, and what goes on from it.
pub(crate) fn shuffled<F: Copy>(counts: &[(F, usize)]) -> (Vec<F>, u64, ChaCha8Rng) {
    let seed = std::env::var("FAULT_SEED").map_or(SEED, |text| text.parse().expect("a number"));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut faults: Vec<F> = counts.iter().flat_map(|(fault, count)| vec![*fault; *count]).collect();
    faults.shuffle(&mut rng);
    (faults, seed, rng)
}
