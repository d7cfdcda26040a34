//! Load shapes: the number of a fleet's agents that are active on a beat.

use std::str::FromStr;

/// A load shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// All agents, from the first beat on.
    Steady,
    /// A growing number of agents, from a few to all of them in equal steps.
    Ramp {
        /// The number of beats until all agents are active, at least 1.
        beats: u32,
    },
    /// All agents on downbeats, a fraction of them on other beats.
    Spike {
        /// The fraction of agents on beats that are not downbeats, 0 to 1.
        between: f64,
    },
    /// All agents, with a fraction of them replaced by new ones on each beat.
    Churn {
        /// The fraction of agents replaced per beat, 0 to 1.
        rate: f64,
    },
}

/// An unknown load shape, or one with an invalid parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a load shape: must be steady, ramp[:BEATS] (default 16, at least 1), spike[:FRACTION between downbeats] (default 0.1) or churn[:FRACTION per beat] (default 0.05)"
)]
pub struct UnknownShape(String);

impl FromStr for Shape {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Self, UnknownShape> {
        let (name, parameter) = text.split_once(':').map_or((text, None), |(name, parameter)| (name, Some(parameter)));
        let fraction = |default: f64| match parameter {
            None => Some(default),
            Some(text) => text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction)),
        };
        let beats = || match parameter {
            None => Some(16),
            Some(text) => text.parse().ok().filter(|beats| *beats > 0),
        };
        let parsed = match name {
            "steady" if parameter.is_none() => Some(Self::Steady),
            "ramp" => beats().map(|beats| Self::Ramp { beats }),
            "spike" => fraction(0.1).map(|between| Self::Spike { between }),
            "churn" => fraction(0.05).map(|rate| Self::Churn { rate }),
            _ => None,
        };
        parsed.ok_or_else(|| UnknownShape(text.to_owned()))
    }
}

impl Shape {
    /// Returns the number of `agents` that are active on a beat; `beat` counts from 0 at the start of the run.
    pub fn active_agents(self, agents: usize, beat: u64, downbeat: bool) -> usize {
        let scaled = |fraction: f64| (agents as f64 * fraction).round() as usize;
        match self {
            Self::Ramp { beats } => scaled(((beat + 1) as f64 / f64::from(beats)).min(1.0)),
            Self::Spike { between } if !downbeat => scaled(between),
            Self::Spike { .. } | Self::Steady | Self::Churn { .. } => agents,
        }
    }

    /// Returns the fraction of agents that are replaced on each beat.
    pub fn churn_rate(self) -> f64 {
        if let Self::Churn { rate } = self { rate } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_from_text_without_a_parameter_has_the_default() {
        let parse = |text: &str| text.parse::<Shape>();
        assert_eq!(parse("steady"), Ok(Shape::Steady));
        assert_eq!(parse("ramp"), Ok(Shape::Ramp { beats: 16 }));
        assert_eq!(parse("ramp:3"), Ok(Shape::Ramp { beats: 3 }));
        assert_eq!(parse("spike:0.5"), Ok(Shape::Spike { between: 0.5 }));
        assert_eq!(parse("churn"), Ok(Shape::Churn { rate: 0.05 }));
    }

    #[test]
    fn shape_from_invalid_text_is_refused_with_the_allowed_shapes() {
        let parse = |text: &str| text.parse::<Shape>();
        for text in ["", "steady:1", "ramp:0", "ramp:x", "spike:1.5", "churn:NaN", "square"] {
            assert!(parse(text).is_err_and(|error| error.to_string().contains("must be steady, ramp")), "{text}");
        }
    }

    #[test]
    fn shape_on_a_beat_gives_the_number_of_active_agents() {
        let ramp: Vec<usize> = (0..5).map(|beat| Shape::Ramp { beats: 4 }.active_agents(10, beat, false)).collect();
        assert_eq!(ramp, [3, 5, 8, 10, 10]);
        let spike = Shape::Spike { between: 0.2 };
        assert_eq!((spike.active_agents(10, 0, true), spike.active_agents(10, 1, false)), (10, 2));
        assert_eq!(Shape::Churn { rate: 0.5 }.active_agents(10, 3, false), 10);
    }
}
