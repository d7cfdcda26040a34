//! An agent with two tasks: one completes within its beat budget, the other exceeds it.
//!
//! Run `cargo run -p backbeat-sdk --example agent` while `make run-dev` is running.

use std::time::Duration;

use anyhow::Context;
use backbeat_sdk::{Connection, Help, KafkaArgs, SecretRotation, State};
use clap::Parser;

/// An agent with two tasks.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    kafka: KafkaArgs,
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "the example prints its outcome")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let connection = Connection::open(&args.kafka, "example-agent").await?;
    let mut beats = connection.beats()?;
    let tasks = connection.tasks(&beats);
    // Start the work with a beat.
    beats.next().await.context("the runtime is shutting down")?;

    let build = tasks.task("example-agent", "build", Some(4));
    build.set_state(State::Executing);
    build.set_secret_rotation(Some(SecretRotation::Ok));
    let mut steps = beats.clone();
    // Two steps of one beat each, within a budget of four beats.
    let outcome = beats.with_beat_budget(4, async {
        for step in 1..=2 {
            steps.next().await;
            build.set_progress(f64::from(step) / 2.0);
        }
    });
    println!("build: {:?}", outcome.await);
    build.finish(State::Done);

    let train = tasks.task("example-agent", "train", Some(3));
    train.set_state(State::Executing);
    train.set_help(Some(Help::Requested));
    // Work that never completes. Of nested budgets, the smaller one stops it.
    let outcome = beats.with_beat_budget(3, beats.with_beat_budget(100, std::future::pending::<()>())).await;
    if let Err(spent) = outcome {
        println!("train: {spent}");
        train.set_notes(&spent.to_string());
        train.finish(State::Failed);
    }

    // Wait until Kafka has acknowledged the claims.
    let claims = tasks.flush(Duration::from_secs(10)).await;
    println!("{} claims acknowledged, {} failed", claims.acknowledged, claims.failed);
    Ok(())
}
