//! Faults in a random order, determined by a seed.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The default seed. `FAULT_SEED=2 cargo test ...` gives another order of faults and other victims.
const SEED: u64 = 1;

/// Returns the faults in `counts`, each as often as given there, in random order; the seed, and the generator to
/// continue with.
pub(crate) fn shuffled<F: Copy>(counts: &[(F, usize)]) -> (Vec<F>, u64, ChaCha8Rng) {
    let seed = std::env::var("FAULT_SEED").map_or(SEED, |text| text.parse().expect("FAULT_SEED is a number"));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut faults: Vec<F> = counts.iter().flat_map(|(fault, count)| vec![*fault; *count]).collect();
    faults.shuffle(&mut rng);
    (faults, seed, rng)
}
