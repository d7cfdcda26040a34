//! How many of a fleet's agents are there on a beat.

use std::str::FromStr;

/// The shape of the load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// All agents, from the first beat on.
    Steady,
    /// From a few agents to all of them, in equal steps over so many beats.
    Ramp {
        /// At least 1.
        beats: u32,
    },
    /// All agents on downbeats, and this share of them on the beats between.
    Spike {
        /// 0 to 1.
        between: f64,
    },
    /// All agents, but on each beat this share of them leaves, and new ones take their places.
    Churn {
        /// 0 to 1.
        share: f64,
    },
}

/// A shape that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a shape; there are steady, ramp[:BEATS] (16 by default, from 1), spike[:SHARE between downbeats] (0.1) and churn[:SHARE a beat] (0.05)"
)]
pub struct UnknownShape(String);

impl FromStr for Shape {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Self, UnknownShape> {
        let (name, parameter) = text.split_once(':').map_or((text, None), |(name, parameter)| (name, Some(parameter)));
        let share = |default: f64| match parameter {
            None => Some(default),
            Some(text) => text.parse().ok().filter(|share| (0.0..=1.0).contains(share)),
        };
        let beats = || match parameter {
            None => Some(16),
            Some(text) => text.parse().ok().filter(|beats| *beats > 0),
        };
        let parsed = match name {
            "steady" if parameter.is_none() => Some(Self::Steady),
            "ramp" => beats().map(|beats| Self::Ramp { beats }),
            "spike" => share(0.1).map(|between| Self::Spike { between }),
            "churn" => share(0.05).map(|share| Self::Churn { share }),
            _ => None,
        };
        parsed.ok_or_else(|| UnknownShape(text.to_owned()))
    }
}

impl Shape {
    /// How many of `agents` are there on the `beat`th beat, from 0.
    pub fn present(self, agents: usize, beat: u64, downbeat: bool) -> usize {
        let share = |share: f64| (agents as f64 * share).round() as usize;
        match self {
            Self::Ramp { beats } => share(((beat + 1) as f64 / f64::from(beats)).min(1.0)),
            Self::Spike { between } if !downbeat => share(between),
            Self::Spike { .. } | Self::Steady | Self::Churn { .. } => agents,
        }
    }

    /// The share of agents that others replace on a beat.
    pub fn replaced(self) -> f64 {
        if let Self::Churn { share } = self { share } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_with_their_defaults_and_refused_with_the_reason() {
        let read = |text: &str| text.parse::<Shape>();
        assert_eq!(read("steady"), Ok(Shape::Steady));
        assert_eq!(read("ramp"), Ok(Shape::Ramp { beats: 16 }));
        assert_eq!(read("ramp:3"), Ok(Shape::Ramp { beats: 3 }));
        assert_eq!(read("spike:0.5"), Ok(Shape::Spike { between: 0.5 }));
        assert_eq!(read("churn"), Ok(Shape::Churn { share: 0.05 }));
        for text in ["", "steady:1", "ramp:0", "ramp:x", "spike:1.5", "churn:NaN", "square"] {
            assert!(read(text).is_err_and(|error| error.to_string().contains("there are steady, ramp")), "{text}");
        }
    }

    #[test]
    fn agents_come_as_the_shape_says() {
        let ramp: Vec<usize> = (0..5).map(|beat| Shape::Ramp { beats: 4 }.present(10, beat, false)).collect();
        assert_eq!(ramp, [3, 5, 8, 10, 10]);
        let spike = Shape::Spike { between: 0.2 };
        assert_eq!((spike.present(10, 0, true), spike.present(10, 1, false)), (10, 2));
        assert_eq!(Shape::Churn { share: 0.5 }.present(10, 3, false), 10);
    }
}
