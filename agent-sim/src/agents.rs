//! The simulated agents of a run: a seeded fleet, or the tasks of a task list.

use std::fs::File;

use anyhow::Context;

use crate::{Args, ClaimPlan, Fleet, Trace};

/// The agents of a run. A clone makes the same claims for the same beats.
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
        let list = File::open(path).with_context(|| format!("cannot open the task list {}", path.display()))?;
        Ok(Self::Trace(Trace::read(list, args.trace_seconds_per_beat).with_context(|| path.display().to_string())?))
    }

    /// Returns the claims for the next beat, which may be a downbeat.
    pub(crate) fn claims_for_next_beat(&mut self, downbeat: bool) -> Box<dyn Iterator<Item = ClaimPlan> + '_> {
        match self {
            Self::Fleet(fleet) => Box::new(fleet.claims_for_next_beat(downbeat)),
            Self::Trace(trace) => Box::new(trace.claims_for_next_beat()),
        }
    }

    /// Returns true if no agent will claim any more.
    pub(crate) fn are_finished(&self) -> bool {
        matches!(self, Self::Trace(trace) if trace.is_finished())
    }
}
