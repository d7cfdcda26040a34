//! `backbeat console`: Kafka's own console consumer, with an Avro deserializer.

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
    /// A topic, without the prefix.
    topic: String,

    /// The consumer's own flags, after `--`.
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
            "Java's clients read neither --kafka-config nor --schema-registry-ca, and would show the credentials of \
             --schema-registry in ps: use `backbeat tail`, or leave them out and give the consumer files of its own \
             (-- --command-config FILE --formatter-config FILE)"
        );
    }
    let apicurio = schema_registry.trim_end_matches('/').strip_suffix("/apis/ccompat/v7").with_context(|| {
        format!("{shown} is not Apicurio's (.../apis/ccompat/v7): for another registry use kafka-avro-console-consumer")
    })?;
    let mut consumer = console_consumer()?;
    consumer
        .args(["--bootstrap-server", bootstrap_servers])
        .arg("--topic")
        .arg(format!("{topic_prefix}{}", args.topic));
    // The stock consumer would show aborted records, too.
    consumer.args(["--isolation-level", "read_committed"]);
    for property in [
        "value.deserializer=io.apicurio.registry.serde.avro.AvroKafkaDeserializer".to_owned(),
        format!("value.deserializer.apicurio.registry.url={apicurio}/apis/registry/v3"),
    ] {
        consumer.args(["--formatter-property", &property]);
    }
    // It takes our place, so that signals reach it.
    Err(consumer.args(&args.flags).exec()).context("running java")
}
