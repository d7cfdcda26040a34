//! Who makes the claims: a seeded fleet, or the tasks of a list.

use std::fs::File;

use anyhow::Context;

use crate::{Args, ClaimPlan, Fleet, Trace};

/// The agents of a run. The same ones make the same claims again for the same beats.
#[derive(Debug, Clone)]
pub(crate) enum Agents {
    Fleet(Fleet),
    Trace(Trace),
}

impl Agents {
    pub(crate) fn new(args: &Args) -> anyhow::Result<Self> {
        let Some(path) = &args.trace else {
            let Args { agent_prefix, agents, seed, shape, .. } = args;
            return Ok(Self::Fleet(Fleet::new(agent_prefix, *agents, *seed, args.rates(), *shape)));
        };
        let list = File::open(path).with_context(|| format!("opening the task list {}", path.display()))?;
        Ok(Self::Trace(Trace::read(list, args.trace_seconds_per_beat).with_context(|| path.display().to_string())?))
    }

    /// What they claim on the next beat, which is a downbeat or not.
    pub(crate) fn beat(&mut self, downbeat: bool) -> Box<dyn Iterator<Item = ClaimPlan> + '_> {
        match self {
            Self::Fleet(fleet) => Box::new(fleet.beat(downbeat)),
            Self::Trace(trace) => Box::new(trace.beat()),
        }
    }

    pub(crate) fn are_done(&self) -> bool {
        matches!(self, Self::Trace(trace) if trace.is_over())
    }
}
