//! `backbeat console`: runs Kafka's console consumer with an Avro deserializer.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, bail};
use backbeat_broker::{KafkaArgs, without_credentials};
use backbeat_devstack::console_consumer;

/// Flags of `backbeat console`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat console barreports -- --from-beginning --max-messages 1
  backbeat console beatframes | jq .beat_index")]
pub(crate) struct Args {
    /// The topic, without the topic prefix.
    topic: String,

    /// Flags of the console consumer, after `--`.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,

    #[command(flatten)]
    kafka: KafkaArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let KafkaArgs { bootstrap_servers, schema_registry, schema_registry_ca, kafka_config, topic_prefix } = &args.kafka;
    let shown = without_credentials(schema_registry);
    if kafka_config.is_some() || schema_registry_ca.is_some() || shown != *schema_registry {
        bail!(
            "the console consumer does not support --kafka-config and --schema-registry-ca, and would expose the \
             credentials in --schema-registry to ps: use `backbeat tail`, or leave them out and pass property files \
             (-- --command-config FILE --formatter-config FILE)"
        );
    }
    let apicurio = schema_registry.trim_end_matches('/').strip_suffix("/apis/ccompat/v7").with_context(|| {
        format!(
            "{shown} is not an Apicurio registry (.../apis/ccompat/v7): for another registry use kafka-avro-console-consumer"
        )
    })?;
    let mut consumer = console_consumer()?;
    consumer
        .args(["--bootstrap-server", bootstrap_servers])
        .arg("--topic")
        .arg(format!("{topic_prefix}{}", args.topic));
    // The default, read_uncommitted, would also show aborted records.
    consumer.args(["--isolation-level", "read_committed"]);
    for property in [
        "value.deserializer=io.apicurio.registry.serde.avro.AvroKafkaDeserializer".to_owned(),
        format!("value.deserializer.apicurio.registry.url={apicurio}/apis/registry/v3"),
    ] {
        consumer.args(["--formatter-property", &property]);
    }
    // It replaces this process, so that signals reach it.
    Err(consumer.args(&args.flags).exec()).context("cannot run java")
}
